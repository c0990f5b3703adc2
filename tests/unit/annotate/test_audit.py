"""An audit estimates the share of accepted labels that are wrong, from blind answers."""

import numpy as np
import pyarrow as pa
import pytest

from dynamics.annotate.answers import Answer, Journal, Shot, keep_frames
from dynamics.annotate.audit import Audit
from dynamics.annotate.session import answers_folder
from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.records import LABEL_SCHEMA, PAIR_SCHEMA, TRANSITION_SCHEMA, RoundReport
from dynamics.data.video.sources import Clip
from dynamics.evaluation.audit import NOTHING, LabelAudit
from dynamics.evaluation.intervals import wilson
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder, read_record, write_json
from dynamics.storage.shards import Shard
from dynamics.storage.tables import write_table
from dynamics.tabletop.language import say
from dynamics.tabletop.scene import all_actions, sample_scene
from tests.fakes import filmed
from tests.made_data import picture
from tests.unit.annotate.conftest import asked
from tests.unit.storage.rows import IDM, decide_all, make_labels, make_pairs

MEANING = load_domain(LoopConfig()).meaning


def corpus() -> list:
    """Actions of a few scenes, one a meaning."""
    rng = np.random.default_rng(0)
    actions = [one for _ in range(9) for one in all_actions(sample_scene(rng, 4, 3, 4))]
    return list({MEANING(say(one, rng)): one for one in actions}.values())


def run_of(root, said: list[str], domain: str | None = None, **places: list) -> RunFolder:
    """A run whose round 1 has accepted a label for each pair of its pool."""
    run, cfg, num = RunFolder(root), LoopConfig(domain=domain), len(said)
    with run.claimed(cfg):
        pass
    labels = with_columns(make_labels(num), action=said)
    pairs = with_columns(make_pairs(num), pair_id=labels["pair_id"].to_pylist(), **places)
    write_table(run.data / "pool.parquet", pairs.select(PAIR_SCHEMA.names), PAIR_SCHEMA)
    write_table(run.data / "labelled.parquet", filmed(40)[0], TRANSITION_SCHEMA)
    ledger = Ledger(run.ledger)
    ledger.write_attempt(1, labels, Shard(start=0, stop=num))
    merged = ledger.merge(1, IDM, run.labels(1))
    decisions = [
        with_columns(decide_all(part), accepted=[True] * part.num_rows)
        for part in ledger.merged(merged, LABEL_SCHEMA.names)
    ]
    ledger.commit(1, merged, decisions, {})
    counts = {"num_labelled": num, "num_accepted": num}
    report = RoundReport(round_id=1, **counts, reasons={}, metrics={}, models={})
    write_json(run.report_path(1), report.to_json())
    return run


def with_columns(table: pa.Table, **columns: list) -> pa.Table:
    for name, values in columns.items():
        place, field = table.column_names.index(name), table.schema.field(name)
        table = table.set_column(place, field, pa.array(values, field.type))
    return table


@pytest.mark.parametrize("percent", [10, 30, 50])
def test_a_planted_share_of_flipped_sentences_is_found_within_three_points(tmp_path, percent):
    rng, num = np.random.default_rng(percent), 2000
    actions = corpus()
    true_N, far_N = rng.integers(len(actions), size=num), rng.integers(1, len(actions), size=num)
    flipped_N = rng.permutation(num) < num * percent // 100
    said_N = np.where(flipped_N, (true_N + far_N) % len(actions), true_N)
    audit = Audit(run_of(tmp_path, [say(actions[n], rng) for n in said_N]))
    names = {f"clip-{number}.mp4" for number in range(num)}
    drawn = audit.drawn(
        {name: Clip(path=None, name=name, clip_class="", version="1") for name in names}, []
    )
    answers = []
    for _ in range(500):
        shot = drawn.take().shot
        sentence = say(actions[true_N[shot.frame0]], rng)  # often in other words
        answers.append(answer(shot, sentence, audit.labels[shot.pair_id]))
    found = audit.keep({"ana": answers})
    assert abs(100 * found.wrong.value - percent) <= 3
    assert found.wrong.low <= percent / 100 <= found.wrong.high
    assert (found.wrong.num_items, found.num_unsure, found.num_accepted) == (500, 0, num)


def shots(audit: Audit, names: list[str]) -> list[Shot]:
    """All that are asked about, in their order."""
    clips = {name: Clip(path=None, name=name, clip_class="", version="1") for name in names}
    drawn = audit.drawn(clips, [])
    return [drawn.take().shot for _ in range(drawn.num_waiting)]


def answer(shot: Shot, action: str, label: str) -> Answer:
    when = "2026-11-27T10:00:00.000+00:00"
    return Answer(shot=shot, who="ana", when=when, kind="action", action=action, label=label)


def test_the_interval_covers_the_share_as_often_as_it_says_and_ends_with_the_labels():
    rng = np.random.default_rng(0)
    wrong_N = np.arange(2000) < 600
    found = [wilson(rng.permutation(wrong_N)[:500].sum(), 500, 2000) for _ in range(1000)]
    assert 0.93 <= np.mean([one.low <= 0.3 <= one.high for one in found]) <= 0.97
    # Without the labels that are left to draw the textbook's: Wilson's of 0 of 10.
    assert wilson(0, 10, 10**9).high == pytest.approx(0.2775, abs=1e-4)
    whole = wilson(3, 10, 10)
    assert whole.low == pytest.approx(0.3) == pytest.approx(whole.high)


def test_people_are_asked_blind_and_only_their_answers_to_drawn_pairs_count(opened, tmp_path):
    starts = [5 * (number // 8) for number in range(24)]
    places = {
        "clip_path": [f"class{number % 2}/{number % 8}.mp4" for number in range(24)],
        "frame0": starts,
        "frame1": [start + 5 for start in starts],
    }
    run = run_of(tmp_path / "run", ["push it"] * 24, "open_video", **places)
    audit, out = Audit(run), tmp_path / "labels.parquet"
    before = Journal(answers_folder(out) / "ana.jsonl")
    first, *_, last = shots(audit, places["clip_path"])
    for shot in (first, last):  # named for a labelled set, not drawn for the audit
        before.append(answer(shot, "lift it", ""))
        keep_frames(answers_folder(out), shot.pair_id, [picture(1), picture(9)])
    before.close()
    with opened(out, audit=audit, repeat_every=0) as session:
        state = session.state()
        assert (state["waiting"], state["task"]["pair"]) == (24, first.pair_id)
        assert not state["task"]["offer"]
        assert state["words"]  # of the labelled set
        for turn, (kind, said) in enumerate(
            [("action", "Push it."), ("action", "pull it"), ("no_change", ""), ("unsure", "")], 2
        ):
            session.answer(turn, next(asked(session)), kind, said)
    found = audit.keep(session.everybody())
    assert (found.num_accepted, found.num_unsure) == (24, 1)
    assert found.wrong == wilson(2, 3, 24)
    said = {(one.action, one.num_exact, one.instead) for one in found.sentences}
    assert said == {("push it", 1, ""), ("pull it", 0, "push it"), (NOTHING, 0, "push it")}
    assert read_record(run.audit(1), LabelAudit.from_json) == found


def test_without_accepted_labels_or_their_clips_there_is_nothing_to_audit(opened, tmp_path):
    run = run_of(tmp_path / "run", ["push it"] * 4)
    with (
        pytest.raises(UserError, match="no clip of the accepted labels"),
        opened(tmp_path / "labels.parquet", audit=Audit(run)),
    ):
        pass
    run.report_path(1).unlink()
    with pytest.raises(UserError, match="no promoted round with accepted labels"):
        Audit(run)
