"""``dynamics evaluate aurora-bench``. Heavy modules load after parsing."""

import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from dynamics.config import Device
from dynamics.console import ProgressView
from dynamics.errors import UserError
from dynamics.parameters import local

if TYPE_CHECKING:
    from dynamics.evaluation.aurora_bench.answer import Decode
    from dynamics.evaluation.aurora_bench.benchmark import FanOut
    from dynamics.evaluation.aurora_bench.judged import JudgeSettings

RAY_MODULE = "ray_jobs.aurora_bench"


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


# What each option is; they stand apart so that the command itself can be read at a glance.
_Data = Annotated[
    Path, typer.Option(help="Folder in AURORA's layout: test.json, data/ ...", callback=local)
]
_Model = Annotated[
    str, typer.Option(help="A run folder, a checkpoint folder, tiny (what ships), or copy.")
]
_Out = Annotated[
    Path,
    typer.Option(help="Folder of the parts; the same command continues there.", callback=local),
]
_Round = Annotated[
    int | None, typer.Option("--round", help="Round of a run; default: the last promoted.")
]
_Family = Annotated[str, typer.Option(help="Family of a bare checkpoint.")]
_Device = Annotated[str, typer.Option(help="cpu or cuda.")]
_BestOf = Annotated[
    int, typer.Option(min=1, max=64, help="Candidates, chosen among by the run's verifier.")
]
_Temperature = Annotated[
    float | None, typer.Option(min=0, help="Default: 0 (greedy), or 1 with --best-of.")
]
_Seed = Annotated[int, typer.Option(min=0, help="Of the sampling.")]
_Clip = Annotated[
    Path | None, typer.Option(help="Local CLIP folder: CLIP-I, CLIP-T ...", callback=local)
]
_Dino = Annotated[Path | None, typer.Option(help="Local DINO folder.", callback=local)]
_Bert = Annotated[
    Path | None, typer.Option(help="Local RoBERTa folder: BERTScore.", callback=local)
]
_Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
_JudgeUrl = Annotated[
    str | None, typer.Option(help="OpenAI-compatible endpoint, e.g. http://host:8000/v1")
]
_JudgeModel = Annotated[str | None, typer.Option(help="The judge's name there.")]
_JudgeKeyEnv = Annotated[str, typer.Option(help="Environment variable that holds the key.")]
_JudgeBudget = Annotated[
    int | None, typer.Option(min=0, help="Most calls, retries included; default: no limit.")
]
_JudgeTimeout = Annotated[float, typer.Option(min=0.1, help="Of one call, in seconds.")]
_Workers = Annotated[
    int,
    typer.Option(min=0, help="Ray actors; 0: this process, on a cluster an actor per CPU."),
]


def aurora_bench(
    data: _Data,
    model: _Model,
    out: _Out = Path("runs/aurora-bench"),
    round_id: _Round = None,
    family: _Family = "chameleon",
    device: _Device = "cpu",
    best_of: _BestOf = 1,
    temperature: _Temperature = None,
    seed: _Seed = 0,
    clip: _Clip = None,
    dino: _Dino = None,
    bert: _Bert = None,
    as_json: _Json = False,
    judge_url: _JudgeUrl = None,
    judge_model: _JudgeModel = None,
    judge_key_env: _JudgeKeyEnv = "OPENAI_API_KEY",
    judge_budget: _JudgeBudget = None,
    judge_timeout_s: _JudgeTimeout = 120.0,
    workers: _Workers = 0,
) -> None:
    """Score a model on AURORA-BENCH, beside a plain copy, with intervals.

    Instructions longer than the model's prompt are cut after the last word that fits, and counted.
    """
    if device not in ("cpu", "cuda"):
        raise UserError(f"--device {device} is unknown; known: cpu, cuda")
    if (judge_url is None) != (judge_model is None):
        raise UserError("a judge needs both --judge-url and --judge-model")
    request = Request(
        data=str(data.resolve()),
        model=model,
        out=str(out.resolve()),
        round_id=round_id,
        family=family,
        device="cuda" if device == "cuda" else "cpu",
        best_of=best_of,
        temperature=temperature,
        seed=seed,
        clip=_text(clip),
        dino=_text(dino),
        bert=_text(bert),
        as_json=as_json,
        judge_url=judge_url,
        judge_model=judge_model,
        judge_key_env=judge_key_env,
        judge_budget=judge_budget,
        judge_timeout_s=judge_timeout_s,
        workers=workers,
    )
    if workers or os.environ.get("RAY_ADDRESS"):
        # The core may not import the cluster's layer; a process of its own also gets the signals.
        text = json.dumps(asdict(request))
        os.execv(sys.executable, [sys.executable, "-m", RAY_MODULE, text])
    run(request)


def run(request: Request, fan_out: "FanOut | None" = None) -> None:
    """Measure and print; ``fan_out`` makes the models' parts, by default in this process."""
    from dynamics.evaluation.aurora_bench.benchmark import Benchmark, in_process, measure
    from dynamics.evaluation.aurora_bench.contestant import contestant
    from dynamics.evaluation.aurora_bench.dataset import read_benchmark
    from dynamics.evaluation.aurora_bench.encoders import EncoderFolders
    from dynamics.evaluation.aurora_bench.judged import with_judge
    from dynamics.evaluation.aurora_bench.summary import report as summed
    from dynamics.evaluation.aurora_bench.table import notes, show

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
    with ProgressView(console) as progress:
        measured = measure(benchmark, folders, progress, fan_out or in_process)
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

    temperature = request.temperature
    if temperature is None:
        temperature = 1.0 if request.best_of > 1 else 0.0
    if temperature == 0 and request.best_of > 1:
        raise UserError("--best-of above 1 needs a --temperature above 0: greedy frames are equal")
    return Decode(best_of=request.best_of, temperature=temperature, seed=request.seed)


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


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)
