"""The README's commands, programs and links, against what there is.

What the commands do has tests of its own; here each line is parsed as it would be by its program.
"""

import ast
import re
import shlex

import pytest
import typer

from dynamics.cli.main import app
from dynamics.core.config import REPOSITORY_ROOT
from ray_jobs.bootstrap import parser

README = (REPOSITORY_ROOT / "README.md").read_text()
PROGRAMS = {"make", "dynamics", "python", "ray", "mlflow", "curl", "export"}


def lines(language: str) -> list[str]:
    blocks = re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", "").splitlines() if line]


def words(line: str) -> list[str]:
    first, *rest = shlex.split(line, comments=True)
    return [first.removeprefix(".venv/bin/"), *rest]


COMMANDS = [words(line) for line in lines("sh")]


def test_every_command_is_of_a_known_kind() -> None:
    assert {command[0] for command in COMMANDS} <= PROGRAMS


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "dynamics"], ids=" ".join)
def test_every_dynamics_command_is_understood(command: list[str]) -> None:
    _, verb, *arguments = command
    if verb == "bootstrap":
        parser().parse_intermixed_args(arguments)
        return
    found = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
    if verb == "evaluate":
        named = arguments[0] in found.commands
        found = found.commands[arguments[0] if named else "run"]
        arguments = arguments[named:]
    found.make_context(verb, arguments)


def test_every_make_target_and_program_is_there() -> None:
    makefile = (REPOSITORY_ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command
        if "ray_jobs/bootstrap.py" in command:
            at = command.index("ray_jobs/bootstrap.py")
            parser().parse_intermixed_args(command[at + 1 :])
        if command[:2] == ["python", "-m"]:
            assert (REPOSITORY_ROOT / command[2] / f"{command[3]}.py").is_file()


def test_every_program_compiles_and_every_link_leads_somewhere() -> None:
    for block in re.findall(r"```python\n(.*?)```", README, re.DOTALL):
        ast.parse(block)
    links = re.findall(r"\]\(([^)#]+?)\)", README)
    own = [link for link in links if "://" not in link]
    assert len(own) > 10
    assert not [link for link in own if not (REPOSITORY_ROOT / link).exists()]
    assert (REPOSITORY_ROOT / "docs" / "rollout.gif").stat().st_size < 1_000_000
