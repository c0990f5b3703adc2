"""`dynamics verify` over the unbroken run: whatever is damaged or gone is named."""

import shutil
from pathlib import Path

import pytest

from dynamics.core.errors import UserError
from dynamics.pipeline.verify import verify
from dynamics.report.page import collect
from dynamics.storage.files import SUMS
from dynamics.storage.run_folder import RunFolder
from tests.runs import LocalRun

NOT_NEEDED = (
    "report.html",
    ".lock",
    "grid.png",  # a picture or a page is drawn again
    "clips.parquet",
    "pairs.parts",  # of the filming: the tables have its rows
    "attempts",
    "labels.json",  # the ledger has their rows
    "digests.json",
    SUMS,  # the report has the digests
)


@pytest.fixture
def run(local_run: LocalRun, tmp_path: Path) -> RunFolder:
    return RunFolder(shutil.copytree(local_run.folder, tmp_path / "run"))


def files(run: RunFolder) -> list[Path]:
    return sorted(path for path in Path(str(run.root)).rglob("*") if path.is_file())


def test_a_finished_run_is_sound(run: RunFolder) -> None:
    count, problems = verify(run)
    assert problems == []
    assert count > 40


def test_every_damaged_file_is_named(run: RunFolder) -> None:
    # A damaged manifest of the ledger hides the shards that it names.
    left = ("report.html", ".lock", "run.json", "round-01.json")
    damaged = [path for path in files(run) if path.name not in left]
    for path in damaged:
        payload = bytearray(path.read_bytes())
        payload[len(payload) // 2] ^= 1
        path.write_bytes(payload)
    _, problems = verify(run)
    said = "\n".join(problems)
    assert [path for path in damaged if str(path) not in said and path.suffix != ".mp4"] == []


def test_a_flipped_bit_of_a_loss_curve_is_named_wherever_it_is(run: RunFolder) -> None:
    log = Path(str(run.training_log(1, "idm").path))
    whole = log.read_bytes()
    for at in range(0, len(whole), 9):
        log.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        assert any(str(log) in problem for problem in verify(run)[1]), whole[: at + 1]


def test_a_loss_curve_that_was_cut_between_two_lines_is_named_and_not_drawn(run: RunFolder) -> None:
    log = Path(str(run.training_log(1, "fdp").path))
    log.write_text("".join(log.read_text().splitlines(keepends=True)[:-1]))
    _, problems = verify(run)
    assert [problem for problem in problems if f"{log} ends at step" in problem] == problems != []
    with pytest.raises(UserError, match="cut short; restore it, or delete it"):
        collect(run)


def test_every_changed_video_is_named(run: RunFolder) -> None:
    videos = [path for path in files(run) if path.suffix == ".mp4"]
    for path in videos:
        path.write_bytes(path.read_bytes()[:-1])
    _, problems = verify(run)
    assert [path for path in videos if str(path) not in "\n".join(problems)] == []


def test_every_missing_file_is_named(run: RunFolder) -> None:
    """One of each kind, one at a time: a missing manifest hides what it names."""
    kinds = {(path.parent.name, path.suffix): path for path in files(run)}
    for path in kinds.values():
        if path.name == "run.json" or {*path.parts}.intersection(NOT_NEEDED):
            continue
        aside = path.rename(path.with_name(".aside"))
        _, problems = verify(run)
        aside.rename(path)
        named = path.parent if path.name == "manifest.json" else path  # the table
        assert any(str(named) in problem for problem in problems), path
