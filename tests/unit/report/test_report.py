import io
import json
import re
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from dynamics.config import EvaluateConfig, LoopConfig
from dynamics.errors import UserError
from dynamics.evaluation.comparison import compare
from dynamics.evaluation.items import evaluate_items
from dynamics.evaluation.summary import summarise
from dynamics.records import Estimate, RoundReport
from dynamics.report.charts import PERCENT, Axis, Point, Series, line_chart
from dynamics.report.grid import draw_grid, grid_rows, write_grid
from dynamics.report.page import collect, render, write_page
from dynamics.report.table import round_table
from dynamics.run_folder import RunFolder, write_json
from tests.fakes import WORLD, CellTokenizer, ScriptedFDP, ScriptedIDM, filmed

CFG = LoopConfig(world=WORLD, rounds=1, evaluate=EvaluateConfig(best_of=(1, 4)))
HELDOUT, TRUTH = filmed(40)
VOID = {"meta", "img", "line", "polyline"}


@cache
def _items(skill: float, with_best_of: int = 20):
    fdp = ScriptedFDP(skill=skill, sure=lambda action: "ring" not in action)
    return evaluate_items(HELDOUT, TRUTH, ScriptedIDM(), fdp, CFG, 0, with_best_of)


def _report(round_id: int) -> RoundReport:
    metrics = summarise(_items(0.4 + 0.4 * round_id))
    reasons = {"accepted": 600, "empty_action": 400} if round_id else {}
    if round_id:
        metrics["label/accuracy"] = Estimate(value=0.7, low=0.68, high=0.72, num_items=1000)
    return RoundReport(
        round_id=round_id,
        num_labelled=sum(reasons.values()),
        num_accepted=reasons.get("accepted", 0),
        reasons=reasons,
        metrics=metrics,
        models={"idm_digest": "1" * 64, "fdp_digest": "2" * 64},
    )


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with two finished rounds, as the loop leaves it."""
    folder = RunFolder(tmp_path)
    payload = {"digest": CFG.digest(), "config": CFG.model_dump(mode="json")}
    write_json(tmp_path / "run.json", payload)
    for round_id in (0, 1):
        here = folder.round(round_id)
        write_json(here / "report.json", _report(round_id).to_json())
        write_json(here / "timings.json", {"train": 61.5, "evaluate": 20.0})
        write_grid(here / "grid.png", _items(0.4), HELDOUT, CellTokenizer())
        (here / "train").mkdir()
        line = json.dumps({"step": 25, "loss": 1.5})
        (here / "train" / "fdp.jsonl").write_text(f"{line}\n")
    return folder


class Outline(HTMLParser):
    """Open tags, to see that every one is closed, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = list[str](), list[str](), ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_shows_every_part_of_a_run(run: RunFolder):
    items = {"seed_only": _items(0.4), "round": _items(0.8), "true_labels": _items(0.9)}
    controls = compare(items, round_id=1, steps=600, num_pool=1000)
    write_json(run.root / "controls/round-01/report.json", controls.to_json())
    outline = Outline(write_page(run).read_text())
    assert outline.open == []
    for heading in ("Rounds", "Against controls", "Best of N", "FDP success by action",
                    "Labels and filter", "Samples", "Training", "Time", "Lineage"):  # fmt: skip
        assert heading in outline.text
    assert "seed only, same steps" in outline.text
    assert outline.tags.count("svg") == 4
    assert outline.tags.count("img") == 2


def test_page_asks_nothing_of_the_network_and_runs_nothing(run: RunFolder):
    page = write_page(run).read_text()
    assert "script" not in Outline(page).tags
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,)", page)
    assert "url(" not in page
    assert "default-src 'none'" in page


def test_numbers_on_the_page_are_the_reports(run: RunFolder):
    metrics = _report(1).metrics
    assert metrics["eval/fdp_success"].percent() in Outline(write_page(run).read_text()).text


def test_text_from_outside_is_escaped(run: RunFolder):
    hostile = "<script>alert(1)</script>"
    write_json(run.data / "ingest.json", {"pool": {"rejects": {hostile: 1}}})
    report = _report(1).to_json() | {"reasons": {hostile: 3}}
    write_json(run.round(1) / "report.json", report)
    page = write_page(run).read_text()
    assert hostile not in page
    assert "&lt;script&gt;" in page


def test_equal_runs_give_equal_pages(run: RunFolder):
    assert write_page(run).read_bytes() == write_page(run).read_bytes()


def test_page_does_not_name_this_machine(run: RunFolder):
    assert str(run.root) not in write_page(run).read_text()
    assert "run_dir" not in write_page(run).read_text()


