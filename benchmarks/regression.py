"""Ratios of the engines against the reference decoder: fails where one has become slower.

python -m benchmarks regression

Each pair of engines runs in turns in one process, in CPU seconds of one thread; what they compute
is compared. The bounds lie under what was measured (docs/PERFORMANCE.md) by the noise of a machine
with other work.
"""

import sys
import time

import numpy as np

from benchmarks import best_of_n, label, request, verify
from benchmarks.engine_frame import Size

_ROUNDS = 15
_CASES = {
    label: ("shared_prefix", "dynamic_cache", 0.9),
    best_of_n: ("shared_prefix", "dynamic_cache", 0.95),
    verify: ("shared_prefix", "dynamic_cache", 1.35),
    request: ("steady, at once", "dynamic_cache, at once", 1.05),
}
"""Benchmark: the engine, the reference, and the least that the second may take of the first."""


def ratio(module: object, ours: str, reference: str) -> float:
    """Median of the reference's time over ours."""
    measured, _ = module.cases(Size("tiny"))  # type: ignore[attr-defined]
    ratios = []
    for _ in range(_ROUNDS):
        seconds = {}
        for name in (ours, reference):
            start = time.thread_time()
            measured[name]()
            seconds[name] = time.thread_time() - start
        ratios.append(seconds[reference] / seconds[ours])
    return float(np.median(ratios))


if __name__ == "__main__":
    slower = []
    for module, (ours, reference, least) in _CASES.items():
        name, found = module.__name__.rpartition(".")[2], ratio(module, ours, reference)
        print(f"{name}: {reference} takes {found:.2f} times as long; at least {least}")
        if found < least:
            slower.append(name)
    sys.exit(f"slower than before: {', '.join(slower)}" if slower else 0)
