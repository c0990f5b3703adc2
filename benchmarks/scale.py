"""The data plane at size: actors, cores, rows, determinism, stores with faults.

    python benchmarks/scale.py                        all sections, about half an hour on 2 cores
    python benchmarks/scale.py --quick                a look, minutes
    python benchmarks/scale.py --sections rows store

Writes benchmarks/results/scale-DATE.{json,md,png}. Needs 40 GB below ``--scratch``.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import date
from pathlib import Path
from typing import Any

from memory import MemoryCurve
from report import RESULTS, Measure, write

HERE = Path(__file__).resolve().parent
STAGES = ("ingest", "label", "filter", "build", "epoch")
SIZES = {16: 10_000_000, 1024: 2_500_000}
"""Pairs by codes a frame."""
MOST_US, MOST_MB, MOST_GROWTH = 40.0, 1500, 1.2


class Bench:
    """Lines so far, curves to draw, and where files may lie."""

    def __init__(self, scratch: Path, *, quick: bool) -> None:
        self.scratch = scratch
        self.quick = quick
        self.lines: list[Measure] = []
        self.curves: list[dict[str, Any]] = []

    def say(
        self, section: str, what: str, value: str, wanted: str = "", holds: bool | None = None
    ) -> None:
        """Add a line, and print it."""
        self.lines.append(Measure(section, what, value, wanted, holds))
        verdict = {True: "  holds", False: "  MISSED", None: ""}[holds]
        print(
            f"{section:12} {what}: {value} {f'({wanted})' if wanted else ''}{verdict}", flush=True
        )


def rows(bench: Bench) -> None:
    """Pairs through every stage with models that cost nothing: time and memory by size."""
    for num_codes, full in SIZES.items():
        size = full // 100 if bench.quick else full
        quarter, whole = (_rows_once(bench, part, num_codes) for part in (size // 4, size))
        per_row = {name: _us(run) for name, run in (("quarter", quarter), ("whole", whole))}
        name = f"{size:,} pairs x {num_codes}"
        for stage in STAGES:
            bench.say("rows", f"{name}: {stage}", f"{per_row['whole'][stage]:.1f} us a row")
        total, small = (sum(per_row[part].values()) for part in ("whole", "quarter"))
        wanted = f"<= {MOST_US:.0f} us"
        bench.say("rows", f"{name}: all", f"{total:.1f} us a row", wanted, total <= MOST_US)
        growth = total / small
        shown = f"{small:.1f} us a row, x {growth:.2f} at full size"
        bench.say("rows", f"{name}: at a quarter", shown, "<= x 1.2", growth <= MOST_GROWTH)
        for what in ("driver", "worker"):
            peaks = [max(run[what]) for run in (quarter, whole)]
            shown = f"{peaks[1]:,} MB ({peaks[0]:,} MB at a quarter)"
            bench.say("rows", f"{name}: {what}", shown, f"<= {MOST_MB} MB", peaks[1] <= MOST_MB)
        disk = ", ".join(f"{key} {count / 2**30:.1f} GB" for key, count in whole["bytes"].items())
        bench.say("rows", f"{name}: on the disk", disk)


def _rows_once(bench: Bench, num_rows: int, num_codes: int) -> dict[str, Any]:
    """Stages, curves and sizes of one run, which goes in a process of its own."""
    options = [str(bench.scratch), "--rows", str(num_rows), "--codes", str(num_codes)]
    command = [sys.executable, str(HERE / "scale_rows.py"), *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        curve, stop = MemoryCurve(process.pid), threading.Event()
        watcher = threading.Thread(target=curve.watch, args=[stop])
        watcher.start()
        assert process.stdout is not None
        found = []
        for line in process.stdout:
            print(f"  {num_rows:,} x {num_codes}: {line.rstrip()}", flush=True)
            found.append(json.loads(line))
        stop.set()
        watcher.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} failed")
    *stages, sizes = found
    run = {
        "rows": num_rows,
        "codes": num_codes,
        "stages": stages,
        "times": [round(at - stages[0]["begin"], 1) for at in curve.times],
        "driver": curve.driver,
        "worker": curve.worker,
        "peaks": curve.peaks,
        "bytes": sizes["bytes"],
    }
    bench.curves.append(run)
    return run


def _us(run: Mapping[str, Any]) -> dict[str, float]:
    """Microseconds a row by stage."""
    return {
        stage["stage"]: 1e6 * (stage["end"] - stage["begin"]) / stage["rows"]
        for stage in run["stages"]
    }


def draw(curves: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Memory over time, a panel a run, with the stages' borders."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 2.4 * len(curves)), dpi=110, layout="constrained")
    for axes, run in zip(figure.subplots(len(curves), squeeze=False)[:, 0], curves, strict=True):
        axes.set_title(f"{run['rows']:,} pairs x {run['codes']} codes", loc="left", fontsize=10)
        for what, colour in (("driver", "#1f6f8b"), ("worker", "#d1495b")):
            shown = [(at, mb) for at, mb in zip(run["times"], run[what], strict=True) if mb]
            axes.plot(*zip(*shown, strict=True), ".", color=colour, label=what, markersize=2)
        start = run["stages"][0]["begin"]
        for stage in run["stages"]:
            axes.axvline(stage["begin"] - start, color="#bbbbbb", linewidth=0.8)
            place = (stage["begin"] - start, MOST_MB)
            axes.annotate(stage["stage"], place, fontsize=7.5, rotation=90, va="top")
        axes.axhline(MOST_MB, color="#444444", linestyle=":", linewidth=1.0)
        axes.set_ylim(0, max(MOST_MB * 1.1, *run["driver"], *run["worker"]))
        axes.set_ylabel("resident MB")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("s")
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, metadata={"Software": None})


SECTIONS: dict[str, Callable[[Bench], None]] = {"rows": rows}


def main() -> None:
    """Parse, measure, write; what a failed section says is a line of the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--quick", action="store_true", help="small sizes: a look")
    parser.add_argument("--scratch", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    scratch = Path(tempfile.mkdtemp(prefix="scale-", dir=options.scratch))
    bench = Bench(scratch, quick=options.quick)
    try:
        for name in options.sections:
            SECTIONS[name](bench)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        _write(bench, options.out)


def _write(bench: Bench, out: Path) -> None:
    command = " ".join(["python benchmarks/scale.py", *sys.argv[1:]])
    write("scale", "The data plane", command, bench.lines, out, more={"curves": bench.curves})
    if bench.curves:
        draw(bench.curves, out / f"scale-{date.today().isoformat()}.png")


if __name__ == "__main__":
    main()
