import base64
import hashlib
import io
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from playwright.sync_api import Page
from rich.console import Console

from dynamics.core.config import REPOSITORY_ROOT, GuardName
from dynamics.core.console import json_line
from dynamics.core.domain import OpenVideo
from dynamics.core.errors import UserError
from dynamics.core.images import data_uri, encode_png
from dynamics.core.records import PICTURE_SCHEMA, TRUTH_SCHEMA, GuardResult, RoundReport
from dynamics.data.video.sources import plain_text
from dynamics.evaluation.audit import audit
from dynamics.evaluation.comparison import compare
from dynamics.evaluation.confusion import by_kind
from dynamics.evaluation.heldout import results_schema
from dynamics.evaluation.metrics import summarise
from dynamics.report.charts import (
    PERCENT,
    Axis,
    Bar,
    Part,
    Point,
    Series,
    line_chart,
    percent_axis,
    stacked_bars,
)
from dynamics.report.grid import GridRow, draw_grid, grid_rows, shown_scenes
from dynamics.report.page import write_page
from dynamics.report.pictures import Frames, picture
from dynamics.report.table import round_table
from dynamics.report.versus import write_versus
from dynamics.storage.files import write_bytes
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.tables import read_table, write_table
from tests.browser import chromium, faults, needs_chromium, new_context
from tests.fakes import CellTokenizer
from tests.hostile import hostile_texts
from tests.unit.report.stored import (
    CFG,
    DOMAIN,
    HELDOUT,
    NONSENSE,
    POOL,
    TRUTH,
    items,
    pool_labels,
    report,
    store_run,
)

VOID = {"meta", "img", "input", "line", "polyline"}


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run with two finished rounds, as the loop leaves it."""
    return store_run(tmp_path, pool_labels())


def page_of(run: RunFolder) -> str:
    return write_page(run, CellTokenizer()).read_text()


class Outline(HTMLParser):
    """Open tags, to see that every one is closed, and the text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open, self.tags, self.text = list[str](), list[str](), ""
        self.headings: list[str] = []
        self._tables: dict[str, list[list[str]]] = {}
        self._table: list[list[str]] = []
        self.feed(page)

    def rows(self, name: str) -> list[list[str]]:
        """Cells of the tables of a class; a picture is its text in brackets."""
        return [[" ".join(cell.split()) for cell in row] for row in self._tables[name]]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append(tag)
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self._table = self._tables.setdefault((given.get("class") or "").split(" ")[-1], [])
        elif tag == "tr":
            self._table.append([])
        elif tag in ("td", "th"):
            self._table[-1].append("")
        elif tag == "img":
            self.handle_data(f"[{given['alt']}]")
        elif tag == "h2":
            self.headings.append("")

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
        if "td" in self.open or "th" in self.open:
            self._table[-1][-1] += data
        if "h2" in self.open:
            self.headings[-1] += data


def test_without_true_labels_the_page_compares_with_the_labelled_set_alone(run: RunFolder):
    arms = {name: items(share) for name, share in (("labelled_only", 0.4), ("round", 0.8))}
    controls = compare(arms, round_id=1, steps=600, num_pool=0)
    write_json(run.root / "controls/round-01/report.json", controls.to_json())
    page = page_of(run)
    section = page[page.index('id="controls"') :].partition("</section>")[0]
    assert "next to a model of the same base" in section
    assert "labelled set only, same steps" in section
    assert "true labels" not in section
    assert "gap closed" not in section


def test_the_page_says_what_an_audit_found(run: RunFolder):
    rows = {"label 1": "push it", "label 2": "push it", "label 3": NONSENSE}
    said = {"label 1": "push it", "label 2": "", "label 3": None}
    found = audit(1, rows, said, OpenVideo(CFG))
    write_json(run.audit(1), found.to_json())
    outline = Outline(page_of(run))
    assert "Accepted labels, named again by people" in outline.headings
    assert "accepted 50.0 % [" in outline.text
    assert "could not judge 1 more" in outline.text
    assert ["nothing changes", "1", "0", "push it (1)"] in outline.rows("")


