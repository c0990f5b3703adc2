"""Parts on disk, and the figures that come of them."""

import io
import json

import pytest
from PIL import Image
from rich.console import Console

from dynamics.core.progress import silent
from dynamics.evaluation.aurora_bench.answer import Decode
from dynamics.evaluation.aurora_bench.benchmark import (
    PART_ITEMS,
    Benchmark,
    answer_stream,
    measure,
)
from dynamics.evaluation.aurora_bench.contestant import contestant
from dynamics.evaluation.aurora_bench.dataset import read_benchmark
from dynamics.evaluation.aurora_bench.encoders import EncoderFolders
from dynamics.evaluation.aurora_bench.summary import MEAN, METRICS, by_subset, figures, report
from dynamics.evaluation.aurora_bench.table import notes, show
from dynamics.storage.streams import run_stream


def benchmark(root, out, name="tiny") -> Benchmark:
    return Benchmark(
        contestant=contestant(name, round_id=None, family="chameleon", device="cpu"),
        decode=Decode(),
        data=read_benchmark(root),
        out=out,
    )


def never(stream, progress) -> None:
    raise AssertionError(f"{len(stream.items)} parts were made again")


@pytest.fixture
def many(write_bench):
    """More items than a part holds, one with DiscEdit prompts."""
    return write_bench(lambda rows: rows[0].update(pos="leave the red cube"), copies=3)


def parts(out) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.parquet")}


def test_a_second_call_makes_nothing_again(many, tmp_path):
    bench = benchmark(many, tmp_path / "out")
    assert len(bench.data.items) == PART_ITEMS + 2
    first = measure(bench, EncoderFolders(), silent)
    written = parts(bench.out)
    second = measure(bench, EncoderFolders(), silent, never)
    assert (first.num_made, second.num_made) == (2 + 1 + 3 * 2, 0)
    assert parts(bench.out) == written
    assert first.scores.equals(second.scores)
    assert first.answers.num_rows == PART_ITEMS + 2


def test_a_killed_run_goes_on_to_the_same_bytes(many, tmp_path):
    whole, broken = (benchmark(many, tmp_path / name) for name in ("whole", "broken"))
    measure(whole, EncoderFolders(), silent)
    list(run_stream(answer_stream(broken, broken.jobs()[1:2]), silent))
    remaining = []

    def rest(stream, progress):
        remaining.extend(stream.items)
        yield from run_stream(stream, progress)

    measure(broken, EncoderFolders(), silent, rest)
    assert len(remaining) == len(broken.jobs()) - 1
    assert parts(broken.out) == parts(whole.out)


def test_a_changed_picture_redoes_its_own_part_only(many, tmp_path):
    measure(benchmark(many, tmp_path / "out"), EncoderFolders(), silent)
    rows = json.loads((many / "test.json").read_text())
    Image.new("RGB", (64, 64)).save(many / "data/new.png")
    rows[-1]["output"] = "data/new.png"
    (many / "test.json").write_text(json.dumps(rows))
    missing = benchmark(many, tmp_path / "out").missing()
    assert [job.kind for job in missing][:1] == ["answers"]
    assert PART_ITEMS in [job.start for job in missing]
    assert len(missing) <= 2  # a changed target may be another item's random negative


def test_another_encoder_redoes_no_answer(many, tmp_path):
    bench = benchmark(many, tmp_path / "out")
    measure(bench, EncoderFolders(), silent)
    (tmp_path / "clip").mkdir()
    assert EncoderFolders(clip=tmp_path / "clip").digest() != EncoderFolders().digest()
    assert not bench.missing()


def test_the_report_holds_every_offline_metric_beside_the_copys(many, tmp_path):
    bench = benchmark(many, tmp_path / "out")
    found = report(bench, measure(bench, EncoderFolders(), silent), EncoderFolders().missing())
    needs_more = {"clip_i", "clip_t", "dino", "nearer_target_clip", "bert_score"}
    offline = {n for n, m in METRICS.items() if m.group != "judge"} - needs_more
    assert set(found.metrics) == offline
    for name, by_contestant in found.metrics.items():
        beside = {"model"} if METRICS[name].group == "preference" else {"model", "copy"}
        assert set(by_contestant) == beside, name
    assert set(found.metrics["l1"]["model"]) == {"ag", "kubric", "whatsup", MEAN}
    assert found.num_items == {"magicbrush": 0, "ag": 6, "something": 0, "whatsup": 3, "kubric": 3}
    assert found.instructions == {"truncated": 0, "with_unknown_words": 0, "unanswered": 0}
    for proof in ("nearer_target_vq", "change_iou", "disc_edit"):
        assert found.metrics[proof]["copy"][MEAN].value == 0
    json.dumps(found.to_json())
    assert any(line.startswith("DINO left out") for line in notes(found))


def test_the_copy_alone_is_measured_without_a_model(many, tmp_path):
    bench = benchmark(many, tmp_path / "out", "copy")
    found = report(bench, measure(bench, EncoderFolders(), silent, never), [])
    assert set(found.metrics) == {"l1", "ssim", "change_iou"}
    assert found.metrics["l1"] == {"copy": found.metrics["l1"]["copy"]}


def test_the_copys_scores_are_shared_between_models(many, tmp_path):
    measure(benchmark(many, tmp_path / "out", "copy"), EncoderFolders(), silent)
    copy_parts = parts(tmp_path / "out")
    both = measure(benchmark(many, tmp_path / "out"), EncoderFolders(), silent)
    assert both.num_made == 2 + 1 + 2 * 2
    assert copy_parts.items() <= parts(tmp_path / "out").items()


def test_the_mean_weighs_every_subset_the_same():
    values = by_subset(["ag", "ag", "ag", "kubric", "kubric"], [1.0, 1.0, 1.0, 0.0, None])
    found = figures("l1", values)
    assert (found["ag"].value, found["kubric"].value, found[MEAN].value) == (1, 0, 0.5)
    assert (found["kubric"].num_items, found[MEAN].num_items) == (1, 4)
    assert figures("l1", {}) == {}


def test_rejected_rows_are_told(write_bench, tmp_path):
    root = write_bench(lambda rows: rows.append({**rows[0], "output": "data/gone.png"}))
    bench = benchmark(root, tmp_path / "out", "copy")
    found = report(bench, measure(bench, EncoderFolders(), silent), [])
    assert "not used: 1 rows, missing_file" in notes(found)


@pytest.mark.parametrize(("width", "terminal"), [(80, False), (80, True), (160, True)])
def test_no_width_hides_what_is_measured(many, tmp_path, width, terminal):
    bench = benchmark(many, tmp_path / "out", "copy")
    shown = Console(file=io.StringIO(), width=width, force_terminal=terminal, no_color=True)
    show(report(bench, measure(bench, EncoderFolders(), silent), []), shown)
    lines = shown.file.getvalue()
    assert "change IoU" in lines
    assert "…" not in lines
    assert ("magicbrush" in lines) == (width > 80 or not terminal)
