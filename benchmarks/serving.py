"""Overhead, throughput, overload and kills of the service, beside its own worker.

    python benchmarks/serving.py RUN                          all sections but soak, ~6 minutes
    python benchmarks/serving.py RUN --sections soak --soak-minutes 30
    python benchmarks/serving.py RUN --sections overhead throughput --repeats 5
    python benchmarks/serving.py RUN --sections kill --set serve.num_replicas=3

RUN is a finished run, e.g. of `make bootstrap`. A local Ray is started, its workers at this
process' own niceness (Ray's default is 15, which on a busy machine measures the neighbours).
Engine and service are measured in turns, A B A B, and compared pair by pair.
"""

import argparse
import asyncio
import base64
import io
import os
import signal
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from load import Client, Outcome, open_loop, percentile
from PIL import Image
from report import RESULTS, Measure, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import with_overrides
from dynamics.core.domain import load_domain
from dynamics.inference.load import load_pair
from dynamics.inference.sampling import SamplingParams
from dynamics.serving.images import to_base64
from dynamics.serving.model_registry import promoted_rounds
from dynamics.serving.model_worker import InferenceRequest, ModelWorker, for_clients
from dynamics.serving.schemas import PredictReply, PredictRequest
from dynamics.storage.run_folder import RunFolder
from ray_jobs import runtime
from ray_jobs.serving import serve

N = 8
SAMPLING = SamplingParams(num_samples=N, temperature=1.0)
ONE_PROCESS = "serve.ingress_replicas=0"
"""HTTP and models in one replica: the default."""
TWO_PROCESSES = "serve.ingress_replicas=1"
"""HTTP in a process of its own."""
LAYOUTS = {"one process": ONE_PROCESS, "HTTP apart": TWO_PROCESSES}


class Bench:
    """A run, its worker in this process, and the service beside it."""

    def __init__(self, run: Path, port: int, overrides: Sequence[str]) -> None:
        self.folder = RunFolder(run.resolve())
        own = self.folder.config()
        self.base = with_overrides(own, [f"serve.port={port}", *overrides])
        self.round_id, report = list(promoted_rounds(self.folder).items())[-1]
        models = self.folder.models(report, self.base.base_path())
        tokens = self.base.label.max_action_tokens
        pair = load_pair(models, for_clients(self.base.model))
        self.worker = ModelWorker(self.round_id, *pair, tokens)
        scenes = load_domain(self.base).examples(self.folder.data)
        self.requests = [
            PredictRequest(image=to_base64(scene.frame), action=scene.actions[0], n=N, seed=seed)
            for seed in range(8)
            for scene in scenes
        ]
        self.bodies = [r.model_dump_json(exclude_unset=True).encode() for r in self.requests]
        self.lines: list[Measure] = []
        self.cfg: LoopConfig = self.base

    def deploy(self, *overrides: str) -> None:
        """Deploy the service in a layout."""
        self.cfg = with_overrides(self.base, overrides)
        serve.deploy(self.cfg, self.folder, self.round_id)

    @property
    def client(self) -> Client:
        """A new client."""
        return Client("127.0.0.1", self.cfg.serve.port)

    def draw(self, requests: Sequence[PredictRequest]) -> list[np.ndarray]:
        """Frames that the worker draws for requests, without the service."""
        return self.worker.predict([self._draw(r) for r in requests], SAMPLING)

    def _draw(self, request: PredictRequest) -> InferenceRequest:
        frame = np.array(Image.open(io.BytesIO(base64.b64decode(request.image))))
        return InferenceRequest(
            source=lambda: self.worker.encode(frame),
            action=request.action,
            seeds=lambda: [request.seed],
            verifier=self.cfg.serve.verifier,
            finish=lambda prediction: self.worker.decode(prediction.best[0]),
        )

    def say(self, *line: Any) -> None:
        """Keep and print a line of the result."""
        measure = Measure(*line)
        self.lines.append(measure)
        verdict = {True: "holds", False: "MISSED", None: ""}[measure.holds]
        print(
            f"{measure.section:<11} {measure.what:<58} {measure.value:<30} "
            f"{measure.wanted:<18} {verdict}",
            flush=True,
        )


def overhead(bench: Bench, options: argparse.Namespace) -> None:
    """One client, one request at a time: HTTP against the worker in this process."""
    for name, layout in LAYOUTS.items():
        bench.deploy(layout)
        load_for(bench, 20, 3)
        overhead_of(bench, name, options.repeats)


