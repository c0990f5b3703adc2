"""The ``dynamics`` command. Heavy modules load after parsing, so that ``--help`` is quick.

Exit status: 0 done, 1 a check found something wrong, 2 bad input (one line on stderr, no
traceback), 130 interrupted.
"""

import json
import os
import platform
import shutil
import sys
import warnings
import webbrowser
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console
from typer.core import TyperGroup

from dynamics.cli.aurora_bench import aurora_bench
from dynamics.cli.parameters import local
from dynamics.core.config import REPOSITORY_ROOT, KeyframeConfig, PoolConfig
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView
from dynamics.core.errors import UserError

if TYPE_CHECKING:
    from dynamics.storage.run_folder import RunFolder

TABLETOP = REPOSITORY_ROOT / "configs" / "tabletop.yaml"
PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="Bootstrap forward dynamics from inverse dynamics in one unified VLM.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
ledger = typer.Typer(help="The append-only store of pseudo-labels.", no_args_is_help=True)
app.add_typer(ledger, name="ledger")


class _RunFirst(TyperGroup):
    """A first word that names no command is the RUN that the command ``run`` is about."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put the command's name in front where it is left out."""
        if args and args[0] not in (*self.commands, "--help"):
            args = ["run", *args]
        return super().parse_args(ctx, args)


evaluate = typer.Typer(
    cls=_RunFirst,
    help="Show what was measured: dynamics evaluate RUN [--controls], dynamics evaluate "
    "aurora-bench --data DIR --model RUN. A RUN folder that is called like a command: ./NAME.",
    no_args_is_help=True,
)
app.add_typer(evaluate, name="evaluate")
evaluate.command("aurora-bench")(aurora_bench)
console = Console(soft_wrap=True, highlight=False)

Run = Annotated[
    Path, typer.Argument(help="Run folder, e.g. runs/tabletop", metavar="RUN", callback=local)
]
Config = Annotated[
    Path, typer.Option("--config", help="Config file whose world is used.", callback=local)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override of the config, e.g. world.grid=3; may be repeated."),
]


def main() -> None:
    """Entry point of the ``dynamics`` console command."""
    # One bar is enough: transformers draws its own for every checkpoint that it loads.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:transformers.modeling_utils")
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")
    try:
        app()
    except UserError as error:
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {error}", markup=False)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command(context_settings=PASS_THROUGH, add_help_option=False)
def bootstrap(context: typer.Context) -> None:
    """Run or resume the loop; the arguments are those of ray_jobs/bootstrap.py (try --help)."""
    _replace_process("ray_jobs.bootstrap", context.args)


@app.command(context_settings=PASS_THROUGH)
def serve(context: typer.Context, run: Run) -> None:
    """Keep the generator of a finished run's last promoted round up behind HTTP until Ctrl-C.

    Overrides may follow: dynamics serve RUN serve.port=8001
    """
    folder = _open(run)
    cfg = folder.config()
    reports = folder.reports(cfg.rounds)
    # A blocked round is the last one; what was promoted before it is served.
    if not reports or (reports[-1].promoted and reports[-1].round_id < cfg.rounds):
        raise UserError(f"{run} has not finished round {cfg.rounds}; bootstrap continues it")
    tree = cfg.model_dump(mode="json", exclude={"run_dir"})
    # YAML reads JSON, so every section of the run's own config fits into one override.
    own = [f"{key}={json.dumps(value)}" for key, value in tree.items()]
    arguments = ["--config", str(TABLETOP), "--run-dir", str(folder.root), "--serve"]
    _replace_process("ray_jobs.bootstrap", [*arguments, *own, *context.args])


def _replace_process(module: str, arguments: list[str]) -> NoReturn:
    # The core may not import the cluster's layer; a process of its own also gets the signals.
    os.execv(sys.executable, [sys.executable, "-m", module, *arguments])


@app.command()
def ingest(
    folder: Annotated[
        Path, typer.Argument(help="Folder of videos: mp4, avi, webm, mkv.", callback=local)
    ],
    out: Annotated[Path, typer.Option(help="Parquet file to write.", callback=local)] = Path(
        "pairs.parquet"
    ),
    base: Annotated[
        Path | None,
        typer.Option(help="Checkpoint whose image tokenizer encodes the frames.", callback=local),
    ] = None,
    top_k: Annotated[int, typer.Option(help="Key frames a clip.")] = 6,
    spacing: Annotated[int, typer.Option(help="Least distance of key frames, in frames.")] = 20,
    source: Annotated[
        str, typer.Option(help="Layout: folder, ucf101, kinetics700, moments, webdataset.")
    ] = "folder",
    max_pairs: Annotated[int | None, typer.Option(help="Stop after so many pairs.")] = None,
    workers: Annotated[int, typer.Option(help="Decoding processes.")] = 2,
) -> None:
    """Turn a folder of videos into frame pairs, and say what was rejected and why."""
    from dynamics.data.video.ingest import ingest_folder
    from dynamics.data.video.sources import SOURCES
    from dynamics.models import load_image_tokenizer

    if source not in SOURCES:
        raise UserError(f"--source {source!r} is unknown; known: {', '.join(SOURCES)}")
    model = load(TABLETOP).model
    images = load_image_tokenizer(model.family, base or REPOSITORY_ROOT / model.base)
    with ProgressView(console) as progress:
        report = ingest_folder(
            folder,
            PoolConfig(path=folder),
            images,
            out,
            keyframes=KeyframeConfig(top_k=top_k, spacing_frames=spacing),
            source=source,
            max_pairs=max_pairs,
            num_workers=workers,
            progress=lambda done, total, _: progress(done, total, "clips"),
        )
    for reason, count in sorted(report.rejects.items()):
        console.print(f"rejected {count:>7,}  {reason}")
    console.print(f"{report.num_pairs:,} pairs from {report.num_clips:,} clips in {out}")