def test_page_shows_every_part_of_a_run(run: RunFolder):
    arms = {"labelled_only": items(0.4), "round": items(0.8), "true_labels": items(0.9)}
    controls = compare(arms, round_id=1, steps=600, num_pool=1000)
    write_json(run.root / "controls/round-01/report.json", controls.to_json())
    outline = Outline(page_of(run))
    assert outline.open == []
    assert outline.headings == [
        "Held-out pairs and labels, round by round",
        "What needs no oracle",
        "Against controls",
        "The same held-out scenes in every round",
        "Where it still fails",
        "Best of N against greedy decoding",
        "FDP success by action",
        "What the IDM says, by type of action",
        "Labels that the filter accepted and rejected",
        "What the labels' confidence is worth",
        "Where the time went",
        "Training loss",
        "How to read this",
        "Lineage",
    ]
    assert "labelled set only, same steps" in outline.text


def test_what_was_asked_of_the_domain_has_a_section_only_where_it_was_measured(run: RunFolder):
    heading = "Does the action matter, and how far ahead"
    assert heading not in Outline(page_of(run)).headings
    names = ("counterfactual_both", "plan_regret", "rollout_1", "beam_rollout_1")
    later = report(1, pool_labels())
    found = {f"eval/{name}": later.metrics["eval/fdp_success"] for name in names}
    write_json(run.report_path(1), replace(later, metrics=later.metrics | found).to_json())
    outline = Outline(page_of(run))
    assert heading in outline.headings
    assert "copies of the source" in outline.text
    rows = outline.rows("")
    start = rows.index(["round", "both followed", "planner's regret"])
    assert rows[start + 2] == ["round", "roll-outs", "1 step"]  # round 0 was not asked
    asked = [row[:2] for row in rows[start + 3 : start + 5]]
    assert asked == [["1", "greedy"], ["1", "beam"]]


def runs_its_script_only(page: str) -> bool:
    """Whether the page may run nothing but the script that sorts its tables."""
    script = (REPOSITORY_ROOT / "dynamics/report/templates/page.js").read_text().rstrip("\n")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    scripts = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)
    return scripts == [script] and f"script-src 'sha256-{digest}'\"" in page


def test_page_asks_nothing_of_the_network_and_runs_its_script_only(run: RunFolder):
    page = page_of(run)
    assert runs_its_script_only(page)
    assert not re.findall(r"(?:src|href)=\"(?!data:image/png;base64,|#)", page)
    assert "url(" not in page
    assert "http" not in page.replace("http-equiv", "")
    assert "default-src 'none'" in page


def test_links_lead_to_a_section_of_the_page(run: RunFolder):
    page = page_of(run)
    places = set(re.findall(r'<section id="([^"]+)"', page))
    assert set(re.findall(r'href="#([^"]+)"', page)) == places


def test_page_stays_small_enough_to_mail(run: RunFolder):
    assert len(page_of(run)) < 500_000


def test_numbers_on_the_page_are_the_reports(run: RunFolder):
    text = Outline(page_of(run)).text.replace("\N{NO-BREAK SPACE}", " ")
    for name in ("eval/fdp_success", "label/accuracy_accepted", "eval/best_of_4"):
        rate = report(1, pool_labels()).metrics[name]
        assert f"{100 * rate.value:.1f} % [{100 * rate.low:.1f}, {100 * rate.high:.1f}]" in text


def test_text_from_outside_is_escaped(run: RunFolder):
    hostile = "<script>alert(1)</script>"
    write_json(run.data / "ingest.json", {"pool": {"rejects": {hostile: 1}}})
    write_json(run.round(1) / "report.json", report(1).to_json() | {"reasons": {hostile: 3}})
    page = page_of(run)
    assert hostile not in page
    assert NONSENSE not in page
    assert "&lt;script&gt;" in page
    assert NONSENSE in Outline(page).text