def overhead_of(bench: Bench, name: str, repeats: int) -> None:
    """Overhead of the deployed layout: pairs of one request each, worker first."""
    client = bench.client

    async def ask(body: bytes) -> tuple[int, bytes]:
        return await client.post("/v1/predict", body)

    loop = asyncio.new_event_loop()
    engine_ms, http_ms = [], []
    for number in range(40 * repeats):
        request, body = bench.requests[number % 48], bench.bodies[number % 48]
        start = time.perf_counter()
        (frame,) = bench.draw([request])
        middle = time.perf_counter()
        status, reply = loop.run_until_complete(ask(body))
        end = time.perf_counter()
        told = PredictReply.model_validate_json(reply)
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(told.image))))
        assert status == 200
        assert np.array_equal(shown, frame), "another image than the worker's"
        engine_ms.append(1e3 * (middle - start))
        http_ms.append(1e3 * (end - middle))
    client.close()
    loop.close()
    adds = statistics.median(h - e for h, e in zip(http_ms, engine_ms, strict=True))
    own = statistics.median(engine_ms)
    least = min(http_ms) - min(engine_ms)
    allowed = 10 + 0.02 * own
    bench.say(
        "overhead",
        f"{name}: worker alone, best of {N}, median (min)",
        f"{own:.1f} ({min(engine_ms):.1f}) ms",
    )
    bench.say(
        "overhead",
        f"{name}: over HTTP, median (min)",
        f"{statistics.median(http_ms):.1f} ({min(http_ms):.1f}) ms",
    )
    bench.say(
        "overhead",
        f"{name}: HTTP adds, median of pairs (difference of minima)",
        f"{adds:.1f} ({least:.1f}) ms",
        f"<= {allowed:.1f} ms",
        adds <= allowed,
    )


def engine_rate(bench: Bench, seconds: float) -> float:
    """Requests a second of the worker alone, in batches of 16."""
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += len(bench.draw([bench.requests[(done + i) % 48] for i in range(16)]))
    return done / (time.perf_counter() - start)


def load_for(
    bench: Bench, rate: float, seconds: float, num_clients: int = 16, seed: int = 0
) -> list[Outcome]:
    """Open-loop load from this process."""

    async def main() -> list[Outcome]:
        client = bench.client
        found = await open_loop(
            client, bench.bodies, rate=rate, seconds=seconds, num_clients=num_clients, seed=seed
        )
        client.close()
        return found

    return asyncio.run(main())


def goodput(outcomes: Sequence[Outcome], seconds: float) -> float:
    """Good answers a second among those that came within the load's time, its first 2 s apart."""
    good = [o for o in outcomes if o.status == 200 and 2 <= o.sent_s + o.took_s <= seconds]
    return len(good) / (seconds - 2)


def throughput(bench: Bench, options: argparse.Namespace) -> float:
    """16 clients that offer a tenth more than the worker's rate; returns the capacity."""
    best = 0.0
    for name, layout in (
        ("one process", ONE_PROCESS),
        ("HTTP in a process of its own", TWO_PROCESSES),
    ):
        bench.deploy(layout)
        load_for(bench, 20, 4)
        ratios, rates = [], []
        for repeat in range(options.repeats):
            own = engine_rate(bench, 6)
            served = goodput(load_for(bench, 1.1 * own, 12, seed=repeat), 12)
            again = engine_rate(bench, 6)
            ratios.append(served / statistics.mean([own, again]))
            rates.append((statistics.mean([own, again]), served))
        worker, served = (statistics.median(column) for column in zip(*rates, strict=True))
        share = statistics.median(ratios)
        bench.say(
            "throughput",
            f"{name}: worker alone / served, requests a second",
            f"{worker:.1f} / {served:.1f}",
        )
        bench.say(
            "throughput",
            f"{name}: share of the worker's images, median (range)",
            f"{share:.1%} ({min(ratios):.1%} to {max(ratios):.1%})",
            ">= 90%",
            share >= 0.9,
        )
        best = served
    return best


def rss_mb(pids: Sequence[int]) -> float:
    """Resident memory of processes, MB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmRSS"):
                total += int(line.split()[1])
    return total / 1024


def serve_processes(name: str = "Serve") -> list[int]:
    """Our Ray's processes whose title holds ``name``: replicas and the HTTP proxy."""
    found, mine = [], {os.getpid()}
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text().rpartition(")")[2].split()
                parents[int(entry.name)] = (int(stat[1]), (entry / "cmdline").read_text())
            except OSError:
                continue
    while more := {pid for pid, (parent, _) in parents.items() if parent in mine} - mine:
        mine |= more
    for pid in sorted(mine - {os.getpid()}):
        title = parents[pid][1]
        if title.startswith("ray::") and name in title:
            found.append(pid)
    return found


