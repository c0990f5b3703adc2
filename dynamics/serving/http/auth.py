"""The API key, from an environment variable or a file."""

import os

from dynamics.core.config import ServeConfig
from dynamics.core.errors import UserError

_MIN_LENGTH = 16


def read_key(options: ServeConfig) -> str | None:
    """The key that clients must present; None when the config names no place for one.

    Raises:
        UserError: the named place holds no fit key. The message never holds the key.
    """
    if options.api_key_env is None and options.api_key_file is None:
        return None
    key = os.environ.get(options.api_key_env, "").strip() if options.api_key_env else ""
    place = f"the environment variable {options.api_key_env}"
    if not key and options.api_key_file is not None:
        place = f"the file {options.api_key_file}"
        try:
            key = options.api_key_file.read_text().strip()
        except (OSError, ValueError) as error:
            raise UserError(f"{place} with the API key cannot be read") from error
    if len(key) < _MIN_LENGTH or not key.isascii() or not key.isprintable():
        raise UserError(
            f"{place} must hold an API key of at least {_MIN_LENGTH} printable ASCII characters; "
            "make one with: openssl rand -hex 32"
        )
    return key
