"""One benchmark by the name of its file: ``python -m benchmarks verify --shape mid``."""

import runpy
import sys
from pathlib import Path

NAMES = sorted(path.stem for path in Path(__file__).parent.glob("[a-z]*.py"))

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] not in NAMES:
        sys.exit(f"python -m benchmarks NAME, one of {', '.join(NAMES)}")
    module = f"benchmarks.{sys.argv.pop(1)}"
    runpy.run_module(module, run_name="__main__", alter_sys=True)
