"""A folder that appears whole or not at all, and never over another one."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dynamics.core.errors import UserError


@contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder beside ``out`` for the body to fill; it gets the name ``out`` when the body is done.

    A failed body leaves nothing; a killed one a hidden ``.<name>.*.tmp`` folder.

    Raises:
        UserError: ``out`` is a file or a folder that is not empty, or the disk is full.
    """
    out = out.absolute()
    _refuse_content(out)
    fresh = out.parent / f".{out.name}.{secrets.token_hex(8)}.tmp"
    try:
        fresh.mkdir(parents=True)
        yield fresh
        os.sync()  # many files: one flush of all instead of one each
        _refuse_content(out)
        fresh.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise UserError(
                f"disk full while writing {out}; make room and run the same command again"
            ) from error
        raise
    finally:
        shutil.rmtree(fresh, ignore_errors=True)


def _refuse_content(out: Path) -> None:
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise UserError(f"{out} is no folder; name a new one")
    if out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty and nothing is overwritten; name a new folder")