@pytest.mark.slow
def test_ten_thousand_hostile_texts_stay_text_on_the_page_and_one_line_in_a_log(
    run: RunFolder, record_property: Callable[[str, object], None]
) -> None:
    texts = list(hostile_texts(10_000))

    def tags_with(reasons: list[str]) -> list[str]:
        write_json(run.data / "ingest.json", {"pool": {"rejects": dict.fromkeys(reasons, 1)}})
        return sorted(Outline(page_of(run)).tags)

    calm = tags_with(["too_short"])
    for start in range(0, len(texts), 1000):
        assert tags_with(texts[start : start + 1000]) == calm
    assert all(len(f"x{plain_text(text)}x".splitlines()) == 1 for text in texts)
    assert all(json_line("info", text).count("\n") == 0 for text in texts)
    record_property("cases", len(texts))


def test_every_scene_shows_all_its_frames_in_one_row(run: RunFolder):
    scenes = Outline(page_of(run)).rows("scenes")
    headings, choices, *rows = scenes
    assert headings == ["before", "action", "round 0", "round 1", "truth"]
    assert choices == ["greedy", "best of 4"] * 2
    assert len(rows) == 8
    for row, action in zip(rows, HELDOUT["action"].to_pylist(), strict=False):
        assert row[0] == "[before]"
        assert row[1] == action
        assert [cell.partition("]")[0] for cell in row[2:]] == [
            "[round 0, greedy", "[round 0, best of 4",
            "[round 1, greedy", "[round 1, best of 4", "[truth",
        ]  # fmt: skip


def test_wrong_frames_are_shown_by_the_hardest_kind_first(run: RunFolder):
    gallery = page_of(run).partition('<section id="failures">')[2].partition("</section>")[0]
    rates = [int(rate) for rate in re.findall(r", (\d+) % right</figcaption>", gallery)]
    assert rates
    assert rates == sorted(rates)
    assert gallery.count("<img") == gallery.count('type="checkbox"') == 3 * len(rates)


@pytest.fixture
def own_videos(tmp_path: Path) -> RunFolder:
    """A run on videos of which nothing is known."""
    run = store_run(tmp_path / "my-robot", pool_labels())
    results = run.results(1)
    schema = results_schema(CFG.evaluate.best_of)
    table = read_table(results, schema)
    unknown = {
        name: [None] * 40 for name in schema.names if pa.types.is_boolean(schema.field(name).type)
    }
    unknown |= {"action_kind": [""] * 40, "idm_exact": [False] * 40}
    for name, values in unknown.items():
        place = table.column_names.index(name)
        table = table.set_column(
            place, schema.field(name), pa.array(values, schema.field(name).type)
        )
    for round_id in (0, 1):
        write_table(run.results(round_id), table, schema)
        report = replace(run.reports(1)[round_id], metrics=summarise(table))
        write_json(run.report_path(round_id), report.to_json())
    png = encode_png(np.full((24, 24, 3), 40, np.uint8))
    pair = HELDOUT["pair_id"][0].as_py()
    pictures = pa.table({"pair_id": [pair], "source": [png], "target": [png]}, PICTURE_SCHEMA)
    write_table(run.pictures, pictures, PICTURE_SCHEMA)
    write_json(run.record, {**read_json(run.record), "anyway": ["blind_tokenizer"]})
    (run.data / "truth.parquet").unlink()
    return run


def test_a_run_without_an_oracle_is_shown_by_its_sentences_beside_real_frames(
    own_videos: RunFolder,
):
    run = own_videos
    outline = Outline(page_of(run))
    assert "refuses this run's data (blind tokenizer); it was started all the same" in outline.text
    assert "label acc" not in outline.text
    assert "accuracy, kept" not in outline.text
    assert "read by the world's oracle" not in outline.text
    assert outline.text.count("camera, before") == 1
    assert page_of(run).count('alt="camera"') == 2
    said = HELDOUT["action"][0].as_py()
    sentences = page_of(run).partition('<section id="sentences">')[2].partition("</section>")[0]
    assert f">{said}</th>" in sentences
    assert "The last two columns are the camera's pixels" in outline.text
    assert "A tick means" not in outline.text


