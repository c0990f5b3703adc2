"""``dynamics evaluate aurora-bench``. Heavy modules load after parsing."""

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import typer
from rich.console import Console

from dynamics.core.config import Device
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError
from dynamics.core.registry import unknown_name

if TYPE_CHECKING:
    from dynamics.evaluation.aurora_bench.answer import Decode
    from dynamics.evaluation.aurora_bench.judged import JudgeSettings
    from dynamics.storage.streams import RunStream


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Everything that a person may ask of the benchmark; JSON-able."""

    data: str
    model: str
    out: str
    round_id: int | None
    family: str
    device: Device
    best_of: int
    temperature: float | None
    top_k: int | None
    top_p: float
    min_p: float
    guidance: float
    preset: str | None
    seed: int
    clip: str | None
    dino: str | None
    bert: str | None
    as_json: bool
    judge_url: str | None
    judge_model: str | None
    judge_key_env: str
    judge_budget: int | None
    judge_timeout_s: float
    workers: int


def run(request: Request, run_parts: "RunStream | None" = None) -> None:
    """Measure and print; ``run_parts`` makes the models' parts, by default in this process."""
    from dynamics.evaluation.aurora_bench.benchmark import Benchmark, measure
    from dynamics.evaluation.aurora_bench.contestant import contestant
    from dynamics.evaluation.aurora_bench.dataset import read_benchmark
    from dynamics.evaluation.aurora_bench.encoders import EncoderFolders
    from dynamics.evaluation.aurora_bench.judged import with_judge
    from dynamics.evaluation.aurora_bench.summary import report as summed
    from dynamics.evaluation.aurora_bench.table import notes, show
    from dynamics.storage.streams import run_stream

    # Standard output is for the result alone when a program reads it.
    console = Console(stderr=request.as_json, soft_wrap=True, highlight=False)
    judge = _judge_settings(request)
    folders = EncoderFolders(
        clip=_path(request.clip), dino=_path(request.dino), bert=_path(request.bert)
    )
    benchmark = Benchmark(
        contestant=contestant(
            request.model,
            round_id=request.round_id,
            family=request.family,
            device=request.device,
        ),
        decode=_decode(request),
        data=read_benchmark(Path(request.data)),
        out=Path(request.out),
    )
    with ProgressView(console, as_json=request.as_json) as progress:
        measured = measure(benchmark, folders, progress, run_parts or run_stream)
        report = summed(benchmark, measured, folders.missing())
        if judge is not None:
            report = with_judge(report, benchmark, measured.answers, judge, progress, progress.line)
    if request.as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
        return
    show(report, console)
    for line in notes(report):
        console.print(line, markup=False)
    made = f"{measured.num_made} parts made" if measured.num_made else "every part was there"
    console.print(f"{made}: {request.out}", markup=False)


def _decode(request: Request) -> "Decode":
    from dynamics.evaluation.aurora_bench.answer import Decode
    from dynamics.inference.sampling import PRESETS, SamplingParams

    if request.preset is not None:
        if request.preset not in PRESETS:
            raise UserError(f"--preset {unknown_name(request.preset, tuple(PRESETS))}")
        sampling = replace(PRESETS[request.preset], num_samples=request.best_of)
        return Decode(sampling=sampling, seed=request.seed)
    temperature = request.temperature
    if temperature is None:
        temperature = 1.0 if request.best_of > 1 else 0.0
    sampling = SamplingParams(
        num_samples=request.best_of,
        temperature=temperature,
        top_k=request.top_k,
        top_p=request.top_p,
        min_p=request.min_p,
        guidance=request.guidance,
    )
    return Decode(sampling=sampling, seed=request.seed)


def _judge_settings(request: Request) -> "JudgeSettings | None":
    """Checked before any model is loaded."""
    from dynamics.evaluation.aurora_bench.judged import JudgeSettings
    from dynamics.evaluation.judge.client import Endpoint

    if request.judge_url is None or request.judge_model is None:
        return None
    endpoint = Endpoint(
        url=request.judge_url, model=request.judge_model, timeout_s=request.judge_timeout_s
    )
    key = os.environ.get(request.judge_key_env)
    return JudgeSettings(endpoint=endpoint, key=key, budget=request.judge_budget)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
