"""The commands, programs and links of every document, against what there is.

What the commands do has tests of its own; here each line is parsed as it would be by its program.
"""

import ast
import re
import shlex
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import typer

from dynamics.cli.main import app
from dynamics.core.config import REPOSITORY_ROOT as ROOT
from ray_jobs.bootstrap import parser

NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
DOCUMENTS = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
OWN = {"dynamics", "make", "python", "pip", "pytest", "ruff", "lint-imports", "mlflow", "ray"}
OTHERS = {"curl", "docker", "export", "kubectl", "prometheus", "sbatch", "scancel", "tail", "."}
OTHERS |= {"moto_server"}
MADE = {"reference/commands.md", "reference/config.md", "reference/http.md", "reference/python.md"}
"""Pages of the site that deploy/site/hooks.py makes."""


def blocks(document: Path, language: str) -> list[str]:
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```", document.read_text(), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def commands(document: Path) -> Iterator[list[str]]:
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            for joined, command in groupby(words, lambda word: word == "&&"):
                if not joined:
                    first, *rest = command
                    yield [first.removeprefix(".venv/bin/"), *rest]


COMMANDS = [command for document in DOCUMENTS for command in commands(document)]


def test_every_command_is_of_a_known_kind() -> None:
    assert {command[0] for command in COMMANDS} <= OWN | OTHERS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_dynamics_command_is_understood(document: Path) -> None:
    for command in commands(document):
        if command[0] != "dynamics" or command[1].startswith("-"):
            continue
        _, verb, *arguments = command
        if verb == "bootstrap":
            parser().parse_intermixed_args(arguments)
            continue
        found = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
        if verb == "evaluate":
            named = arguments[0] in found.commands
            found = found.commands[arguments[0] if named else "run"]
            arguments = arguments[named:]
        found.make_context(verb, arguments)


def test_every_make_target_and_program_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command
        if "ray_jobs/bootstrap.py" in command:
            at = command.index("ray_jobs/bootstrap.py")
            parser().parse_intermixed_args(command[at + 1 :])
        if command[:2] == ["python", "-m"] and (ROOT / command[2]).is_dir():
            assert (ROOT / command[2] / f"{command[3]}.py").is_file()
        for word in command:
            if re.fullmatch(r"(configs|deploy|tests)/[\w/.-]+", word) and "my-" not in word:
                assert (ROOT / word).exists() or word == "configs/mine.yaml", command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_program_compiles_and_every_link_leads_somewhere(document: Path) -> None:
    for block in blocks(document, "python"):
        ast.parse(block)
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if target.is_relative_to(ROOT / "docs") and str(target.relative_to(ROOT / "docs")) in MADE:
            continue
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in plain}


def test_the_picture_above_the_fold_is_small() -> None:
    assert (ROOT / "docs" / "rollout.gif").stat().st_size < 1_000_000