def overload(bench: Bench, options: argparse.Namespace) -> None:
    """Ten times the capacity, then seven tenths of it."""
    bench.deploy(ONE_PROCESS)
    load_for(bench, 20, 4)
    offered = 1.1 * engine_rate(bench, 5)
    capacity = goodput(load_for(bench, offered, 10), 10)
    processes = serve_processes("ServeReplica") + serve_processes("ProxyActor")
    before = rss_mb(processes)
    seconds = options.overload_seconds
    outcomes = load_for(bench, 10 * capacity, seconds, num_clients=64)
    recovery = load_for(bench, 0.7 * capacity, 15)
    after = rss_mb(serve_processes("ServeReplica") + serve_processes("ProxyActor"))
    statuses = Counter(o.status for o in outcomes)
    refused = [1e3 * o.took_s for o in outcomes if o.status == 503]
    accepted = [1e3 * o.took_s for o in outcomes if o.status == 200]
    sent = len(outcomes) / seconds
    bench.say(
        "overload",
        f"offered over {seconds:g} s; capacity",
        f"{sent:.0f} / s; {capacity:.1f} / s",
        f"{10 * capacity:.0f} / s",
        sent >= 9.5 * capacity,
    )
    bench.say(
        "overload",
        "answers by status",
        str(dict(sorted(statuses.items()))),
        "200, 503",
        set(statuses) <= {200, 503},
    )
    bench.say("overload", "goodput meanwhile", f"{goodput(outcomes, seconds):.1f} / s")
    p99 = percentile(refused, 0.99)
    bench.say(
        "overload",
        "refused: median, 99 %, longest",
        f"{percentile(refused, 0.5):.0f}, {p99:.0f}, {max(refused, default=0):.0f} ms",
        "<= 250 ms",
        p99 <= 250,
    )
    bench.say(
        "overload",
        "accepted: median, 99 %",
        f"{percentile(accepted, 0.5):.0f}, {percentile(accepted, 0.99):.0f} ms",
    )
    healed = next((s for s in range(14) if _good_share(recovery, s) >= 0.95), None)
    bench.say(
        "overload",
        "95 % goodput again after",
        f"{healed} s",
        "<= 10 s",
        healed is not None and healed <= 10,
    )
    bench.say(
        "overload",
        "memory before, after",
        f"{before:.0f}, {after:.0f} MB",
        "<= +10 %",
        after <= 1.1 * before,
    )
    same = processes == serve_processes("ServeReplica") + serve_processes("ProxyActor")
    bench.say("overload", "the same processes afterwards", str(same), "True", same)


