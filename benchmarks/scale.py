"""The data plane at size: actors, cores, rows, determinism, stores with faults.

    python benchmarks/scale.py                        all sections, about half an hour on 2 cores
    python benchmarks/scale.py --quick                a look, minutes
    python benchmarks/scale.py --sections rows16 store

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
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from memory import MemoryCurve
from report import RESULTS, Measure, write
from scale_ingest import film
from scale_store import FILES, WRITERS, faulty_store, run_dir, winners

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
sys.path.insert(0, str(ROOT))

from dynamics.core.config import ClusterConfig
from dynamics.core.config_file import load
from dynamics.core.progress import silent
from dynamics.storage.streams import Done, Stream
from ray_jobs import runtime

BATCH_S = 0.02
SHARDS = {
    1: "a batch of 20 ms an item",
    8: "8 batches, a shard of the default",
    32: "32 batches, a shard of the 7B recipe",
}
"""Items by their batches."""
SIZES = {16: 10_000_000, 1024: 2_500_000}
"""Pairs by codes a frame."""
NOTES = """
Times are wall times, beside whatever else ran on the machine. rows: made-up clips, models that cost
nothing; units of 20,480 pairs of 16 codes and of 1,280 of 1,024 (`ingest.part_clips` 4096 and 256),
all labels accepted, an epoch draws as many rows as there are, here in the driver's process, on top
of what that holds. actors: once all are up. cores: decoding, key frames, encoding, tables. store:
20 % of requests are answered with 500 or 503, 5 % of connections are reset.
"""
MOST_US, MOST_MB, MOST_GROWTH = 40.0, 1500, 1.2


class Bench:
    """Lines so far, curves to draw, and where files may lie."""

    def __init__(self, scratch: Path, out: Path, *, quick: bool) -> None:
        self.scratch = scratch
        self.quick = quick
        self.done: list[str] = []
        """Sections that were begun."""
        self._path = out / f"{'scale-quick' if quick else 'scale'}-{date.today().isoformat()}"
        self._lines: list[Measure] = []
        self.curves: list[dict[str, Any]] = []

    def say(
        self, section: str, what: str, value: str, wanted: str = "", holds: bool | None = None
    ) -> None:
        """Add a line, and print it."""
        self._lines.append(Measure(section, what, value, wanted, holds))
        verdict = {True: "  holds", False: "  MISSED", None: ""}[holds]
        print(f"{section:12} {what}: {value}  {wanted}{verdict}", flush=True)

    def save(self) -> None:
        """Write what was measured, beside the other sections that were measured today."""
        found: dict[str, Any] = {"lines": [], "curves": [], "commands": {}}
        if self._path.with_suffix(".json").exists():
            found = json.loads(self._path.with_suffix(".json").read_text())
        kept = [Measure(**line) for line in found["lines"] if line["section"] not in self.done]
        command = " ".join(["python benchmarks/scale.py", *sys.argv[1:]])
        commands = found["commands"] | dict.fromkeys(self.done, command)
        curves = [run for run in found["curves"] if f"rows{run['codes']}" not in self.done]
        curves += self.curves
        lines = sorted([*kept, *self._lines], key=lambda line: list(SECTIONS).index(line.section))
        shown = "; ".join(dict.fromkeys(commands.values()))
        more = {"curves": curves, "commands": commands}
        stem = self._path.name.removesuffix(f"-{date.today().isoformat()}")
        write(stem, "The data plane", shown, lines, self._path.parent, more=more, text=NOTES)
        if curves:
            draw(curves, self._path.with_suffix(".png"))


@dataclass(frozen=True)
class Sleeper:
    """A worker whose model takes so many batches of 20 ms for an item."""

    batches: int

    def run(self, item: int, rows: pa.Table) -> Done:
        """Take the time, and say when it was."""
        begun = time.time()
        for _ in range(self.batches):
            time.sleep(BATCH_S)
        return Done(count=1, found=pa.table([[os.getpid()], [begun], [time.time()]], TIMES))


TIMES = ["actor", "begun", "ended"]


def read_number(item: int) -> pa.Table:
    """The rows of an item."""
    return pa.table({"number": [item]})


def actors(bench: Bench) -> None:
    """Simulated batches on 1, 2 and 4 actors, through the stream that labels go through."""
    seconds = 5 if bench.quick else 12
    wanted = {1: None, 2: 0.95, 4: 0.9}
    runtime.prepare_environment()
    runtime.ensure_ray(ClusterConfig())
    try:
        for batches, what in SHARDS.items():
            shares = {
                num: _busy_share(num, batches, int(num * seconds / (batches * BATCH_S)))
                for num in wanted
            }
            for num, least in wanted.items():
                efficiency = shares[num] / shares[1]
                shown = f"{efficiency:.3f} of one actor's rate; busy {shares[num]:.1%} of the time"
                bar = f">= {least}" if least else ""
                holds = efficiency >= least if bar and least else None
                bench.say("actors", f"{what}: {num} actors", shown, bar, holds)
    finally:
        runtime.stop_ray()


def _busy_share(num_actors: int, batches: int, num_items: int) -> float:
    """Share of the time that actors work, from when all are up until the first has no more."""
    from ray_jobs.streams import run_stream_on_ray

    stream = Stream(
        what="sleep",
        items=range(num_items),
        total=num_items,
        read=read_number,
        make_worker=partial(Sleeper, batches),
    )
    run = run_stream_on_ray(stream, silent, num_actors=num_actors, num_gpus=0)
    times = pa.concat_tables([done.found for done in run if done.found is not None])
    actor, begun, ended = (times[name].to_numpy() for name in TIMES)
    up = max(begun[actor == one].min() for one in np.unique(actor))
    out = min(ended[actor == one].max() for one in np.unique(actor))
    busy = np.clip(np.minimum(ended, out) - np.maximum(begun, up), 0, None).sum()
    return float(busy / (num_actors * (out - up)))


def cores(bench: Bench) -> None:
    """Filmed clips decoded and encoded, by processes that may use one core or two."""
    clips = film(600 if bench.quick else 3000, bench.scratch / "film")
    for what, options in (("Ray, 2 actors", []), ("in one process", ["--in-process"])):
        found = {}
        for num_cores in (1, 2):
            out = bench.scratch / "ingest"
            (found[num_cores],) = _ingests(clips, out, "--cores", str(num_cores), *options)
        first, second = (found[num]["seconds"] for num in (1, 2))
        shown = f"{first:.1f} s, {second:.1f} s: x {first / second:.2f}"
        what = f"{found[1]['pairs']:,} pairs, {what}: 1 core, 2 cores"
        bench.say("cores", what, shown, ">= x 1.8", first / second >= 1.8)


def determinism(bench: Bench) -> None:
    """One folder of clips, ingested on Ray in every way."""
    clips = film(120 if bench.quick else 400, bench.scratch / "few")
    found = _ingests(clips, bench.scratch / "ingest", "--all")
    digests = {run["digest"] for run in found}
    what = (
        f"{len(found)} ingests of {found[0]['pairs']} pairs: 1, 2, 4 actors, 5 part sizes, 2 orders"
    )
    bench.say("determinism", what, f"{len(digests)} digest(s)", "1", len(digests) == 1)


def _ingests(clips: Path, out: Path, *options: str) -> list[dict[str, Any]]:
    """Ingests in a process of their own."""
    command = [sys.executable, str(HERE / "scale_ingest.py"), str(clips), str(out), *options]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def store(bench: Bench) -> None:
    """A run and a race on a store that breaks a quarter of the requests."""
    from tests.runs import results, run_local

    small = ["world.grid=4", "train.first_steps=20", "train.round_steps=10"]
    cfg = load(ROOT / "tests" / "test-3x3.yaml", [*small, "model.base=dynamics/assets/tiny-4x4"])
    run_local(cfg, bench.scratch / "run")
    expected = results(bench.scratch / "run")
    with faulty_store() as proxy:
        begin = time.monotonic()
        run_local(cfg, run_dir("run"))
        seconds, counts = time.monotonic() - begin, dict(proxy.counts)
        found = results(run_dir("run"))
        lost = [name for name in expected if found.get(name) != expected[name]]
        shown = f"{len(lost)} of {len(expected)} files differ from a local run's; {seconds:.0f} s"
        bench.say(
            "store", "a run of 2 rounds", shown, "0", not lost and len(found) == len(expected)
        )
        bench.say("store", "requests meanwhile", ", ".join(f"{n} {f}" for f, n in counts.items()))
        per_file = [len(told) for told in winners()]
        shown = f"{per_file.count(1)} of {len(per_file)} files have one"
        what = f"{WRITERS} writers of the same {FILES} files: winners"
        bench.say("store", what, shown, f"{FILES}", per_file == [1] * FILES)


def rows(bench: Bench, num_codes: int) -> None:
    """Pairs through every stage with models that cost nothing: time and memory by size."""
    full = SIZES[num_codes] // (100 if bench.quick else 1)
    quarter = _rows_once(bench, full // 4, num_codes)
    _say_rows(bench, quarter, quarter)
    bench.save()
    _say_rows(bench, _rows_once(bench, full, num_codes), quarter)


def _say_rows(bench: Bench, run: Mapping[str, Any], quarter: Mapping[str, Any]) -> None:
    section, name, per_row = f"rows{run['codes']}", f"{run['rows']:,} pairs", _us(run)
    shown = ", ".join(f"{stage} {us:.1f}" for stage, us in per_row.items())
    total, wanted = sum(per_row.values()), f"<= {MOST_US:.0f} us"
    bench.say(section, name, f"{total:.1f} us a row: {shown}", wanted, total <= MOST_US)
    cpu = {stage["stage"]: 1e6 * stage["cpu_s"] / stage["rows"] for stage in run["stages"]}
    shown = ", ".join(f"{stage} {us:.1f}" for stage, us in cpu.items())
    bench.say(section, f"{name}: CPU time", f"{sum(cpu.values()):.1f} us a row: {shown}")
    if run is not quarter:
        growth = total / sum(_us(quarter).values())
        shown = f"x {growth:.2f} of a quarter's"
        bench.say(section, f"{name}: time a row", shown, "<= x 1.2", growth <= MOST_GROWTH)
    for what in ("driver", "worker"):
        peak = max(run[what])
        bench.say(section, f"{name}: {what}", f"{peak:,} MB", f"<= {MOST_MB:,} MB", peak <= MOST_MB)
    disk = ", ".join(f"{key} {count / 2**30:.1f} GB" for key, count in run["bytes"].items())
    bench.say(section, f"{name}: on the disk", disk)


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
            if line.startswith("{"):  # Ray writes there, too
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


SECTIONS: dict[str, Callable[[Bench], None]] = {
    "actors": actors,
    "cores": cores,
    "determinism": determinism,
    "store": store,
    "rows16": partial(rows, num_codes=16),
    "rows1024": partial(rows, num_codes=1024),
}


def main() -> None:
    """Parse, measure, write; also what was measured before a section failed."""
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
    bench = Bench(scratch, options.out, quick=options.quick)
    try:
        for name in options.sections:
            bench.done.append(name)
            try:
                SECTIONS[name](bench)
            finally:
                bench.save()
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


if __name__ == "__main__":
    main()
