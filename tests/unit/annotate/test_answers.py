"""Answers that survive kills, and the labelled set that they make."""

import dataclasses
import json

import pyarrow.parquet as pq
import pytest

from dynamics.annotate import answers as here
from dynamics.annotate.answers import Agreement, Answer, Journal, Shot
from dynamics.core.errors import UserError
from dynamics.data.labelled import DATASETS
from tests.made_data import picture


def shot(number: int) -> Shot:
    return Shot(
        pair_id=f"{number:032x}",
        clip_path=f"kitchen/{number}.mp4",
        clip_class="kitchen",
        frame0=3,
        frame1=23,
        t0_s=0.3,
        t1_s=2.3,
    )


def said(number: int, action: str = "", who: str = "ana", second: int = 0, kind="action") -> Answer:
    return Answer(
        shot=shot(number),
        who=who,
        when=f"2026-11-27T10:00:{second:02d}.000+00:00",
        kind=kind,
        action=action,
        round=2,
    )


def written(folder, answers):
    for who in {answer.who for answer in answers}:
        journal = Journal(folder / f"{who}.jsonl")
        for answer in answers:
            if answer.who == who:
                journal.append(answer)
        journal.close()
    for number in {answer.shot.pair_id for answer in answers}:
        here.keep_frames(folder, number, [picture(1), picture(9)])
    out = folder.parent / "labels.parquet"
    return out, here.write_labels(out, folder)


def test_a_journal_comes_back_with_what_was_taken_back_gone(tmp_path):
    journal = Journal(tmp_path / "ana.jsonl")
    for number in range(3):
        journal.append(said(number, f"push it {number} times"))
    assert journal.undo() == said(2, "push it 2 times")
    journal.close()
    again = Journal(tmp_path / "ana.jsonl")
    assert (
        again.answers == journal.answers == [said(0, "push it 0 times"), said(1, "push it 1 times")]
    )
    again.close()


def test_every_cut_of_the_file_keeps_the_whole_lines_and_takes_new_ones(tmp_path):
    path = tmp_path / "ana.jsonl"
    journal = Journal(path)
    journal.append(said(0, "öffne die Schublade"))
    first = path.stat().st_size
    journal.append(said(1, "push"))
    journal.close()
    whole = path.read_bytes()
    for size in range(first, len(whole), 29):
        path.write_bytes(whole[:size])
        cut = Journal(path)
        assert cut.answers == [said(0, "öffne die Schublade")]
        cut.append(said(2, "pull"))
        cut.close()
        assert here.all_answers(tmp_path)["ana"][1:] == [said(2, "pull")]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "ana.jsonl"
    journal = Journal(path)
    for number in range(2):
        journal.append(said(number, "push"))
    journal.close()
    path.write_text(path.read_text().replace("push", "pull", 1))
    with pytest.raises(UserError, match="line 1 is damaged"):
        Journal(path)


def test_nobody_answers_twice_at_a_time(tmp_path):
    journal = Journal(tmp_path / "ana.jsonl")
    with pytest.raises(UserError, match="ana is answering in another process"):
        Journal(tmp_path / "ana.jsonl")
    journal.close()


def test_a_line_that_does_not_fit_on_the_disk_leaves_nothing(tmp_path, monkeypatch):
    journal = Journal(tmp_path / "ana.jsonl")
    journal.append(said(0, "push"))
    write = here.os.write
    with monkeypatch.context() as patch:
        patch.setattr(here.os, "write", lambda file, line: write(file, line[:20]))
        with pytest.raises(UserError, match="disk full"):
            journal.append(said(1, "pull"))
    journal.append(said(2, "lift"))
    journal.close()
    assert here.all_answers(tmp_path)["ana"] == [said(0, "push"), said(2, "lift")]


def test_labels_are_what_most_say_with_who_when_and_round(tmp_path):
    out, rows = written(
        tmp_path / "labels.answers",
        [
            said(0, "push", "ana", 1),
            said(0, "pull", "ben", 2),
            said(0, "push", "eva", 3),
            said(1, "lift", "ben", 4),
            said(1, "drop", "ana", 5),
            said(2, kind="no_change"),
            said(3, kind="unsure"),
            said(4, "push", "ana", 6),
            said(4, "turn", "ana", 7),
        ],
    )
    table = pq.read_table(out)
    assert table.schema.names == here.LABELS_SCHEMA.names
    assert rows == table.num_rows == 3
    found = table.drop_columns(["source_image", "target_image"]).to_pylist()
    assert [(row["action"], row["who"], row["num_annotators"]) for row in found] == [
        ("push", ["ana", "eva"], 3),
        ("lift", ["ben"], 2),
        ("turn", ["ana"], 1),
    ]
    assert found[0]["when"].isoformat() == "2026-11-27T10:00:03+00:00"
    assert {row["round"] for row in found} == {2}


def test_the_labelled_set_is_read_as_one(tmp_path):
    out, _ = written(tmp_path / "labels.answers", [said(0, "push"), said(1, "pull", second=1)])
    listed = DATASETS["parquet"](out)
    assert [(pair.action, pair.sources, pair.clip_class) for pair in listed.pairs] == [
        ("push", ("kitchen/0.mp4",), "kitchen"),
        ("pull", ("kitchen/1.mp4",), "kitchen"),
    ]
    assert listed.pairs[0].frames.target.read() == picture(9)


def test_agreement_with_oneself_counts_pairs_that_were_asked_twice():
    answers = [said(0, "push"), said(1, "pull"), said(0, "push"), said(1, "lift"), said(2, "push")]
    assert (here.with_oneself(answers).same, here.with_oneself(answers).asked) == (1, 2)


def test_alpha_of_two_annotators_is_the_one_of_the_textbook():
    # Krippendorff, Computing Krippendorff's alpha-reliability (2011), example C without the gaps:
    # two observers, ten units of nominal data.
    first, second = "aabbdcccea", "bacbbcdcee"
    by_name = {
        who: [said(unit, letter, who) for unit, letter in enumerate(letters)]
        for who, letters in (("ana", first), ("ben", second))
    }
    same = sum(a == b for a, b in zip(first, second, strict=True))
    values = first + second
    observed = 1 - same / 10
    expected = 1 - sum(values.count(v) * (values.count(v) - 1) for v in set(values)) / (20 * 19)
    found = here.with_others(by_name)
    assert (found.same, found.asked) == (same, 10)
    assert found.alpha == pytest.approx(1 - observed / expected)
    everyone = {who: [said(unit, "push", who) for unit in range(3)] for who in ("ana", "ben")}
    assert here.with_others(everyone) == Agreement(3, 3, None)


def test_lines_are_readable_by_others(tmp_path):
    journal = Journal(tmp_path / "ana.jsonl")
    journal.append(said(0, "push"))
    journal.close()
    line = json.loads((tmp_path / "ana.jsonl").read_text())
    assert line["action"] == "push"
    assert line["shot"] == dataclasses.asdict(shot(0))
