"""One line for what the system refuses, wherever a command ends."""

import errno
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from unittest import mock

import pytest
from safetensors import SafetensorError

from dynamics.cli.main import main
from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load, with_overrides
from dynamics.core.errors import UserError, as_user_error
from dynamics.storage.files import write_bytes
from dynamics.storage.run_folder import RunFolder

REFUSALS = ("EACCES", "EROFS", "ENOSPC", "EDQUOT", "ENAMETOOLONG", "ENOTDIR", "EIO", "ESTALE")


def said(arguments: Sequence[str | Path], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line of a command that fails."""
    command = ["dynamics", *map(str, arguments)]
    with mock.patch.object(sys, "argv", command), pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    line = capsys.readouterr().err
    assert line.startswith("error: ")
    assert line.count("\n") == 1
    return line


def bad_places(folder: Path) -> dict[str, Path]:
    file, circle = folder / "file", folder / "circle"
    file.write_text("x")
    circle.symlink_to(circle)
    return {"Not a dir": file / "a", "File name too long": folder / ("n" * 300), "links": circle}


@pytest.mark.parametrize("refusal", REFUSALS)
@pytest.mark.parametrize("call", ["open", "write", "fsync", "replace"])
def test_a_refused_write_is_one_line_with_the_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, refusal: str
) -> None:
    number = getattr(errno, refusal)

    def refuse(*arguments: object, **_: object) -> None:
        raise OSError(number, os.strerror(number))

    write_bytes(tmp_path / "report.json", b"old")
    with monkeypatch.context() as patched:
        patched.setattr(os, call, refuse)
        with pytest.raises((OSError, UserError)) as raised:
            write_bytes(tmp_path / "report.json", b"new")
    line = str(as_user_error(raised.value))
    assert str(tmp_path) in line
    assert "\n" not in line
    assert (tmp_path / "report.json").read_bytes() in (b"old", b"new")


def test_what_libraries_in_rust_pass_on_is_a_line_and_bugs_are_not() -> None:
    refused = SafetensorError("I/O error: No space left on device (os error 28)")
    assert "make room" in str(as_user_error(refused))
    assert as_user_error(ConnectionRefusedError(errno.ECONNREFUSED, "refused")) is None
    assert as_user_error(ValueError("a bug")) is None


@pytest.mark.parametrize(
    "arguments",
    [["verify"], ["report", "--no-open"], ["film", "--pairs", "2"]],
    ids=lambda arguments: arguments[0],
)
def test_a_place_that_cannot_be_used_is_one_line(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in bad_places(tmp_path).values():
        assert place.name[:20] in said([*arguments, place], capsys)


def test_a_run_in_a_place_that_cannot_be_used_is_one_line(tmp_path: Path) -> None:
    for place in bad_places(tmp_path).values():
        with pytest.raises((OSError, UserError)) as raised:
            RunFolder(place).claimed(LoopConfig()).__enter__()
        assert place.name[:20] in str(as_user_error(raised.value))
        with pytest.raises((OSError, UserError)) as raised:
            load(place)
        assert place.name[:20] in str(as_user_error(raised.value))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("seed: 1\n" * 200_000, "longer than 1000 kB"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [" + "*b, " * 30 + "*b]", "aliases"),
        ("name: \x00", "not valid YAML"),
        ("run_dir: !!python/object/apply:os.system [id]", "not valid YAML"),
        ("train: {learning_rate: .inf}", "finite"),
        ("evaluate: {temperature: .nan}", "finite"),
        ("rounds: .inf", "finite"),
        ("version https://git-lfs.github.com/spec/v1\noid sha256:0", "run git lfs pull"),
    ],
)
def test_a_hostile_config_is_one_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "own.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        load(path)
    assert "\n" not in str(raised.value)


def test_an_infinite_override_is_refused() -> None:
    with pytest.raises(UserError, match="finite"):
        with_overrides(LoopConfig(), ["train.learning_rate=.inf"])