@app.command()
def film(
    out: Annotated[
        Path, typer.Argument(help="Folder for clips/ and clips.parquet.", callback=local)
    ],
    pairs: Annotated[int, typer.Option(help="Frame pairs to film.")] = 100,
    seed: Annotated[int, typer.Option(help="Equal seeds film equal clips.")] = 0,
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Film episodes of the procedural tabletop into mp4 files, as a run films its pool."""
    from dynamics.tabletop.film import film_split

    world = load(config, overrides or []).world
    with ProgressView(console) as progress:
        film_split("pool", world, pairs, seed, out, progress)
    console.print(f"{len(list((out / 'clips').glob('*.mp4'))):,} clips in {out / 'clips'}")


@app.command("pretrain-tiny")
def pretrain_tiny_command(
    out: Annotated[Path, typer.Argument(help="Folder of the new checkpoint.", callback=local)],
    steps: Annotated[int | None, typer.Option(help="Steps of the base; default: recipe's.")] = None,
    tokenizer_steps: Annotated[
        int | None, typer.Option(help="Steps of the image tokenizer; default: recipe's.")
    ] = None,
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Make the tiny base checkpoint: pictures, captions, questions; no action, no transition."""
    from dynamics.tabletop.pretraining.pretrain_tiny import TinyRecipe, pretrain_tiny

    recipe = TinyRecipe()
    recipe = replace(
        recipe,
        steps=recipe.steps if steps is None else steps,
        tokenizer_steps=recipe.tokenizer_steps if tokenizer_steps is None else tokenizer_steps,
    )
    world = load(config, overrides or []).world
    with ProgressView(console) as progress:
        pretrain_tiny(world, recipe, out, progress=progress)
    console.print(f"checkpoint {out}; use it with model.base={out}")


@app.command("convert-vqgan")
def convert_vqgan_command(
    ckpt: Annotated[
        Path, typer.Argument(help="The published vqgan.ckpt.", metavar="CKPT", callback=local)
    ],
    out: Annotated[
        Path,
        typer.Argument(
            help="Checkpoint folder that shall draw with it.", metavar="OUT", callback=local
        ),
    ],
) -> None:
    """Convert Chameleon's vqgan.ckpt (also Liquid's) to safetensors; runs no code from the file."""
    from dynamics.models.convert_vqgan import convert_vqgan

    num_weights = convert_vqgan(ckpt, out)
    console.print(f"{num_weights} weights; {out} now has vqgan.json and vqgan.safetensors")


@evaluate.command("run")
def evaluate_run(
    run: Run,
    controls: Annotated[
        bool,
        typer.Option(help="Also train and measure the controls: seed only, and true labels."),
    ] = False,
) -> None:
    """Show what the rounds measured; with --controls, how much of the gap the last one closed."""
    from dynamics.report.table import control_table, round_table

    folder = _open(run)
    cfg = folder.config()
    reports = folder.reports(cfg.rounds)
    if not reports:
        raise UserError(f"{run} has no finished round yet; run dynamics bootstrap first")
    if controls:
        from dynamics.evaluation.controls import run_controls
        from dynamics.pipeline.prepare import prepared

        with ProgressView(console) as progress:
            result = run_controls(
                cfg, folder.root, prepared(folder), reports[-1].round_id, progress=progress
            )
        console.print(control_table(result))
        return
    seconds = {report.round_id: sum(folder.timings(report.round_id).values()) for report in reports}
    console.print(round_table(reports, seconds))


@app.command()
def claims(
    quick: Annotated[
        bool, typer.Option("--quick", help="One seed, two label sizes: a look, no evidence.")
    ] = False,
    seeds: Annotated[
        str | None, typer.Option(help="Seeds to film and train with, e.g. 101,102,103.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the study.", callback=local)] = None,
    workers: Annotated[
        int | None, typer.Option(help="Units at a time, one thread each; default: cores.")
    ] = None,
    publish_to: Annotated[
        Path | None,
        typer.Option(
            "--publish",
            help="Also write RESULTS.md and its pictures here, e.g. docs.",
            callback=local,
        ),
    ] = None,
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Measure the paper's three claims against fair controls, with intervals over seeds.

    The full study takes hours on two cores and continues where it was stopped.
    """
    from dynamics.studies.experiments import QUICK, StudyPlan
    from dynamics.studies.runner import RESULTS_FILE, publish, run_study

    plan = QUICK if quick else StudyPlan()
    if seeds is not None:
        plan = replace(plan, seeds=_seeds(seeds))
    cfg = load(config, overrides or [])
    if quick:
        cfg = cfg.model_copy(update={"rounds": 1})
    folder = (out or Path("runs") / ("claims-quick" if quick else "claims")).resolve()
    with ProgressView(console) as progress:
        results = run_study(
            cfg, plan, folder, num_workers=workers or os.cpu_count() or 1, progress=progress
        )
    for check in results.checks:
        verdict = "holds" if check.holds else "does not hold"
        console.print(f"{verdict:>13}  {check.claim}: {check.measured}, asked {check.asked}")
    if publish_to is not None:
        console.print(f"published: {publish(folder, publish_to)}")
    console.print(f"results: {folder / RESULTS_FILE}, curves beside it")


def _seeds(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError as error:
        raise UserError(f"--seeds {text!r} must be whole numbers separated by commas") from error


@app.command()
def report(
    run: Run,
    show: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open it in a browser; default: in a terminal only."),
    ] = None,
) -> None:
    """Write RUN/report.html again from the stored results, and open it."""
    folder = _open(run)  # before the slow import: a wrong path is told at once
    from dynamics.report.page import write_page

    page = write_page(folder)
    console.print(f"report: {page}")
    if (sys.stdout.isatty() if show is None else show) and not webbrowser.open(page.as_uri()):
        console.print("no browser was found; open the file by hand")


@app.command()
def export(
    run: Run,
    form: Annotated[
        str, typer.Option("--as", help="aurora, hf, lerobot, webdataset (labels), or adapters.")
    ],
    out: Annotated[
        Path, typer.Option(help="New folder; nothing is ever overwritten.", callback=local)
    ],
    round_id: Annotated[
        int | None, typer.Option("--round", help="Default: the last promoted one.")
    ] = None,
) -> None:
    """Write a round's accepted labels, or its adapters, in a format that others read."""
    from dynamics.exports import export_run

    with ProgressView(console) as progress:
        done = export_run(_open(run), form, out, round_id, progress)
    console.print(f"{out}: {done}")


@ledger.command("verify")
def ledger_verify(run: Run) -> None:
    """Check RUN's committed shards: digests, a label for every pair; status 1 for a problem."""
    from dynamics.storage.ledger import Ledger

    folder = _open(run)
    folder.config()
    store = Ledger(folder.ledger)
    problems = store.verify(folder.data / "pool.parquet")
    for problem in problems:
        console.print(problem, markup=False)
    if problems:
        raise typer.Exit(1)
    console.print(f"{len(store.rounds())} rounds, every shard is sound")


@app.command()
def plan(
    config: Config = TABLETOP,
    overrides: Set = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="What a GPU (or core) reaches in large matrix products, 10^12 operations a "
            "second. Default: 790 (bfloat16, measured on an H200), on CPUs 0.17 (float32, a core)."
        ),
    ] = None,
    utilisation: Annotated[
        float, typer.Option(help="Share of it that the run reaches.", min=0.01, max=1.0)
    ] = 0.33,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a run needs before it starts: parameters, memory, hours, disk. Nothing is loaded."""
    from dynamics.plan import Machine, make_plan
    from dynamics.plan.table import plan_table

    cfg = load(config, overrides or [])
    ceiling = tflops or (790.0 if cfg.model.device == "cuda" else 0.17)
    made = make_plan(cfg, Machine(tflops=ceiling, utilisation=utilisation))
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=2))
    else:
        console.print(plan_table(made))


@app.command()
def doctor(
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Check versions, memory, disk and the checkpoint; status 1 when something is missing."""
    cfg = load(config, overrides or [])
    problems = []
    console.print(f"python {platform.python_version()}, {os.cpu_count()} cores")
    for package in ("torch", "transformers", "peft", "pyarrow", "av", "ray", "mlflow", "deepspeed"):
        try:
            console.print(f"{package} {version(package)}")
        except PackageNotFoundError:
            console.print(f"{package} is not installed")
            if package != "deepspeed":  # an extra
                problems.append(f"{package} is missing: make setup")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    disk_gb = shutil.disk_usage(Path.cwd()).free / 1e9
    console.print(f"{memory_gb:.1f} GB memory, {disk_gb:.1f} GB free disk")
    if memory_gb < 6:
        problems.append("less than 6 GB of memory: lower label.num_actors and evaluate.num_actors")
    if disk_gb < 2:
        problems.append(f"less than 2 GB free in {Path.cwd()}: name another run_dir")
    base = cfg.base_path()
    if (base / "config.json").is_file() and list(base.glob("*.safetensors")):
        console.print(f"checkpoint {base}")
    else:
        problems.append(f"no checkpoint in {base}: set model.base, or dynamics pretrain-tiny")
    for problem in problems:
        console.print(f"problem: {problem}", markup=False)
    if problems:
        raise typer.Exit(1)
    console.print("all is well")


def _open(run: Path) -> "RunFolder":
    from dynamics.storage.run_folder import RunFolder

    return RunFolder(run.resolve())


if __name__ == "__main__":
    main()