def test_the_page_says_when_where_and_by_which_command_it_was_made(run: RunFolder):
    assert "method: arXiv 2506.06006" in Outline(page_of(run)).text
    assert "commit" not in Outline(page_of(run)).text.partition("round by round")[0]
    for revision, said in (
        ("abcdef0123456789", "commit abcdef012345"),
        ("abcdef0123456789-dirty", "commit abcdef012345-dirty"),
        ("dynamics-bootstrap 0.2.0", "dynamics-bootstrap 0.2.0"),
    ):
        origin = {"date": "2026-11-27", "revision": revision, "hardware": "2 cores"}
        write_json(run.origin, origin)
        text = Outline(page_of(run)).text
        assert f"2026-11-27 · {said} · 2 cores" in text
    assert f"dynamics bootstrap --rounds {run.config().rounds} " in text


def test_marks_of_a_scene_are_what_the_evaluation_found(run: RunFolder):
    _, _, *rows = Outline(page_of(run)).rows("scenes")
    for round_id, skill in ((0, 0.4), (1, 0.8)):
        for column, name in ((2, "fdp_greedy_success"), (3, "best_of_4")):
            said = [row[column + 2 * round_id].partition("]")[2] for row in rows]
            found = items(skill)[name].to_pylist()[:8]
            assert said == ["✓ right" if right else "✗ wrong" for right in found]


def test_a_run_without_best_of_shows_the_greedy_frames(tmp_path: Path):
    run = store_run(tmp_path, pool_labels(), with_best_of=0)
    _, choices, *rows = Outline(page_of(run)).rows("scenes")
    assert choices == ["greedy", "greedy"]
    assert {len(row) for row in rows} == {5}


def test_labels_carry_their_reason_and_the_truth(run: RunFolder):
    rows = Outline(page_of(run)).rows("labels")
    assert rows[1] == ["Accepted: 6 of 42, highest score first"]
    assert [row[-1] for row in rows[2:8]] == ["accepted"] * 6
    assert rows[8] == ["Rejected: 6 of 18, highest score first"]
    refused = rows[9:]
    assert [row[-1] for row in refused] == ["outside top fraction"] * 5 + ["empty action"]
    assert [row[5] for row in refused] == ["✗ wrong"] * 6
    assert refused[0][3] == NONSENSE
    assert refused[-1][3:6] == ["no sentence", POOL["action"][2].as_py(), "✗ wrong"]


def test_labels_of_real_video_are_shown_without_a_verdict(run: RunFolder):
    write_table(run.data / "truth.parquet", TRUTH, TRUTH_SCHEMA)
    outline = Outline(page_of(run))
    assert outline.rows("labels")[0] == [
        "rank", "before", "after", "label", "score", "confidence", "reason"
    ]  # fmt: skip
    assert "confidence is worth" not in outline.text


def test_a_run_without_any_truth_has_a_page(run: RunFolder):
    (run.data / "truth.parquet").unlink()
    assert Outline(page_of(run)).open == []


def test_pictures_have_a_text_for_those_who_do_not_see_them(run: RunFolder):
    page = page_of(run)
    assert page.count("<img") == page.count('alt="') > 0
    assert 'alt=""' not in page
    assert page.count("<svg viewBox") == page.count('role="img" aria-label="')


def configured(run: RunFolder, sections: dict[str, Any]) -> None:
    stored = read_json(run.root / "run.json")
    write_json(run.root / "run.json", stored | {"config": stored["config"] | sections})


def test_frames_are_left_out_where_the_base_is_missing(run: RunFolder):
    configured(run, {"model": {"base": str(run.root / "gone")}})
    outline = Outline(write_page(run).read_text())
    assert "img" not in outline.tags
    assert "Scenes and example labels are left out" in outline.text
    assert "What the labels' confidence is worth" in outline.headings


