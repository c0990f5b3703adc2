"""A finished run's seconds by stage, beside its plan on this machine.

    python ray_jobs/bootstrap.py --run-dir runs/measured
    python benchmarks/plan.py runs/measured    # on the machine that made it, as busy as then

Stages that wrote no time into the rounds (ingest, serve) are left out. A GPU's: benchmarks/gpu.py.
"""

import json
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from dynamics.plan import make_plan
from dynamics.plan.cluster import this_machine
from dynamics.plan.hours import measured_core
from dynamics.storage.run_folder import RunFolder


def main() -> None:
    """Print JSON: seconds planned and measured, and their ratio, by stage over all rounds."""
    run = RunFolder(Path(sys.argv[1]).resolve())
    cfg = run.config()
    core = measured_core()
    made = make_plan(cfg, this_machine(), core)
    rounds = [run.timings(number) for number in range(cfg.rounds + 1)]
    found: dict[str, object] = {"tflops of a core": round(core.tflops, 3)}
    for stage in ("guard", "label", "train", "evaluate"):
        planned = 3600 * made.hours[stage].wall
        measured = sum(one.get(stage, 0.0) for one in rounds)
        found[stage] = {
            "planned s": round(planned, 1),
            "measured s": round(measured, 1),
            "measured over planned": round(measured / planned, 2),
        }
    sys.stdout.write(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
