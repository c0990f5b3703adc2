"""``dynamics evaluate aurora-bench``. Heavy modules load after parsing."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from dynamics.cli.shared import become, local, named
from dynamics.core.errors import UserError
from dynamics.evaluation.aurora_bench.run import Request, run

# The options stand apart, so that the command itself is readable.
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
_Family = Annotated[str, named("dynamics.models:FAMILIES", "Family of a bare checkpoint")]
_Device = Annotated[str, typer.Option(help="cpu or cuda.")]
_BestOf = Annotated[
    int, typer.Option(min=1, max=64, help="Candidates, chosen among by the run's verifier.")
]
_Temperature = Annotated[
    float | None, typer.Option(min=0, help="Default: 0 (greedy), or 1 with --best-of.")
]
_TopK = Annotated[int | None, typer.Option(min=1, help="Draw among the k likeliest codes only.")]
_TopP = Annotated[
    float, typer.Option(min=0, max=1, help="Draw among the likeliest codes of this share only.")
]
_MinP = Annotated[
    float, typer.Option(min=0, max=1, help="Draw codes this share as likely as the likeliest only.")
]
_Guidance = Annotated[
    float, typer.Option(min=0, help="Weight of the action against none; 1: no guidance.")
]
_Preset = Annotated[
    str | None,
    typer.Option(help="Published settings in place of these: liquid, swirl, janus, anole."),
]
_Seed = Annotated[int, typer.Option(min=0, help="Random seed of the sampling.")]
_Clip = Annotated[
    Path | None, typer.Option(help="Local CLIP folder: CLIP-I, CLIP-T ...", callback=local)
]
_Dino = Annotated[Path | None, typer.Option(help="Local DINO folder.", callback=local)]
_Bert = Annotated[
    Path | None, typer.Option(help="Local RoBERTa folder: BERTScore.", callback=local)
]
_Json = Annotated[
    bool, typer.Option("--json", help="Print JSON, progress included, which goes to stderr.")
]
_JudgeUrl = Annotated[
    str | None, typer.Option(help="OpenAI-compatible endpoint, e.g. http://host:8000/v1")
]
_JudgeModel = Annotated[str | None, typer.Option(help="The judge's name there.")]
_JudgeKeyEnv = Annotated[str, typer.Option(help="Environment variable that holds the key.")]
_JudgeBudget = Annotated[
    int | None, typer.Option(min=0, help="Most calls, retries included; default: no limit.")
]
_JudgeTimeout = Annotated[float, typer.Option(min=0.1, help="Limit of one call, in seconds.")]
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
    top_k: _TopK = None,
    top_p: _TopP = 1.0,
    min_p: _MinP = 0.0,
    guidance: _Guidance = 1.0,
    preset: _Preset = None,
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
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        guidance=guidance,
        preset=preset,
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
        become("aurora_bench", [json.dumps(asdict(request))])
    run(request)


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path.resolve())
