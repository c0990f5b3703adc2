"""Parameters, console and run folder that the commands share."""

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer
from rich.console import Console

from dynamics.core.config import CLUSTER_ROOT, CONFIGS
from dynamics.core.errors import UserError
from dynamics.core.places import Place, as_place, on_this_machine
from dynamics.core.registry import names, unknown_name

if TYPE_CHECKING:
    from dynamics.storage.run_folder import RunFolder

TABLETOP = CONFIGS / "tabletop.yaml"
console = Console(soft_wrap=True, highlight=False)


def local(param: typer.CallbackParam, value: Path | None) -> Path | None:
    """Check a path; the ``callback`` of arguments and options that cannot lie in a store.

    Raises:
        UserError: the value is an address such as ``s3://lab/runs``.
    """
    # A Path has one slash left of the two that were typed.
    typed = None if value is None else str(value).replace(":/", "://", 1)
    try:
        on_this_machine(typed)
    except ValueError as error:
        raise UserError(f"{param.opts[0]}: {error}") from error
    return value


def named(registry: str, what: str, *flags: str) -> Any:
    """An option whose value is a name of a registry: its help lists them, others are refused.

    ``registry`` is an import string of a module that loads quickly, ``flags`` as `typer.Option`.
    """
    known = names(registry)

    def check(param: typer.CallbackParam, value: str) -> str:
        if value not in known:
            raise UserError(f"{param.opts[0]}: {unknown_name(value, known)}")
        return value

    return typer.Option(*flags, help=f"{what}: {', '.join(known)}.", callback=check)


if TYPE_CHECKING:
    PlaceName = Place
else:
    PlaceName = type("path", (), {})  # typer takes no union, and shows the name of the type

Run = Annotated[
    PlaceName,
    typer.Argument(
        help="Run folder, e.g. runs/tabletop or s3://bucket/runs/x", metavar="RUN", parser=as_place
    ),
]
Config = Annotated[
    Path, typer.Option("--config", help="Config file whose world is used.", callback=local)
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override of the config, e.g. world.grid=3; may be repeated."),
]


def open_run(run: Place) -> "RunFolder":
    """Open the run folder of an argument `Run`."""
    from dynamics.storage.run_folder import RunFolder

    return RunFolder(run.absolute())


def on_cluster(module: str, arguments: list[str]) -> tuple[list[str], dict[str, str]]:
    """Command and environment of a module of the cluster's layer, which the core may not import."""
    path = os.pathsep.join(filter(None, [str(CLUSTER_ROOT), os.environ.get("PYTHONPATH")]))
    command = [sys.executable, "-P", "-m", f"ray_jobs.{module}", *arguments]
    return command, {**os.environ, "PYTHONPATH": path}


def become(module: str, arguments: list[str]) -> NoReturn:
    """Replace this process by that of `on_cluster`, which so gets the signals."""
    command, environment = on_cluster(module, arguments)
    os.execve(command[0], command, environment)
