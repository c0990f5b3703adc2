"""Two runs on one page."""

from dataclasses import replace
from pathlib import Path

from dynamics.report.versus import write_versus
from dynamics.storage.run_folder import read_json, write_json
from tests.unit.report.stored import pool_labels, store_run
from tests.unit.report.test_report import Outline, runs_its_script_only


def test_two_runs_stand_side_by_side_with_what_differs(tmp_path: Path) -> None:
    one, two = (store_run(tmp_path / name, pool_labels()) for name in ("one", "t<w>o"))
    record = read_json(two.record)
    record["config"]["train"]["learning_rate"] = 0.001
    write_json(two.record, record)
    page = write_versus(one, two).read_text()
    outline = Outline(page)
    assert outline.open == []
    assert "one and t<w>o" in outline.text
    assert "configs differ in 1 key." in outline.text
    assert "train.learning_rate" in outline.text
    assert "+0.0" in outline.text
    assert runs_its_script_only(page)
    assert "http" not in page.replace("http-equiv", "")


def test_runs_without_an_oracle_are_compared_by_what_needs_none(tmp_path: Path) -> None:
    run = store_run(tmp_path / "run", pool_labels())
    for report in run.reports(1):
        exact = {"eval/idm_exact": report.metrics["eval/idm_accuracy"]}
        write_json(run.report_path(report.round_id), replace(report, metrics=exact).to_json())
    text = Outline(write_versus(run, run).read_text()).text
    assert "IDM exact" in text
    assert "FDP success" not in text


def test_a_run_beside_itself_differs_in_nothing(tmp_path: Path) -> None:
    run = store_run(tmp_path / "run", pool_labels())
    page = write_versus(run, run)
    assert page.name == "versus-run.html"
    assert "Two runs of one config." in page.read_text()
