"""Ctrl-C at any moment of a command's start is one line and status 130."""

import signal
import subprocess
import sys

import pytest

BEFORE = "from dynamics.core import interrupts; interrupts.begin()"
BROKEN = """
try:
    os.kill(os.getpid(), signal.SIGINT)
except KeyboardInterrupt:
    error = ImportError("could not import")
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    code = f"import os, signal; {BEFORE}\n{code}"
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False,
        # A shell starts what runs in its background with Ctrl-C ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip


def test_while_modules_load_it_is_one_line() -> None:
    done = run("os.kill(os.getpid(), signal.SIGINT); print('goes on')")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


@pytest.mark.parametrize("came", [True, False])
def test_an_import_that_it_broke_off_counts_as_an_interruption(came: bool) -> None:
    broken = BROKEN if came else "error = ImportError('could not import')"
    done = run(f"interrupts.loaded()\n{broken}\nprint(interrupts.is_interrupt(error))")
    assert done.stdout == f"{came}\n", done.stderr


def test_where_it_is_ignored_it_stays_ignored() -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import os, signal; {BEFORE}; interrupts.loaded(); print(1)"],
        capture_output=True, text=True, check=False,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_IGN),
    )  # fmt: skip
    assert done.stdout == "1\n"