def _guarded(run: RunFolder, passed: bool, accepted: tuple[GuardName, ...] = ()) -> Outline:
    result = GuardResult(
        name="copy_rate", value=0.75, limit=0.5, passed=passed, message="copies <i>much</i>"
    )
    found = replace(report(1, pool_labels()), guards=(result,), accepted_guards=accepted)
    write_json(run.round(1) / "report.json", found.to_json())
    return Outline(page_of(run))


def test_guards_show_value_limit_and_verdict(run: RunFolder):
    assert "What the guards said" not in Outline(page_of(run)).headings
    outline = _guarded(run, passed=True)
    assert outline.open == []
    assert "What the guards said" in outline.headings
    assert ["1", "✓ 0.75limit 0.5", "yes"] in outline.rows("")
    assert ["0", "–", "yes"] in outline.rows("")  # noqa: RUF001
    assert "Round 1: copies <i>much</i>" in outline.text


def test_the_run_is_what_was_promoted(run: RunFolder):
    outline = _guarded(run, passed=False)
    assert ["1", "✗ 0.75limit 0.5 · failed", "no"] in outline.rows("")
    assert "Round 1 is not promoted: it failed copy rate." in outline.text
    assert "After round 0 the FDP draws the right next frame" in outline.text


def test_an_accepted_guard_lets_the_round_pass(run: RunFolder):
    outline = _guarded(run, passed=False, accepted=("copy_rate",))
    assert ["1", "✗ 0.75limit 0.5 · accepted", "yes"] in outline.rows("")
    assert "not promoted: it failed" not in outline.text


def test_curves_of_the_study_are_shown_where_they_were_measured(run: RunFolder):
    assert "The study's curves" not in page_of(run)
    png = b"\x89PNG"
    write_bytes(run.root / "study" / "ease.png", png)
    page = page_of(run)
    assert "The study's curves" in page
    assert f'alt="Curves: ease" src="{data_uri(png)}"' in page


def test_equal_runs_give_equal_pages(run: RunFolder):
    assert page_of(run) == page_of(run)


def test_page_does_not_name_this_machine(run: RunFolder):
    page = page_of(run)
    assert str(run.root) not in page
    assert "run_dir" not in page


def test_page_does_not_pass_on_a_password_in_the_tracking_uri(run: RunFolder):
    configured(run, {"track": {"uri": "https://me:hunter2@mlflow.test"}})
    assert "hunter2" not in page_of(run)


def test_a_run_without_a_finished_round_says_so(run: RunFolder):
    for round_id in (0, 1):
        (run.round(round_id) / "report.json").unlink()
    (run.data / "heldout.parquet").unlink()
    outline = Outline(page_of(run))
    assert outline.open == []
    assert "No round is finished yet" in outline.text


def test_a_labelled_only_run_of_real_video_has_a_page(run: RunFolder):
    (run.round(1) / "report.json").unlink()
    (run.round(0) / "results.parquet").unlink()
    write_json(run.round(0) / "report.json", report(0).to_json() | {"metrics": {}})
    assert Outline(page_of(run)).open == []


def test_a_folder_without_a_run_is_refused(tmp_path: Path):
    with pytest.raises(UserError, match="holds no run"):
        write_page(RunFolder(tmp_path))


def test_a_page_decodes_its_frames_in_one_call_and_equal_ones_once(run: RunFolder):
    class Counted(CellTokenizer):
        def decode(self, codes_BL: np.ndarray) -> np.ndarray:
            asked.append(codes_BL)
            return super().decode(codes_BL)

    asked: list[np.ndarray] = []
    page = write_page(run, Counted()).read_text()
    (codes_BL,) = asked
    assert len(np.unique(codes_BL, axis=0)) == len(codes_BL) < page.count("<img")


def rows_of(found: pa.Table, heldout: pa.Table = HELDOUT, num_rows: int = 8) -> list[GridRow]:
    shown = shown_scenes(found, heldout, num_rows)
    return grid_rows(shown, Frames(CellTokenizer(), [shown]))