def test_page_does_not_pass_on_a_password_in_the_tracking_uri(run: RunFolder):
    config = CFG.model_dump(mode="json") | {"track": {"uri": "https://me:hunter2@mlflow.test"}}
    write_json(run.root / "run.json", {"digest": CFG.digest(), "config": config})
    assert "hunter2" not in write_page(run).read_text()


def test_a_run_without_a_finished_round_says_so(run: RunFolder):
    for round_id in (0, 1):
        (run.round(round_id) / "report.json").unlink()
    outline = Outline(render(collect(run)))
    assert outline.open == []
    assert "No round is finished yet" in outline.text


def test_a_seed_only_run_of_real_video_has_a_page(run: RunFolder):
    (run.round(1) / "report.json").unlink()
    (run.round(0) / "grid.png").unlink()
    write_json(run.round(0) / "report.json", _report(0).to_json() | {"metrics": {}})
    assert Outline(render(collect(run))).open == []


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run"):
        write_page(RunFolder(tmp_path))


def test_grid_shows_one_row_per_scene_at_a_whole_factor():
    rows = grid_rows(_items(0.4), HELDOUT, CellTokenizer(), num_rows=3)
    picture = Image.open(io.BytesIO(draw_grid(rows)))
    source = np.asarray(rows[0].before)
    shown = np.asarray(picture)[34 : 34 + 120, 12 : 12 + 120]
    np.testing.assert_array_equal(shown, source.repeat(5, axis=0).repeat(5, axis=1))
    assert picture.height == 34 + 3 * 132


def test_grid_marks_what_the_evaluation_found():
    items = _items(0.4)
    rows = grid_rows(items, HELDOUT.take(list(reversed(range(40)))), CellTokenizer())
    assert [row.action for row in rows] == HELDOUT["action"].to_pylist()[:8]
    assert [row.greedy_right for row in rows] == items["fdp_greedy_success"].to_pylist()[:8]
    assert [row.best_right for row in rows] == items["best_of_4"].to_pylist()[:8]
    for row in rows:
        assert (row.greedy == row.truth).all() == row.greedy_right
        assert (row.best == row.truth).all() == row.best_right


def test_grid_without_best_of_shows_the_rest():
    rows = grid_rows(_items(0.4, with_best_of=0), HELDOUT, CellTokenizer())
    assert [row.best for row in rows] == [None] * 8
    assert draw_grid(rows).startswith(b"\x89PNG")


def test_equal_grids_have_equal_bytes():
    first, second = (draw_grid(grid_rows(_items(0.4), HELDOUT, CellTokenizer())) for _ in "ab")
    assert first == second


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        draw_grid([])


def _shown(reports: list[RoundReport], seconds: dict[int, float]) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(round_table(reports, seconds))
    return console.export_text()


def test_table_fits_an_ordinary_terminal_with_nothing_cut():
    big = _report(1).to_json() | {"num_labelled": 12_000, "num_accepted": 12_000}
    text = _shown([_report(0), RoundReport.from_json(big)], {0: 91.6})
    assert "…" not in text
    for word in ("round", "labelled", "kept", "copy", "IDM", "FDP", "seconds", "12,000", "92"):
        assert word in text
    assert f"{100 * _report(1).metrics['eval/best_of_4'].value:.1f}" in text


def test_table_of_no_rounds_is_a_heading():
    assert "round" in _shown([], {})


def test_chart_is_well_formed_and_escapes_names():
    points = [Point(x=0, y=0.5, low=0.4, high=0.6, note="<b>")]
    series = [Series(name="a < b & c", points=points, style="s1")]
    axis = Axis(low=0, high=0, ticks=[(0, "0")])
    root = ElementTree.fromstring(line_chart("t", series, axis, PERCENT, x_title="round"))
    assert "a < b & c" in [element.text for element in root.iter("text")]


def test_names_of_lines_that_end_together_do_not_overlap():
    axis = Axis(low=0, high=1, ticks=[])
    for end in (0.0, 0.5, 1.0):
        series = [
            Series(name=f"line {n}", style="s1", points=[Point(x=1, y=end, low=0, high=0, note="")])
            for n in range(4)
        ]
        root = ElementTree.fromstring(line_chart("t", series, axis, PERCENT, x_title=""))
        names = [e for e in root.iter("text") if (e.text or "").startswith("line")]
        heights = sorted(float(element.attrib["y"]) for element in names)
        assert min(np.diff(heights)) >= 14
        assert heights[-1] <= 300
