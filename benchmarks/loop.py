"""One small round of the default loop in one process: its seconds by stage, by engine.

python -m benchmarks loop    # 256 pairs, 10 steps; there is no other shape

Peers have no loop. Filming and decoding of clips run in processes of their own, which are not in
the CPU seconds.
"""

import tempfile
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.engine_frame import ROOT, Cases, Size, run
from dynamics.core.config_file import load
from dynamics.core.progress import silent
from dynamics.evaluation.guards.rules import GUARDS
from dynamics.loop import run_rounds
from dynamics.pipeline.executor import LocalExecutor
from dynamics.pipeline.stages import Stages
from dynamics.pipeline.tracking import Trackers
from dynamics.storage.run_folder import RunFolder

_SMALL = (
    "rounds=1", "pool.num_pairs=256", "labelled.num_pairs=128", "labelled.num_heldout=32",
    "train.first_steps=10", "train.round_steps=10", "evaluate.num_best_of_items=16",
    f"guards.accept=[{', '.join(GUARDS)}]",
)  # fmt: skip


def cases(size: Size) -> tuple[Cases, Callable[[Mapping[str, Any]], Any]]:
    """The loop with either engine."""
    torch.set_num_threads(1)

    def loop(engine: str) -> list[dict[str, float]]:
        cfg = load(ROOT / "configs/tabletop.yaml", [*_SMALL, f"model.decoder={engine}"])
        with tempfile.TemporaryDirectory() as folder:
            run_folder = RunFolder(Path(folder) / "run")
            stages = Stages(
                cfg, run_folder.root, executor=LocalExecutor(cfg, run_folder),
                trackers=Trackers([]), progress=silent,
            )  # fmt: skip
            with run_folder.claimed(cfg):
                reports = run_rounds(cfg, stages)
        return [{name: one.value for name, one in report.metrics.items()} for report in reports]

    def check(results: Mapping[str, Any]) -> str:
        ours, reference = results.values()
        for mine, other in zip(ours, reference, strict=True):
            apart = [name for name in mine if abs(mine[name] - other[name]) > 1e-6]
            if apart:
                raise SystemExit(f"the rounds differ: {', '.join(apart)}")
        return f"every metric of {len(ours)} rounds to 1e-6"

    return {engine: partial(loop, engine) for engine in ("shared_prefix", "dynamic_cache")}, check


if __name__ == "__main__":
    run("loop", cases)