def test_grid_shows_one_row_per_scene_at_a_whole_factor():
    rows = rows_of(items(0.4), num_rows=3)
    picture = Image.open(io.BytesIO(draw_grid(rows)))
    source = np.asarray(rows[0].source)
    shown = np.asarray(picture)[34 : 34 + 120, 12 : 12 + 120]
    np.testing.assert_array_equal(shown, source.repeat(5, axis=0).repeat(5, axis=1))
    assert picture.height == 34 + 3 * 132


def test_grid_marks_what_the_evaluation_found():
    found = items(0.4)
    rows = rows_of(found, HELDOUT.take(list(reversed(range(40)))))
    assert [row.action for row in rows] == HELDOUT["action"].to_pylist()[:8]
    assert [row.greedy_correct for row in rows] == found["fdp_greedy_success"].to_pylist()[:8]
    assert [row.best_correct for row in rows] == found["best_of_4"].to_pylist()[:8]
    for row in rows:
        assert (row.greedy == row.target).all() == row.greedy_correct
        assert (row.best == row.target).all() == row.best_correct


def test_grid_without_best_of_shows_the_rest():
    rows = rows_of(items(0.4, with_best_of=0))
    assert [row.best for row in rows] == [None] * 8
    assert draw_grid(rows).startswith(b"\x89PNG")


def test_equal_grids_have_equal_bytes():
    first, second = (draw_grid(rows_of(items(0.4))) for _ in "ab")
    assert first == second


def test_an_empty_grid_is_refused():
    with pytest.raises(ValueError, match="at least one row"):
        draw_grid([])


def _shown(reports: list[RoundReport], seconds: dict[int, float]) -> str:
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(round_table(reports, seconds))
    return console.export_text()


def test_table_fits_an_ordinary_terminal_with_nothing_cut():
    big = report(1).to_json() | {"num_labelled": 12_000, "num_accepted": 12_000}
    text = _shown([report(0), RoundReport.from_json(big)], {0: 91.6})
    assert "…" not in text
    for word in ("round", "labels", "accepted", "copy", "IDM", "FDP", "time", "12,000", "92"):
        assert word in text
    assert f"{100 * report(1).metrics['eval/best_of_4'].value:.1f}" in text


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


def test_bars_share_a_scale_and_carry_their_seconds():
    bars = [
        Bar(
            name="a",
            parts=[Part(name="x", value=30, style="t1"), Part(name="y", value=1, style="t2")],
        ),
        Bar(
            name="b",
            parts=[Part(name="long", value=4, style="t3"), Part(name="x", value=58, style="t1")],
        ),
    ]
    root = ElementTree.fromstring(stacked_bars("t", bars, unit="s"))
    widths = [float(element.attrib["width"]) for element in root.iter("rect")]
    assert widths[1] == pytest.approx(widths[0] / 30, abs=0.1)
    assert widths[2] + widths[3] == pytest.approx(62 * widths[0] / 30, abs=0.2)
    assert widths[2] + widths[3] < 960
    texts = [element.text for element in root.iter("text")]
    assert texts == ["a", "x 30 s", "31 s", "b", "4 s", "x 58 s", "62 s"]
    assert [element.text for element in root.iter("title")][1] == "a, y: 1.0 s"


def test_bars_of_no_time_are_still_drawn():
    bars = [Bar(name="a", parts=[Part(name="x", value=0, style="t1")]), Bar(name="b", parts=[])]
    assert ElementTree.fromstring(stacked_bars("t", bars, unit="s")) is not None


@pytest.mark.parametrize(
    ("values", "low", "high"),
    [
        ([0.72, 0.95], 0.7, 0.95),
        ([0, 0.031], 0, 0.04),
        ([0, 1], 0, 1),
        ([0.5], 0.5, 0.51),
        ([], 0, 1),
    ],
)
def test_an_axis_ends_at_round_numbers_around_its_values(values, low, high):
    axis = percent_axis(values)
    assert (axis.low, axis.high) == pytest.approx((low, high))
    assert len(axis.ticks) <= 6


