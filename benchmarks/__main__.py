"""One benchmark by the name of its file, or all of the engine's, one after the other.

Each of all writes its dated result as soon as it has one, and how long it took is printed.

python -m benchmarks verify --shape mid
python -m benchmarks all --shape mid
"""

import runpy
import subprocess
import sys
import time
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
ENGINE = ("label", "best_of_n", "verify", "train", "vq", "request", "loop")
"""The benchmarks of the engine, which take the same options; each gets a process of its own."""

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in (*NAMES, "all"):
        sys.exit(f"python -m benchmarks NAME, one of all, {', '.join(NAMES)}")
    if sys.argv[1] == "all":
        failed, begin = [], time.monotonic()
        for number, name in enumerate(ENGINE, 1):
            start = time.monotonic()
            print(f"{number} of {len(ENGINE)}: {name}", flush=True)
            if subprocess.run([sys.executable, "-m", "benchmarks", name, *sys.argv[2:]]).returncode:
                failed.append(name)
            now = time.monotonic()
            print(f"{name}: {now - start:.0f} s, {now - begin:.0f} s in all", flush=True)
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    module = f"benchmarks.{sys.argv.pop(1)}"
    runpy.run_module(module, run_name="__main__", alter_sys=True)
