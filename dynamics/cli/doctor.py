"""``dynamics doctor``: a check that this machine can run the loop."""

import os
import platform
import shlex
import shutil
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import typer

from dynamics.cli.shared import TABLETOP, Config, Set, console
from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load
from dynamics.core.errors import UserError


def doctor(
    config: Config = TABLETOP,
    overrides: Set = None,
) -> None:
    """Check versions, memory, disk, GPUs, port and checkpoint; status 1 when something is amiss."""
    from dynamics.data.video.sandbox import why_unsealed
    from dynamics.plan.pieces import pieces

    cfg = load(config, overrides or [])
    problems = []
    console.print(f"python {platform.python_version()}, {os.cpu_count()} cores")
    for package in ("torch", "transformers", "peft", "pyarrow", "av", "ray", "mlflow", "deepspeed"):
        try:
            console.print(f"{package} {version(package)}")
        except PackageNotFoundError:
            console.print(f"{package} is not installed")
            problems.append(f"{package} is missing: make setup")
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    runs = cfg.run_dir.absolute() if isinstance(cfg.run_dir, Path) else Path.cwd()
    disk = next(folder for folder in (runs, *runs.parents) if folder.is_dir())
    disk_gb = shutil.disk_usage(disk).free / 1e9
    console.print(f"{memory_gb:.1f} GB memory, {disk_gb:.1f} GB free disk")
    if memory_gb < 6:
        problems.append("less than 6 GB of memory: lower label.num_actors and evaluate.num_actors")
    if disk_gb < 2:
        problems.append(f"less than 2 GB free in {disk}: name another run_dir")
    for piece in pieces(cfg):
        if piece.is_there:
            console.print(piece.line(), markup=False)
        else:
            problems.append(piece.line())
    problems += [*_unmet(cfg), *_unlisted(cfg), *_unfit(cfg)]
    unsealed = why_unsealed(cfg.pool.decode_memory_mb)
    held = "limits and a filter of system calls" if unsealed is None else f"limits: {unsealed}"
    console.print(f"videos and pictures of pools are decoded under {held}", markup=False)
    for problem in problems:
        console.print(f"problem: {problem}", markup=False)
    named = [] if config == TABLETOP else ["--config", str(config)]
    same = [*named, *(f"--set={one}" for one in overrides or [])]
    if problems:
        again = shlex.join(["dynamics", "doctor", *same])
        console.print(f"next: mend these, then {again}", markup=False)
        raise typer.Exit(1)
    planned = shlex.join(["dynamics", "plan", *same])
    started = shlex.join(["dynamics", "bootstrap", *named, *(overrides or [])])
    console.print(f"all is well; next: {planned} (how long), {started}", markup=False)


def _unfit(cfg: LoopConfig) -> Iterator[str]:
    """Say whether this machine's GPUs hold the run; a line about a base that cannot be counted."""
    from dynamics.plan.checks import checks
    from dynamics.plan.cluster import this_machine
    from dynamics.plan.sizes import base_sizes

    if cfg.model.device != "cuda":
        return
    try:
        short = [one for one in checks(cfg, base_sizes(cfg), this_machine()) if not one.fits]
    except UserError as error:
        yield str(error)
        return
    helps = dict.fromkeys(help for one in short for help in one.overrides or (one.advice,))
    lacking = ", ".join(f"{one.what} ({one.where})" for one in short)
    with_help = f"does not fit here: {lacking}; with {', '.join(helps)}"
    fits = with_help if short else "fits here"
    console.print(f"{fits}; on other machines: dynamics plan --cluster", markup=False)


def _unmet(cfg: LoopConfig) -> Iterator[str]:
    """Lines about a GPU, a port and a base that a config asks for and this machine has not."""
    from torch import cuda

    from dynamics.serving.http.server import check_address

    cards = [cuda.get_device_name(index) for index in range(cuda.device_count())]
    console.print(f"GPUs: {', '.join(cards) or 'none'}", markup=False)
    if cfg.model.device == "cuda" and not cards:
        yield "model.device=cuda, and torch sees no GPU here"
    if cfg.serve.enabled:
        try:
            check_address(cfg.serve)
        except UserError as error:
            yield str(error)
    base = cfg.base_path()
    if base.is_dir() and not ((base / "config.json").is_file() and [*base.glob("*.safetensors")]):
        yield f"no checkpoint in {base}: set model.base, or remove it and run dynamics pretrain"


def _unlisted(cfg: LoopConfig) -> Iterator[str]:
    """Lines about folders that are there and hold nothing that a run can use."""
    from dynamics.data.labelled import listed
    from dynamics.data.video.sources import list_clips

    for part in cfg.pool.parts:
        if part.path.exists():
            try:
                next(list_clips(part), None)
            except UserError as error:
                yield str(error)
    labelled = cfg.labelled
    wanted = ((labelled.path, labelled.num_pairs), (labelled.heldout_path, labelled.num_heldout))
    for path, most in wanted:
        if labelled.dataset is not None and path is not None and path.exists():
            try:
                found = listed(labelled, path).summary()
            except UserError as error:
                yield str(error)
            else:
                console.print(f"{found}; wanted: {most:,}", markup=False)
