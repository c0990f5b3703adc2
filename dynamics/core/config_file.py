"""Reading the configuration: YAML file, dotted overrides, and errors that name the nearest key."""

import copy
import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ValidationError

from dynamics.core.config import CONFIGS, LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.places import on_this_machine
from dynamics.core.pointers import HEAD_BYTES
from dynamics.core.text_files import check_pointer

_TYPED = "command line"
"""Where overrides stand, in errors. Keys follow and no values: one may hold a secret."""
_MOST_ALIASES = 20
_MOST_BYTES = 1_000_000
"""Of a YAML text: hundreds of times a config, and read within seconds."""


def load(path: Path | str, overrides: Sequence[str] = ()) -> LoopConfig:
    """Read a YAML file, apply ``a.b=value`` overrides, validate.

    ``configs/NAME.yaml`` is found also outside of a checkout: the package has it. A file that
    begins with ``base: other.yaml`` differs from that file, which lies beside it, in what it names.

    Raises:
        UserError: missing file, bad YAML, unknown key (with the nearest one), bad value.
    """
    tree = _read(_shipped(path), ())
    changed = copy.deepcopy(tree)
    for override in overrides:
        _apply(changed, override)
    try:
        return validate(changed, where=str(path))
    except UserError:
        if overrides:
            validate(tree, where=str(path))
            validate(changed, where=_TYPED)
        raise


def _shipped(path: Path | str) -> Path | str:
    """The config of the package for ``configs/NAME.yaml`` where no such file lies."""
    named = Path(path)
    own = CONFIGS / named.name
    missing = named.parent == Path("configs") and not named.exists()
    return own if missing and own.is_file() else path


def _read(named: Path | str, above: tuple[Path, ...]) -> dict[str, Any]:
    """The keys of a file over those of the file that its ``base`` names; ``above`` came here."""
    try:
        path = Path(on_this_machine(named))
    except ValueError as error:
        raise UserError(f"config file {error}") from error
    if not path.is_file():
        wrong = "is a folder" if path.is_dir() else "does not exist"
        raise UserError(f"config file {path} {wrong}; try configs/tabletop.yaml")
    if path in above:
        raise UserError(f"{path} is its own base, by way of {above[-1]}")
    try:
        with path.open("rb") as stream:
            payload = stream.read(_MOST_BYTES + 1)
        check_pointer(path, payload[:HEAD_BYTES])
        tree = parse_yaml(payload) or {}
    except ValueError as error:
        raise UserError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(tree, dict):
        raise UserError(f"{path} must hold a mapping of keys, not a {type(tree).__name__}")
    base = tree.pop("base", None)
    return tree if base is None else _over(_read(_beside(path, str(base)), (*above, path)), tree)


def _beside(path: Path, base: str) -> Path | str:
    """The file that ``base`` names; an address stays one, so that it is refused."""
    return base if ":/" in base else path.parent / base


def parse_yaml(text: str | bytes) -> Any:
    """The tree of a YAML text, in UTF-8 or UTF-16 when given as bytes.

    Raises:
        ValueError: one line that says where it is no YAML, or which key stands twice.
    """
    if len(text) > _MOST_BYTES:
        raise ValueError(f"it is longer than {_MOST_BYTES // 1000} kB, so no config")
    try:
        return yaml.load(text, _UniqueKeys)
    except yaml.YAMLError as error:
        said = re.sub(r' in "<[a-z ]+>",?', " at", " ".join(str(error).split()))
        raise ValueError(said) from error
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


class _UniqueKeys(yaml.SafeLoader):
    """A safe loader to which a key that stands twice is an error; YAML takes the last one.

    So are many aliases: a few that name one another stand for millions of values.
    """

    num_aliases = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            self.num_aliases += 1
            if self.num_aliases > _MOST_ALIASES:
                raise yaml.YAMLError(f"it has more than {_MOST_ALIASES} aliases")
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value:
            problem = ""
            if not isinstance(key, yaml.ScalarNode):
                problem = "a key is a list or a mapping"
            elif key.value in seen:
                problem = f"the key {key.value} stands twice"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _over(below: dict[str, Any], own: dict[str, Any]) -> dict[str, Any]:
    """Keys over others, section by section; lists and values are replaced whole."""
    merged = dict(below)
    for key, value in own.items():
        under = merged.get(key)
        inner = isinstance(under, dict) and isinstance(value, dict)
        merged[key] = _over(merged[key], value) if inner else value
    return merged


def with_overrides(cfg: LoopConfig, overrides: Sequence[str]) -> LoopConfig:
    """The config with ``a.b=value`` overrides.

    Raises:
        UserError: as `load`.
    """
    tree = cfg.model_dump(mode="json")
    for override in overrides:
        _apply(tree, override)
    return validate(tree, where=_TYPED)


def validate(
    tree: dict[str, Any], *, where: str, unknown: Literal["forbid", "ignore"] = "forbid"
) -> LoopConfig:
    """Validate a plain dict; ``where`` is named in errors, unknown keys are errors by default."""
    try:
        return LoopConfig.model_validate(tree, extra=unknown)
    except ValidationError as error:
        raise UserError(f"{where}: {_explain(error)}") from error


def _apply(tree: dict[str, Any], override: str) -> None:
    key, separator, text = override.partition("=")
    if not separator or not key:
        raise UserError(f"{_TYPED}: {override!r} must look like section.key=value")
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        child = node.setdefault(parent, {})
        if not isinstance(child, dict):
            raise UserError(f"{_TYPED}: {key}: {parent} is a value, not a section")
        node = child
    try:
        node[leaf] = parse_yaml(text)
    except ValueError as error:
        raise UserError(f"{_TYPED}: {key}: the value is not valid YAML: {error}") from error


def _explain(error: ValidationError) -> str:
    """All problems in one line, unknown keys with the nearest known one."""
    return "; ".join(_lines(error.errors(), LoopConfig, ()))


def _lines(
    problems: Sequence[Any], model: type[BaseModel], parents: tuple[str, ...]
) -> Iterator[str]:
    """One line per problem of a section of class ``model`` that stands below ``parents``."""
    for problem in problems:
        location = [str(part) for part in problem["loc"]]
        dotted = ".".join([*parents, *location])
        if problem["type"] == "section":
            inner = problem["ctx"]["model"]
            yield from _lines(problem["ctx"]["errors"], inner, (*parents, *location))
        elif problem["type"] == "extra_forbidden":
            known = _known_keys(model, location[:-1])
            nearest = difflib.get_close_matches(location[-1], known, n=1, cutoff=0.0)
            hint = [*parents, *location[:-1], *nearest]
            yield f"unknown key {dotted}" + (f"; did you mean {'.'.join(hint)}?" if nearest else "")
        else:
            yield f"{dotted or 'config'}: {problem['msg'].removeprefix('Value error, ')}"


def _known_keys(model: type[BaseModel], parents: Sequence[str]) -> list[str]:
    for name in parents:
        annotation = model.model_fields[name].annotation if name in model.model_fields else None
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            model = annotation
    return list(model.model_fields)
