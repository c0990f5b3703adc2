"""Ctrl-C while a command still loads its modules: one line, as at any later time."""

import os
import signal
from types import FrameType


def leave(_number: int, _frame: FrameType | None) -> None:
    """End the process at once: nothing has begun that would have to be cleared away."""
    os.write(2, b"interrupted\n")
    os._exit(130)


def begin() -> None:
    """Let Ctrl-C end the process by `leave`, until `loaded`; where it is ignored, it stays so."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, leave)


def loaded() -> None:
    """Let Ctrl-C raise `KeyboardInterrupt` again."""
    if signal.getsignal(signal.SIGINT) is leave:
        signal.signal(signal.SIGINT, _interrupt)


_came: list[int] = []


def _interrupt(number: int, frame: FrameType | None) -> None:
    _came.append(number)
    signal.default_int_handler(number, frame)


def is_interrupt(error: BaseException) -> bool:
    """True for a `KeyboardInterrupt`, and for what an import that one has broken off raises."""
    return isinstance(error, KeyboardInterrupt) or bool(_came)
