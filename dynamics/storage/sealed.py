"""Manifests: JSON files that name other files by their digests and carry their own."""

import hashlib
import json
from typing import Any, Self

from pydantic import Field, ValidationError

from dynamics.core.config import Strict
from dynamics.core.errors import UserError
from dynamics.core.places import Place


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
        try:
            content = json.loads(payload)
            content.pop("digest")
        except (ValueError, AttributeError, KeyError, TypeError) as error:
            raise UserError(f"{where} is damaged: not a manifest") from error
        # Over the content as found: an older version wrote fewer fields.
        if _sealed(content) != payload:
            raise UserError(f"{where} is damaged: its content does not match its digest")
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            ours = cls.model_fields["version"].default
            raise UserError(
                f"{where} was written by another version of this code (manifest version "
                f"{content.get('version')}, here {ours}); read it with that one"
            ) from error


def _sealed(content: dict[str, Any]) -> bytes:
    """Canonical JSON with the digest of its content."""
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return (json.dumps({**content, "digest": digest}, sort_keys=True, indent=1) + "\n").encode()
