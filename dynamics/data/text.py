"""Text files that people bring: UTF-8, with or without a byte order mark, UTF-16 or UTF-32."""

import codecs
import re

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.pointers import HEAD_BYTES, pointer_kind
from dynamics.data.refusals import way_out
from dynamics.storage.files import file_size

MAX_BYTES = 1 << 30
_PACKED = {b"\x1f\x8b": "gzip", b"PK\x03\x04": "zip", b"BZh": "bzip2", b"\xfd7zXZ": "xz"}


def read_text(path: Place) -> str:
    """The text of a file.

    Raises:
        UserError: the file is missing, larger than 1 GiB, a pointer, or of another encoding.
    """
    try:
        if file_size(path) > MAX_BYTES:
            raise UserError(f"{path} is larger than 1 GiB; split it")
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check labelled.path") from error
    if kind := pointer_kind(content[:HEAD_BYTES]):
        raise UserError(f"{path} is {kind}{way_out(kind)}")
    if packed := next((kind for head, kind in _PACKED.items() if content.startswith(head)), None):
        raise UserError(f"{path} is a {packed} file; unpack it")
    encoding = _encoding(content[:4])
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{content[error.start]:02x} at {error.start:,}"
        raise UserError(
            f"{path} is not {encoding.upper().removesuffix('-SIG')} ({byte}), perhaps Latin-1 or "
            f"Windows-1252; convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from error


def _encoding(head: bytes) -> str:
    if head in (codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE):
        return "utf-32"
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    # Without a mark: the first two letters of a manifest are plain ones.
    if re.match(rb"[\t-~]\0[\t-~]\0", head):
        return "utf-16-le"
    return "utf-16-be" if re.match(rb"\0[\t-~]\0[\t-~]", head) else "utf-8-sig"
