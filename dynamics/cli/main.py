"""The ``dynamics`` command. Heavy modules load after parsing, so that ``--help`` is quick.

Exit status: 0 done, 1 a check found something wrong, 2 bad input (one line on stderr, no
traceback), 130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer
from rich.console import Console

from dynamics.cli.annotate import annotate
from dynamics.cli.bootstrap import bootstrap
from dynamics.cli.check import check
from dynamics.cli.convert_vqgan import convert_vqgan_command
from dynamics.cli.doctor import doctor
from dynamics.cli.evaluate import evaluate
from dynamics.cli.export import export
from dynamics.cli.film import film
from dynamics.cli.ingest import ingest
from dynamics.cli.new import new
from dynamics.cli.plan import plan
from dynamics.cli.pretrain import pretrain
from dynamics.cli.report import report
from dynamics.cli.serve import serve
from dynamics.cli.study import study
from dynamics.cli.verify import verify
from dynamics.core import interrupts
from dynamics.core.errors import as_user_error
from dynamics.core.loopback import spare_loopback
from dynamics.core.quiet import quiet_transformers

PASS_THROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}

app = typer.Typer(
    help="Bootstrap forward dynamics from inverse dynamics in one unified VLM.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
)


def _print_version(asked: bool) -> None:
    if asked:
        from importlib.metadata import version

        typer.echo(f"dynamics {version('dynamics-bootstrap')}")
        raise typer.Exit


_Version = Annotated[
    bool,
    typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True),
]


@app.callback()
def _options(version: _Version = False) -> None:
    pass


data, runs, rest = "Your data", "Runs", "Bases, worlds and machines"
command: Callable[..., None]
for command in (ingest, annotate, new, pretrain, check):
    app.command(rich_help_panel=data)(command)
app.command(context_settings=PASS_THROUGH, add_help_option=False, rich_help_panel=runs)(bootstrap)
app.add_typer(evaluate, name="evaluate", rich_help_panel=runs)
for command in (report, verify, export, study):
    app.command(rich_help_panel=runs)(command)
app.command(context_settings=PASS_THROUGH, rich_help_panel=runs)(serve)
for command in (doctor, plan, film):
    app.command(rich_help_panel=rest)(command)
app.command("convert-vqgan", rich_help_panel=rest)(convert_vqgan_command)


def main() -> None:
    """Run the command of the arguments, and turn errors into an exit status."""
    interrupts.loaded()
    quiet_transformers()
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning:transformers.modeling_utils")
    spare_loopback()
    try:
        app()
    except (KeyboardInterrupt, Exception) as error:
        if (line := as_user_error(error)) is None:
            if interrupts.is_interrupt(error):
                sys.exit(130)
            raise
        Console(stderr=True, soft_wrap=True, highlight=False).print(f"error: {line}", markup=False)
        sys.exit(2)


if __name__ == "__main__":
    main()
