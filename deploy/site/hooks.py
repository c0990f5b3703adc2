"""Pages of the documentation site that are made from the code and from files outside docs/."""

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from posixpath import dirname, join, normpath, relpath
from typing import Any

import typer
from mkdocs.structure.files import File, Files
from pydantic import BaseModel

from dynamics.core import config as config_module
from dynamics.core.config import LoopConfig, Mark, ServeConfig

ROOT = Path(__file__).resolve().parents[2]
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Pages of the site by their file in the checkout."""
PYTHON = "# Python\n\n::: dynamics\n\n::: dynamics.client\n\n::: dynamics.client.gym_env\n"
REFERENCE = ("config", "commands", "python", "http", "glossary")
"""Pages below reference/, all made here."""


def on_files(files: Files, config: Any) -> Files:
    """Add the generated pages."""
    pages = {new: (ROOT / old).read_text() for old, new in MOVED.items()}
    made = (configuration(), commands(), PYTHON, http(), glossary())
    pages |= {f"reference/{name}.md": text for name, text in zip(REFERENCE, made, strict=True)}
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let links to files of the checkout lead to the site's pages, the others be plain words."""
    here = page.file.src_uri
    at = {new: old for old, new in MOVED.items()}.get(here, f"docs/{here}")

    def moved(found: re.Match[str]) -> str:
        label, target = found.groups()
        path = normpath(join(dirname(at), target))
        name = MOVED.get(path, path.removeprefix("docs/"))
        inside = name in MOVED.values() or (ROOT / "docs" / name).exists() or is_made(name)
        return f"[{label}]({relpath(name, dirname(here) or '.')})" if inside else label

    if here.startswith("reference/"):
        return markdown
    return re.sub(r"\[([^\[\]]*)\]\((?!\w+:|#)([^)#]+)\)", moved, markdown)


def is_made(name: str) -> bool:
    """Whether a page, by its path on the site, is made here."""
    return name in {f"reference/{one}.md" for one in REFERENCE}


def configuration() -> str:
    """Every key with its type, default and meaning."""
    lines = [
        "# Configuration",
        "",
        "Every key may stand in a YAML file (`--config`) and on a command line (`section.key=1`).",
        "A key marked *free* may change when a run goes on; every other decides its results.",
    ]
    lines += _section(LoopConfig, "", _notes())
    return "\n".join(lines) + "\n"


def _notes() -> dict[tuple[str, str], str]:
    """The strings below the fields of the config's classes, by class and field."""
    notes = {}
    for found in ast.parse(inspect.getsource(config_module)).body:
        if isinstance(found, ast.ClassDef):
            for field, after in zip(found.body, found.body[1:], strict=False):
                is_text = isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
                if (
                    isinstance(field, ast.AnnAssign)
                    and isinstance(field.target, ast.Name)
                    and is_text
                ):
                    notes[found.name, field.target.id] = " ".join(after.value.value.split())
    return notes


def _section(
    model: type[BaseModel], prefix: str, notes: dict[tuple[str, str], str]
) -> Iterator[str]:
    yield from ("", f"## {prefix.rstrip('.') or 'Top level'}", "", inspect.getdoc(model) or "", "")
    yield from ("| key | default | meaning |", "| --- | --- | --- |")
    inner = []
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel) and not inspect.isabstract(kind):
            inner.append((kind, f"{prefix}{name}."))
            continue
        default = "" if field.is_required() else f"`{field.get_default(call_default_factory=True)}`"
        free = "*free.* " if Mark.FREE in field.metadata else ""
        note = f"{free}{notes.get((model.__name__, name), '')}".replace("|", "\\|")
        yield f"| `{prefix}{name}` | {default} | {note} |"
    for kind, below in inner:
        yield from _section(kind, below, notes)


def commands() -> str:
    """Every command with its arguments and options."""
    from dynamics.cli.main import app

    lines = ["# Commands"]
    for name, command in _commands(typer.main.get_command(app), "dynamics"):
        lines += ["", f"## {name}", "", inspect.cleandoc(command.help or ""), ""]
        lines += ["| name | meaning |", "| --- | --- |"]
        for parameter in command.params:
            names = ", ".join(f"`{one}`" for one in parameter.opts)
            meaning = (getattr(parameter, "help", None) or "").replace("|", "\\|")
            lines.append(f"| {names} | {meaning} |")
    return "\n".join(lines) + "\n"


def _commands(command: Any, name: str) -> Iterator[tuple[str, Any]]:
    if hasattr(command, "commands"):
        for below, one in command.commands.items():
            yield from _commands(one, f"{name} {below}")
    else:
        yield name, command


def http() -> str:
    """The service's routes and messages, from its own description."""
    from dynamics.serving.http.app import PAGE, make_app

    nobody: Any = None  # the description asks nothing of it
    described = make_app(nobody, ServeConfig(), PAGE, None).openapi()
    lines = ["# HTTP", "", described["info"]["description"], ""]
    for path, methods in described["paths"].items():
        for method, route in methods.items():
            said = route.get("description") or route.get("summary", "")
            lines += [f"## {method.upper()} {path}", "", said, ""]
    lines += ["# Messages"]
    for name, schema in described["components"]["schemas"].items():
        lines += ["", f"## {name}", "", schema.get("description", ""), ""]
        lines += ["| field | meaning |", "| --- | --- |"]
        for field, about in schema.get("properties", {}).items():
            meaning = " ".join(about.get("description", "").split()).replace("|", "\\|")
            lines.append(f"| `{field}` | {meaning} |")
    return "\n".join(lines) + "\n"


def glossary() -> str:
    """The table of words of docs/DESIGN.md."""
    words = (ROOT / "docs" / "DESIGN.md").read_text().partition("\n## Words\n")[2]
    return "# Glossary\n" + words.partition("\n## ")[0]