def test_small_frames_keep_every_pixel_and_large_ones_are_shrunk():
    rng = np.random.default_rng(0)
    for side, stored, shown in ((24, 24, 48), (32, 32, 64), (512, 64, 64)):
        frame = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        one = picture(frame)
        png = base64.b64decode(one.uri.partition(",")[2])
        image = Image.open(io.BytesIO(png))
        assert (image.size, one.side) == ((stored, stored), shown)
        if side == stored:
            np.testing.assert_array_equal(np.asarray(image.convert("RGB")), frame)
        assert len(png) < 8_000


def test_the_idms_confusion_adds_up(run: RunFolder):
    rows = by_kind(items(0.8), DOMAIN)
    assert sum(row.num_pairs for row in rows) == HELDOUT.num_rows
    assert all(sum(row.said.values()) == row.num_pairs for row in rows)
    accuracy = summarise(items(0.8))["eval/idm_accuracy"]
    assert sum(row.num_right for row in rows) == round(accuracy.value * HELDOUT.num_rows)
    assert by_kind(items(0.8), OpenVideo(CFG))[0].said.keys() == {""}


@contextmanager
def shown(url: str, **context: object) -> Iterator[Page]:
    """A page in a browser."""
    with chromium() as browser, new_context(browser, **context) as made:
        page = made.new_page()
        page.goto(url)
        yield page


@needs_chromium
def test_a_click_on_a_heading_sorts_the_table(run: RunFolder):
    page_of(run)
    with shown(run.page.as_uri()) as page:
        table = page.locator("#confusion table")
        pairs = "rows => rows.map((row) => Number(row.cells[1].textContent))"
        for up in (True, False):
            table.get_by_role("button", name="pairs").click()
            found = table.locator("tbody tr").evaluate_all(pairs)
            assert found == sorted(found, reverse=not up)
            assert table.locator("[aria-sort]").inner_text().startswith("pairs")
        unsorted = page.locator("table").filter(has_not=page.locator("thead button"))
        assert unsorted.count() == unsorted.filter(has=page.locator("img")).count() == 2


@needs_chromium
def test_rows_without_a_value_and_sums_stay_last_when_a_table_is_sorted(run: RunFolder):
    page_of(run)
    first = "rows => rows.map((row) => row.cells[0].textContent.split(' ')[0])"
    with shown(run.page.as_uri()) as page:
        for section, heading, expected in (
            ("#rounds", "label acc., all", ["1", "0"]),  # round 0 has no labels
            ("#actions", "round", ["1", "0", "pairs"]),
        ):
            table = page.locator(section).locator("table")
            button = table.get_by_role("button", name=heading)
            orders = []
            for _ in range(2):
                button.click()
                orders.append(table.locator("tbody tr, tfoot tr").evaluate_all(first))
            assert orders[-1] == expected


@needs_chromium
def test_a_chosen_picture_is_enlarged_until_escape(run: RunFolder):
    page_of(run)
    with shown(run.page.as_uri()) as page:
        picture = page.locator("#failures img").first
        small = picture.evaluate("one => one.width")
        picture.click()
        assert picture.evaluate("one => one.width") > 5 * small
        page.keyboard.press("Escape")
        assert picture.evaluate("one => one.width") == small


@needs_chromium
@pytest.mark.parametrize("kind", ["run", "own_videos"])
def test_on_a_phone_two_drawings_of_a_scene_are_seen(kind: str, request: pytest.FixtureRequest):
    run: RunFolder = request.getfixturevalue(kind)
    page_of(run)
    ends = "all => all.map((one) => one.getBoundingClientRect().right)"
    with shown(run.page.as_uri(), viewport={"width": 390, "height": 844}) as page:
        drawn = page.locator(".scenes tbody tr:first-child .drawn")
        assert sorted(drawn.evaluate_all(ends))[1] <= 390


@needs_chromium
def test_axe_finds_no_fault_on_a_report(run: RunFolder, own_videos: RunFolder):
    for one in (run, own_videos):
        page_of(one)
    with shown(write_versus(run, own_videos).as_uri()) as page:
        assert faults(page) == []
        for one in (run, own_videos):
            page.goto(one.page.as_uri())
            assert faults(page) == []
