from pathlib import Path

import pytest
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.core.config import LoopConfig
from dynamics.core.places import Place, StorePath
from dynamics.storage.files import list_files, write_bytes
from tests.faults import faulty_proxy
from tests.runs import LocalRun, Stop, StopAt, results, run_local
from tests.stores import at_store


def adapters(folder: Place) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in list_files(folder)
        if {"idm", "fdp"} & {*path.parts}
    }


def test_a_run_in_a_store_that_was_stopped_is_byte_for_byte_the_run_in_a_folder(
    s3: StorePath, small: LoopConfig, local_run: LocalRun
) -> None:
    base = s3 / small.model.base.name
    for path in list_files(small.base_path()):
        (base / path.name).write(path.read_bytes())
    cfg = small.model_copy(update={"model": small.model.model_copy(update={"base": base})})
    run = s3 / "run"
    with pytest.raises(Stop):
        run_local(cfg, run, progress=StopAt(local_run.num_progress_calls // 2))
    run_local(cfg, run)
    assert adapters(run) == adapters(local_run.folder)
    assert results(run) == results(local_run.folder)
    names = {path.relative_to(run).as_posix() for path in list_files(run)}
    expected = {
        path.relative_to(local_run.folder).as_posix() for path in list_files(local_run.folder)
    }
    assert {name for name in names if not name.startswith("lock/")} == expected - {".lock"}


@pytest.mark.slow  # it waits before it asks again
def test_a_run_through_a_store_that_fails_a_quarter_of_the_requests_is_the_same(
    s3: StorePath, s3_url: str, small: LoopConfig, local_run: LocalRun
) -> None:
    with faulty_proxy(s3_url) as proxy, at_store(proxy.url):
        run_local(small, s3)
    assert results(s3) == results(local_run.folder)
    assert proxy.counts["reset"] > 20


def test_commands_read_a_run_in_a_store(s3: StorePath, local_run: LocalRun, tmp_path: Path) -> None:
    run = s3 / local_run.folder.name  # its page has that name
    for path in list_files(local_run.folder):
        write_bytes(run / path.relative_to(local_run.folder), path.read_bytes())
    for command, said in (
        (["verify", run], "the ledger are sound, and nothing is missing"),
        (["evaluate", run], "FDP"),
        (["report", run, "--no-open"], f"report: {run}/report.html"),
        (["export", run, "--as", "hf", "--out", tmp_path / "hf"], "hf: "),
        (["export", run, "--as", "adapters", "--out", tmp_path / "fit"], "adapters idm and fdp"),
    ):
        shown = CliRunner().invoke(app, list(map(str, command)))
        assert shown.exit_code == 0, shown.output
        assert said in shown.output
    page = local_run.folder / "report.html"
    assert (run / "report.html").read_bytes() == page.read_bytes()