def soak(bench: Bench, options: argparse.Namespace) -> None:
    """Seven tenths of the capacity for long: memory, open files and times stay as they are."""
    bench.deploy(ONE_PROCESS)
    load_for(bench, 20, 4)
    capacity = goodput(load_for(bench, 1.1 * engine_rate(bench, 5), 10), 10)
    processes = serve_processes("ServeReplica") + serve_processes("ProxyActor")
    minutes: list[list[Outcome]] = []
    rss, files = [], []
    for minute in range(options.soak_minutes):
        minutes.append(load_for(bench, 0.7 * capacity, 60, seed=minute))
        rss.append(rss_mb(processes))
        files.append(sum(len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in processes))
    part = max(1, options.soak_minutes // 6)
    first, last = (
        percentile([1e3 * o.took_s for minute in some for o in minute], 0.99)
        for some in (minutes[:part], minutes[-part:])
    )
    slope = float(np.polyfit(range(len(rss)), rss, 1)[0])
    failed = sum(o.status != 200 for minute in minutes for o in minute)
    bench.say("soak", f"requests in {options.soak_minutes} minutes", f"{sum(map(len, minutes))}")
    bench.say("soak", "refused or failed", str(failed), "0", failed == 0)
    bench.say("soak", "memory more a minute", f"{slope:.2f} MB", "< 1 MB", slope < 1)
    grown = files[-1] - files[0]
    bench.say("soak", "open files more at the end", str(grown), "<= 0", grown <= 0)
    bench.say(
        "soak",
        "99 % of the first and the last sixth",
        f"{first:.0f}, {last:.0f} ms",
        "<= x 1.1",
        last <= 1.1 * first,
    )


def _good_share(outcomes: Sequence[Outcome], second: int) -> float:
    part = [o for o in outcomes if second <= o.sent_s < second + 1]
    return sum(o.status == 200 for o in part) / max(1, len(part))


def kill(bench: Bench, options: argparse.Namespace) -> None:
    """Six kills under load, two generator replicas; then as many of the HTTP replicas."""
    for name, layout in (
        ("Generator", ["serve.num_replicas=2", TWO_PROCESSES]),
        ("Ingress", ["serve.num_replicas=1", "serve.ingress_replicas=2"]),
    ):
        bench.deploy(*layout)
        load_for(bench, 10, 4)
        rate, seconds = options.kill_rate, 6 * options.kill_every + 4
        heal_s: list[float] = []

        async def main(
            name: str = name,
            rate: float = rate,
            seconds: float = seconds,
            heal_s: list[float] = heal_s,
        ) -> list[Outcome]:
            client = bench.client
            load = asyncio.create_task(open_loop(client, bench.bodies, rate=rate, seconds=seconds))
            for _ in range(6):
                await asyncio.sleep(2)
                os.kill(serve_processes(f":{name}")[0], signal.SIGKILL)
                start = time.perf_counter()
                heal_s.append(await _healed(name, start))
                await asyncio.sleep(max(0.0, options.kill_every - 2 - heal_s[-1]))
            return await load

        outcomes = asyncio.run(main())
        failed = [o for o in outcomes if o.status != 200]
        share = len(failed) / len(outcomes)
        statuses = dict(Counter(o.status for o in failed))
        took = [1e3 * o.took_s for o in outcomes if o.status == 200]
        bench.say(
            "kill",
            f"{name}: requests at {rate:g} / s, failed without retry",
            f"{len(outcomes)}, {len(failed)} ({share:.2%}) {statuses or ''}",
            "<= 1 %",
            share <= 0.01,
        )
        bench.say(
            "kill",
            f"{name}: both replicas up again after, longest of {len(heal_s)}",
            f"{max(heal_s):.1f} s",
            "<= 15 s",
            max(heal_s) <= 15,
        )
        bench.say(
            "kill",
            f"{name}: answered: median, 99 %, longest",
            f"{percentile(took, 0.5):.0f}, {percentile(took, 0.99):.0f}, "
            f"{max(took, default=0):.0f} ms",
        )


async def _healed(name: str, start: float) -> float:
    """Seconds until Serve calls every replica running again."""
    from ray import serve as ray_serve

    await asyncio.sleep(0.5)  # the death has to be noticed first
    while time.perf_counter() - start < 40:
        status = await asyncio.to_thread(ray_serve.status)
        states = status.applications["dynamics"].deployments[name].replica_states
        if dict(states) == {"RUNNING": 2}:
            break
        await asyncio.sleep(0.1)
    return time.perf_counter() - start


SECTIONS: dict[str, Callable[[Bench, argparse.Namespace], Any]] = {
    "overhead": overhead,
    "throughput": throughput,
    "overload": overload,
    "kill": kill,
    "soak": soak,
}


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS)[:-1])
    parser.add_argument("--repeats", type=int, default=3, help="of A B A B")
    parser.add_argument("--overload-seconds", type=float, default=60)
    parser.add_argument("--soak-minutes", type=int, default=30)
    parser.add_argument("--kill-every", type=float, default=12, metavar="S")
    parser.add_argument("--kill-rate", type=float, default=15, help="requests a second")
    parser.add_argument("--port", type=int, default=8017)
    parser.add_argument("--set", action="append", default=[], metavar="key=value")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    os.environ.setdefault("RAY_worker_niceness", "0")
    runtime.prepare_environment()
    # As in the replicas: on two cores HTTP needs the second thread.
    torch.set_num_threads(1)
    bench = Bench(options.run, options.port, options.set)
    try:
        runtime.ensure_ray(bench.base.cluster)
        for name in options.sections:
            SECTIONS[name](bench, options)
    finally:
        runtime.stop_ray()
    # The results go into the repository, which the path of a run is no part of.
    words = ["RUN" if word == str(options.run) else word for word in sys.argv[1:]]
    command = " ".join(["python benchmarks/serving.py", *words])
    write("serving", "The service", command, bench.lines, options.out)


if __name__ == "__main__":
    main()
