"""What a person at the terminal is meant to read: one line, without a traceback."""

import errno
import os
import re

_WAYS_OUT = {
    errno.EACCES: "give this user the right to it, or name another place",
    errno.EPERM: "give this user the right to it, or name another place",
    errno.EROFS: "name a place that can be written",
    errno.ENOSPC: "make room and run the same command again, it resumes",
    errno.EDQUOT: "make room in your quota and run the same command again, it resumes",
    errno.EFBIG: "raise the limit on file sizes (ulimit -f)",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.ENOTDIR: "a part of that path is a file: name a folder",
    errno.EISDIR: "it is a folder: name a file",
    errno.ENOTEMPTY: "name a new folder",
    errno.EEXIST: "name a new one",
    errno.ENOENT: "check the name",
    errno.ELOOP: "its links lead in a circle: name the place itself",
    errno.EIO: "the disk or its server fails: copy what is there, and go on elsewhere",
    errno.ESTALE: "the file server lost it: mount it again and run the same command again",
    errno.ETIMEDOUT: "the file server does not answer: run the same command again once it does",
    errno.ENXIO: "name a plain file",
    errno.ENODEV: "name a plain file",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
    errno.ENFILE: "raise the system's limit on open files",
}
_OF_MACHINE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.ENFILE, errno.ENOMEM),
    *(errno.EIO, errno.ESTALE, errno.ETIMEDOUT, errno.EHOSTDOWN, errno.ENETDOWN, errno.ENOTCONN),
)
# So safetensors and tokenizers, which are written in Rust, pass on what the system says.
_OF_RUST = re.compile(r"\(os error (\d+)\)")


class UserError(Exception):
    """Bad input or environment: one line that names the thing and the way out.

    Commands print it without a traceback and exit with status 2.
    """


def check_machine(error: Exception) -> None:
    """Raise what a machine or a file server could not do just now: it is no fault of the file.

    Readers call this before they reject a file for good. What is raised ends the command, which
    goes on with the same file once the fault is mended.
    """
    if isinstance(error, OSError) and error.errno in _OF_MACHINE:
        raise error


def as_user_error(error: BaseException) -> UserError | None:
    """The line for an error: its own, or one for a place that the system refuses; None for others.

    A command asks this once, where it ends; nothing on the way there needs to catch an OSError.
    """
    if isinstance(error, UserError):
        return error
    if isinstance(error, OSError):
        number, where = error.errno, error.filename
    else:
        found = _OF_RUST.search(str(error))
        number, where = int(found[1]) if found else None, None
    if number not in _WAYS_OUT:
        return None
    place = os.fsdecode(where) if isinstance(where, str | bytes) else where
    named = f"{place}: " if place is not None else ""
    return UserError(f"{named}{os.strerror(number)}; {_WAYS_OUT[number]}")
