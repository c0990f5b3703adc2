import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.records import Estimate, GuardResult, RoundReport
from dynamics.storage.claim import RunFolderInUseError
from dynamics.storage.run_folder import (
    RunFolder,
    TrainingLog,
    flatten,
    read_json,
    write_json,
)

CFG = LoopConfig()


def test_another_config_is_refused_with_the_keys_that_differ(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(CFG):
        pass
    other = LoopConfig(seed=7, train={"batch_size": 9}, guards={"accept": ["leakage"]})
    with pytest.raises(UserError, match=r"seed was 0, now 7, train.batch_size was 48, now 9"):
        folder.claimed(other).__enter__()
    assert folder.config() == CFG


def test_a_base_whose_bytes_changed_is_refused(tmp_path: Path) -> None:
    """The config names the base by its path, which an update of the checkout keeps."""
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    cfg = LoopConfig(model={"base": base})
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(cfg):
        pass
    (base / "config.json").write_text('{"hidden_size": 8}')
    with pytest.raises(UserError, match=r"another base checkpoint than .*base holds now"):
        folder.claimed(cfg).__enter__()


@pytest.mark.parametrize(
    "other",
    [
        {"rounds": 9, "serve": {"port": 8001}, "guards": {"accept": ["copy_rate"]}},
        {"label": {"num_actors": 1, "batch_size": 8}, "evaluate": {"batch_size": 8}},
        {"model": {"device": "cuda", "merge_adapters": False}},
        {"train": {"num_workers": 3, "strategy": "fsdp2", "micro_batch_rows": 4}},
        {"pool": {"decode_timeout_s": 600.0, "max_bad_fraction": 0.9}},
    ],
)
def test_a_run_continues_elsewhere_with_its_digest_and_the_new_settings(
    tmp_path: Path, other: dict[str, Any]
) -> None:
    folder = RunFolder(tmp_path / "run")
    with folder.claimed(LoopConfig(seed=3)):
        digest = folder.digest
    continued = LoopConfig(seed=3, **other)
    with folder.claimed(continued):
        assert folder.config() == continued
    assert folder.digest == digest == LoopConfig(seed=3).digest()


def test_a_run_continues_with_its_base_and_its_own_folder_at_another_path(tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    with RunFolder(tmp_path / "run").claimed(LoopConfig(model={"base": base})):
        pass
    cfg = LoopConfig(model={"base": base.rename(tmp_path / "moved")})
    moved = RunFolder((tmp_path / "run").rename(tmp_path / "elsewhere"))
    with moved.claimed(cfg):
        assert moved.config() == cfg


def by_another_version(folder: RunFolder, **changes: Any) -> None:
    """The folder as a version with other keys or defaults would have left it."""
    with folder.claimed(CFG):
        pass
    stored = read_json(folder.root / "run.json")
    for section, keys in changes.items():
        stored["config"][section] |= keys
        stored["config"][section] = {
            key: value for key, value in stored["config"][section].items() if value is not GONE
        }
    write_json(folder.root / "run.json", stored)


GONE = object()


def test_a_key_that_is_new_counts_as_its_default(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    by_another_version(folder, train={"weight_decay": GONE}, filter={"rule": GONE})
    digest = folder.digest
    with pytest.raises(UserError, match=r"\(train.weight_decay was 0.0, now 0.5\)"):
        folder.claimed(LoopConfig(train={"weight_decay": 0.5})).__enter__()
    with folder.claimed(CFG):
        assert folder.digest == digest
    assert read_json(tmp_path / "run.json")["config"] == CFG.model_dump(mode="json")


def test_a_key_that_is_gone_is_refused_unless_it_was_at_its_default(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    by_another_version(folder, train={"momentum": 0.9})
    assert folder.config() == CFG
    with folder.claimed(CFG):
        pass
    stored = read_json(tmp_path / "run.json")
    write_json(tmp_path / "run.json", stored | {"chosen": {"train.momentum": 0.5}})
    for refused in (folder.config, folder.claimed(CFG).__enter__):
        with pytest.raises(UserError, match=r"does not know \(train.momentum=0.5\)"):
            refused()


def test_a_default_that_changed_is_refused(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    by_another_version(folder, train={"batch_size": 32})
    with pytest.raises(UserError, match=r"\(train.batch_size was 32, now 48\)"):
        folder.claimed(CFG).__enter__()
    with folder.claimed(LoopConfig(train={"batch_size": 32})):
        pass


@pytest.mark.parametrize(("format_", "said"), [(None, "an older version"), (99, "another version")])
def test_a_folder_of_another_format_is_refused_in_one_line(
    tmp_path: Path, format_: int | None, said: str
) -> None:
    payload = {"digest": "0" * 64, "config": CFG.model_dump(mode="json")}
    write_json(tmp_path / "run.json", payload | ({"format": format_} if format_ else {}))
    folder = RunFolder(tmp_path)
    for refused in (folder.config, folder.claimed(CFG).__enter__):
        with pytest.raises(UserError, match=said):
            refused()


def test_only_paths_that_are_given_may_change(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.claimed(CFG):
        pass
    filmed = LoopConfig(pool={"path": tmp_path})
    with pytest.raises(UserError, match=r"\(pool.path was None, now 'given'\)"):
        folder.claimed(filmed).__enter__()


def test_a_report_from_before_a_field_was_added_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    oldest = {
        "round_id": 0,
        "num_labelled": 0,
        "num_accepted": 0,
        "reasons": {},
        "metrics": {"eval/a": {"value": 0.5, "low": 0.4, "high": 0.6, "num_items": 10}},
        "models": {},
    }
    path = folder.round(0) / "report.json"
    write_json(path, oldest)
    report = folder.report(0)
    assert report is not None
    assert report.metrics == {"eval/a": Estimate(value=0.5, low=0.4, high=0.6, num_items=10)}
    assert (report.train, report.guards, report.accepted_guards) == ({}, (), ())
    for other in ({**oldest, "added": 1}, {"round_id": 0}):
        write_json(path, other)
        with pytest.raises(UserError, match=r"report\.json was written by another version"):
            folder.report(0)


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and holds no run"):
        RunFolder(tmp_path).claimed(CFG).__enter__()
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_second_driver_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    with folder.claimed(CFG), pytest.raises(RunFolderInUseError, match=f"process {os.getpid()}"):
        folder.claimed(CFG).__enter__()
    with folder.claimed(CFG):
        pass


def hold(root: Path, ready: "multiprocessing.synchronize.Event") -> None:
    with RunFolder(root).claimed(CFG):
        ready.set()
        signal.pause()


def test_a_killed_driver_leaves_no_lock(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    process = context.Process(target=hold, args=(tmp_path, ready), daemon=True)
    process.start()
    assert ready.wait(120)
    with pytest.raises(RunFolderInUseError):
        RunFolder(tmp_path).claimed(CFG).__enter__()
    process.kill()
    process.join()
    with RunFolder(tmp_path).claimed(CFG):
        pass


def test_damaged_run_json_is_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"digest": ')
    with pytest.raises(UserError, match=r"run\.json is not valid JSON"):
        RunFolder(tmp_path).config()


def test_reports_round_trip_and_unfinished_rounds_have_none(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    report = RoundReport(
        round_id=1,
        num_labelled=4,
        num_accepted=2,
        reasons={"accepted": 2, "outside_top_fraction": 2},
        metrics={"eval/fdp_success": Estimate(value=0.5, low=0.25, high=0.75, num_items=4)},
        models={"idm": "rounds/round-01/idm"},
        train={"idm_loss": 0.5},
        guards=(
            GuardResult(name="copy_rate", value=0.9, limit=0.5, passed=False, message="copies"),
        ),
        accepted_guards=("copy_rate",),
    )
    write_json(folder.round(1) / "report.json", report.to_json())
    assert folder.report(0) is None
    assert folder.reports(3) == [report]


def test_stage_seconds_add_up_over_resumes(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    write_json(folder.round(0) / "timings.json", {"train": 100.0})
    with folder.timed(0, "train"), folder.timed(0, "evaluate"):
        pass
    timings = folder.timings(0)
    assert 100.0 <= timings["train"] < 101.0
    assert timings["evaluate"] < 1.0


def test_training_log_survives_a_torn_line_and_repeated_steps(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "train" / "idm.jsonl")
    assert log.last_step() == 0
    log.append(25, {"loss": 2.0})
    log.append(50, {"loss": 1.5})
    with log.path.open("a") as stream:
        stream.write('{"step": 75, "lo')
    assert log.last_step() == 50
    log.append(50, {"loss": 1.25})
    assert log.lines() == [{"step": 25, "loss": 2.0}, {"step": 50, "loss": 1.25}]
    assert log.last_step() == 50


def test_flatten_joins_keys_with_dots_and_keeps_lists() -> None:
    assert flatten({"a": {"b": 1, "c": [2, 3]}, "d": None}) == {"a.b": 1, "a.c": [2, 3], "d": None}
