"""Registries: plain dicts from a name to code, and settings whose value is such a name.

To register something is to add one line to its dict. A setting names the dict by an import string
(``"dynamics.labelling.confidence:SCORES"``): configuration loads without torch, `core` imports
nothing from above, and every name in the dict can be configured, is offered by ``--help`` and by
the service, and is measured.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from inspect import isfunction
from typing import Any

from pydantic import BaseModel, GetCoreSchemaHandler, GetJsonSchemaHandler, ValidationError
from pydantic_core import PydanticCustomError, core_schema


def imported(path: str) -> Any:
    """The object that an import string ``module:NAME`` names."""
    module, _, name = path.partition(":")
    return getattr(import_module(module), name)


def entries(registry: str) -> dict[str, Any]:
    """The dict behind an import string ``module:DICT``."""
    found: dict[str, Any] = imported(registry)
    return found


def names(registry: str) -> tuple[str, ...]:
    """The registered names, in the order of the dict."""
    return tuple(entries(registry))


def described(registered: Mapping[str, Any]) -> dict[str, str]:
    """The first line of every registered function's docstring."""
    functions = {name: entry for name, entry in registered.items() if isfunction(entry)}
    return {name: (entry.__doc__ or "").partition("\n")[0] for name, entry in functions.items()}


def unknown_name(name: object, known: tuple[str, ...]) -> str:
    """One line about a name that is not registered: the nearest one, and all of them."""
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.0)
    hint = f"did you mean {nearest[0]}? " if nearest else ""
    return f"{name!r} is unknown; {hint}known: {', '.join(known)}"


@dataclass(frozen=True, slots=True)
class NameIn:
    """Annotation of a setting whose value is a name of a registry."""

    registry: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """A string that is looked up when it is validated, not when the class is made."""
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(
        self, schema: core_schema.CoreSchema, handler: GetJsonSchemaHandler
    ) -> dict[str, Any]:
        """An enum of the names with what they stand for, for the service's description."""
        found = {**handler(schema), "enum": list(names(self.registry))}
        lines = [f"`{name}`: {line}" for name, line in described(entries(self.registry)).items()]
        return {**found, "description": "\n\n".join(lines)} if lines else found

    def _check(self, name: str) -> str:
        if name not in entries(self.registry):
            raise ValueError(unknown_name(name, names(self.registry)))
        return name


@dataclass(frozen=True, slots=True)
class SectionIn:
    """Annotation of a section whose ``kind`` names the registered class of its other keys."""

    registry: str

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Sections of the registered classes, looked up when they are validated."""
        return core_schema.no_info_plain_validator_function(
            self._check, serialization=core_schema.plain_serializer_function_ser_schema(_dumped)
        )

    def _check(self, section: Any) -> BaseModel:
        if isinstance(section, BaseModel):
            return section
        known = names(self.registry)
        kind = section.get("kind") if isinstance(section, dict) else section
        if kind not in known:
            raise ValueError(f"kind {unknown_name(kind, known)}")
        model: type[BaseModel] = entries(self.registry)[kind]
        try:
            return model.model_validate(section)
        except ValidationError as error:
            # The loader explains the problems within, with the keys that this class knows.
            within = {"errors": error.errors(), "model": model}
            raise PydanticCustomError("section", "bad section", within) from error


def _dumped(section: BaseModel) -> dict[str, Any]:
    return section.model_dump(mode="json")
