"""One benchmark by the name of its file, or all of the engine's, one after the other.

python -m benchmarks verify --shape mid
python -m benchmarks all --shape mid
"""

import runpy
import subprocess
import sys
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))
ENGINE = ("label", "best_of_n", "verify", "train", "vq", "request", "loop")
"""The benchmarks of the engine, which take the same options; each gets a process of its own."""

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in (*NAMES, "all"):
        sys.exit(f"python -m benchmarks NAME, one of all, {', '.join(NAMES)}")
    if sys.argv[1] == "all":
        more = sys.argv[2:]
        commands = [[sys.executable, "-m", "benchmarks", name, *more] for name in ENGINE]
        failed = [command[3] for command in commands if subprocess.run(command).returncode]
        sys.exit(f"failed: {', '.join(failed)}" if failed else 0)
    module = f"benchmarks.{sys.argv.pop(1)}"
    runpy.run_module(module, run_name="__main__", alter_sys=True)
