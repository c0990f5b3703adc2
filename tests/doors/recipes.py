"""CONTRIBUTING's recipes as code: every block is run as it stands, and taken back afterwards."""

import importlib.util
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from dynamics.core.config import REPOSITORY_ROOT

_BLOCK = re.compile(r"```python\n# (?P<path>\S+\.py)\n(?P<code>.*?)```", re.DOTALL)
_TITLE = re.compile(r"^### (.+)$", re.MULTILINE)


def recipes() -> dict[str, list[tuple[str, str]]]:
    """Title of a door to its blocks: (path of the file, code)."""
    doors = (REPOSITORY_ROOT / "CONTRIBUTING.md").read_text().partition("\n## Doors")[2]
    _, *parts = _TITLE.split(doors.partition("\n## ")[0])
    return {
        title: [(block["path"], block["code"]) for block in _BLOCK.finditer(text)]
        for title, text in zip(parts[::2], parts[1::2], strict=True)
    }


@contextmanager
def followed(folder: Path) -> Iterator[None]:
    """Every recipe is followed while the body runs; new files are written below ``folder``."""
    before: dict[ModuleType, dict[str, object]] = {}
    made: list[str] = []
    try:
        for path, code in (block for blocks in recipes().values() for block in blocks):
            name = path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
            if (REPOSITORY_ROOT / path).exists():
                module = importlib.import_module(name)
                before.setdefault(module, _copied(module))
                exec(compile(code, path, "exec"), vars(module))
            else:
                made += _load_new(name, folder / path, code)
        yield
    finally:
        for module, names in before.items():
            _restore(module, names)
        for name in made:
            sys.modules.pop(name, None)


def _load_new(name: str, path: Path, code: str) -> list[str]:
    """Write a new file and make it importable under its name; returns the names that are new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code)
    made = []
    package = name.rpartition(".")[0]
    if package not in sys.modules and importlib.util.find_spec(package) is None:
        sys.modules[package] = ModuleType(package)
        made.append(package)
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [*made, name]


def _copied(module: ModuleType) -> dict[str, object]:
    """The module's names, with copies of its registries."""
    return {
        name: dict(value) if name.isupper() and isinstance(value, dict) else value
        for name, value in vars(module).items()
    }


def _restore(module: ModuleType, names: dict[str, object]) -> None:
    """Take back what a recipe added; registries stay the same objects, others hold them."""
    for name, value in list(vars(module).items()):
        if name not in names:
            delattr(module, name)
        elif name.isupper() and isinstance(value, dict):
            value.clear()
            value.update(names[name])  # type: ignore[call-overload]
