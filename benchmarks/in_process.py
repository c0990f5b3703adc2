"""The service in one process, without Ray, beside its own engine: images a second, and one request.

    python benchmarks/in_process.py RUN

RUN is a finished run. The service has a process of its own; engine and service are measured in
turns. 16 clients ask again as soon as they are answered.
"""

import argparse
import asyncio
import base64
import io
import json
import os
import statistics
import subprocess
import sys
import time
from datetime import date
from pathlib import Path

import numpy as np
import torch
from load import Client
from PIL import Image
from report import RESULTS, Measure, write

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynamics.core.config_file import with_overrides
from dynamics.core.domain import load_domain
from dynamics.inference.load import load_pair
from dynamics.inference.sampling import SamplingParams
from dynamics.serving.images import to_base64
from dynamics.serving.in_process import serve_in_process
from dynamics.serving.model_registry import promoted_rounds
from dynamics.serving.model_worker import InferenceRequest, ModelWorker, for_clients
from dynamics.serving.schemas import PredictReply, PredictRequest
from dynamics.storage.run_folder import RunFolder

N, CLIENTS = 8, 16
SAMPLING = SamplingParams(num_samples=N, temperature=1.0)


class Bench:
    """A run's engine in this process, and its service in another one."""

    def __init__(self, run: Path, port: int) -> None:
        folder = RunFolder(run.resolve())
        cfg = with_overrides(folder.config(), [f"serve.port={port}"])
        number, report = list(promoted_rounds(folder).items())[-1]
        pair = load_pair(folder.models(report, cfg.base_path()), for_clients(cfg.model))
        self.worker = ModelWorker(number, *pair, cfg.label.max_action_tokens)
        self._verifier = cfg.serve.verifier
        self.requests = [
            PredictRequest(image=to_base64(scene.frame), action=scene.actions[0], n=N, seed=seed)
            for seed in range(8)
            for scene in load_domain(cfg).examples(folder.data)
        ]
        self.bodies = [r.model_dump_json(exclude_unset=True).encode() for r in self.requests]
        self._client = Client("127.0.0.1", port)

    def draw(self, requests: list[PredictRequest]) -> list[np.ndarray]:
        """The engine's frames."""
        return self.worker.predict([self._request(r) for r in requests], SAMPLING)

    def _request(self, request: PredictRequest) -> InferenceRequest:
        frame = np.array(Image.open(io.BytesIO(base64.b64decode(request.image))))
        return InferenceRequest(
            source=lambda: self.worker.encode(frame),
            action=request.action,
            seeds=lambda: [request.seed],
            verifier=self._verifier,
            finish=lambda prediction: self.worker.decode(prediction.best[0]),
        )

    def engine(self, seconds: float) -> float:
        """Images a second of the engine in batches of as many requests as there are clients."""
        start, done = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            first = done % (len(self.requests) - CLIENTS)
            done += len(self.draw(self.requests[first : first + CLIENTS]))
        return done / (time.perf_counter() - start)

    async def service(self, seconds: float, warm: float = 1.0) -> float:
        """Images a second of all clients, after ``warm`` seconds."""
        self._client.close()  # the service closes connections that were idle meanwhile
        start, done = time.perf_counter(), 0

        async def ask_on(number: int) -> None:
            nonlocal done
            while (now := time.perf_counter() - start) < warm + seconds:
                number = (number + CLIENTS) % len(self.bodies)
                status, _ = await self._client.post("/v1/predict", self.bodies[number])
                assert status == 200, status
                done += now >= warm

        await asyncio.gather(*[ask_on(number) for number in range(CLIENTS)])
        return done / (time.perf_counter() - start - warm)

    async def one(self, number: int) -> tuple[float, float]:
        """Seconds of a request to the engine, and of the same one to the service."""
        start = time.perf_counter()
        (frame,) = self.draw([self.requests[number]])
        middle = time.perf_counter()
        status, reply = await self._client.post("/v1/predict", self.bodies[number])
        end = time.perf_counter()
        told = PredictReply.model_validate_json(reply)
        shown = np.array(Image.open(io.BytesIO(base64.b64decode(told.image))))
        assert status == 200
        assert np.array_equal(shown, frame), "another image than the engine's"
        return middle - start, end - middle

    def close(self) -> None:
        """Close idle connections."""
        self._client.close()

    async def up(self) -> None:
        """Wait for the service."""
        while (await self._client.post("/v1/predict", self.bodies[0]))[0] != 200:
            await asyncio.sleep(0.2)


def cpu_s(pid: int) -> float:
    """CPU seconds of a process."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measure(bench: Bench, pid: int, options: argparse.Namespace) -> list[Measure]:
    """The lines of the result."""
    await bench.up()
    shares, costs = [], []
    for _ in range(options.repeats):
        before = time.process_time()
        alone = bench.engine(options.seconds)
        own = (time.process_time() - before) / (alone * options.seconds)
        before = cpu_s(pid)
        served = await bench.service(options.seconds)
        costs.append(own * served * (options.seconds + 1) / (cpu_s(pid) - before))
        shares.append(served / statistics.mean([alone, bench.engine(options.seconds)]))
    bench.close()
    pairs = [await bench.one(number % len(bench.bodies)) for number in range(40 * options.repeats)]
    engine = statistics.median(alone for alone, _ in pairs)
    adds = statistics.median(over - alone for alone, over in pairs)
    share, allowed = statistics.median(shares), 0.010 + 0.02 * engine
    return [
        Measure("throughput", f"share of the engine's images, {CLIENTS} clients, median (range)",
                f"{share:.1%} ({min(shares):.1%} to {max(shares):.1%})", ">= 90%", share >= 0.9),
        Measure("throughput", "engine's CPU over the service's, an image, median",
                f"{statistics.median(costs):.1%}"),
        Measure("overhead", "HTTP adds to one request, median of pairs, of the engine's time",
                f"{1e3 * adds:.1f} of {1e3 * engine:.1f} ms", f"<= {1e3 * allowed:.1f} ms",
                adds <= allowed),
    ]  # fmt: skip


def main() -> None:
    """Parse, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("run", type=Path, metavar="RUN")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=6)
    parser.add_argument("--port", type=int, default=8018)
    parser.add_argument("--serve", action="store_true", help="be the service")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.serve:
        folder = RunFolder(options.run.resolve())
        cfg = with_overrides(folder.config(), [f"serve.port={options.port}"])
        serve_in_process(cfg, folder)
        return
    bench = Bench(options.run, options.port)
    own = subprocess.Popen(
        [sys.executable, __file__, str(options.run), "--serve", "--port", str(options.port)]
    )
    try:
        lines = asyncio.run(measure(bench, own.pid, options))
    finally:
        own.terminate()
        own.wait()
    for line in lines:
        print(json.dumps([date.today().isoformat(), line.what, line.value, line.wanted]))
    write(
        "in_process",
        "The service in one process",
        "python benchmarks/in_process.py RUN",
        lines,
        RESULTS,
    )


if __name__ == "__main__":
    main()
