"""JSON that carries the digest of its content: manifests, which name other files, and records."""

import hashlib
import json
import re
from typing import Any, Self

from pydantic import Field, ValidationError

from dynamics.core.config import Strict
from dynamics.core.errors import UserError
from dynamics.core.places import Place

SEAL = "sha256"
"""Key of a record's own digest."""
_HEX = re.compile(r"[0-9a-f]{64}")


class ContentFile(Strict):
    """A Parquet file, named by the sha256 of its bytes."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_rows: int = Field(ge=0)


class Sealed(Strict):
    """A manifest. A new field has a default, so that older ones stay readable."""

    version: int

    def to_bytes(self) -> bytes:
        """Canonical JSON; its own digest inside makes any change of the file visible."""
        return _sealed(self.model_dump(mode="json"))

    @classmethod
    def from_bytes(cls, payload: bytes, *, where: Place) -> Self:
        """Inverse of `to_bytes`; ``where`` is named in errors.

        Raises:
            UserError: not the bytes that `to_bytes` gave, or those of another version.
        """
        content = manifest_content(payload, where=where)
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            ours = cls.model_fields["version"].default
            raise UserError(
                f"{where} was written by another version of this code (manifest version "
                f"{content.get('version')}, here {ours}); read it with that one"
            ) from error


def manifest_content(payload: bytes, *, where: Place) -> dict[str, Any]:
    """The content of a manifest of any kind and version.

    Raises:
        UserError: not the bytes that `Sealed.to_bytes` gave.
    """
    try:
        content: dict[str, Any] = json.loads(payload)
        content.pop("digest")
    except (ValueError, AttributeError, KeyError, TypeError) as error:
        raise UserError(f"{where} is damaged: not a manifest") from error
    # Over the content as found: an older version wrote fewer fields.
    if _sealed(content) != payload:
        raise UserError(f"{where} is damaged: its content does not match its digest")
    return content


def seal(content: dict[str, Any]) -> dict[str, Any]:
    """A record with its digest."""
    return {**content, SEAL: _digest(json.loads(json.dumps(content)))}


def unsealed(record: dict[str, Any]) -> dict[str, Any]:
    """Inverse of `seal`; what an older version wrote without a digest is taken as it is.

    Raises:
        ValueError: the record is not what was sealed.
    """
    content = {key: value for key, value in record.items() if key != SEAL}
    if SEAL in record and record[SEAL] != _digest(content):
        raise ValueError("the content does not match its digest")
    # The key of the digest may be what is damaged.
    for key, value in content.items():
        if isinstance(value, str) and _HEX.fullmatch(value):
            rest = {name: content[name] for name in content if name != key}
            if value == _digest(rest):
                raise ValueError(f"the digest stands under the name {key}")
    return content


def _digest(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def _sealed(content: dict[str, Any]) -> bytes:
    """Canonical JSON with the digest of its content."""
    digest = _digest(content)
    return (json.dumps({**content, "digest": digest}, sort_keys=True, indent=1) + "\n").encode()
