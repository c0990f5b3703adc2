import errno
import hashlib
import itertools
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import FilterConfig
from dynamics.core.errors import UserError
from dynamics.core.records import DECISION_SCHEMA, LABEL_SCHEMA, DatasetRef
from dynamics.labelling.filter import TopFractionRule, decide
from dynamics.storage import buckets
from dynamics.storage import ledger as store
from dynamics.storage.ledger import Ledger, Manifest, coverage, is_accepted
from dynamics.storage.shards import Shard
from tests.unit.storage.rows import IDM, decide_all, make_labels, parents


def commit_round(ledger: Ledger, labels: pa.Table) -> Manifest:
    if labels.num_rows:
        write_attempt(ledger, labels)
    merged = merge(ledger)
    return ledger.commit(1, merged, [decide_all(rows_of(ledger, merged))], parents())


def write_attempt(ledger: Ledger, labels: pa.Table, start: int = 0) -> Path:
    return ledger.write_attempt(1, labels, Shard(start=start, stop=start + labels.num_rows))


def merge(ledger: Ledger) -> DatasetRef:
    return ledger.merge(1, IDM, ledger.root.parent / "labels.json")


def rows_of(ledger: Ledger, merged: DatasetRef) -> pa.Table:
    tables = ledger.merged(merged, LABEL_SCHEMA.names)
    return pa.concat_tables([LABEL_SCHEMA.empty_table(), *tables])


def committed_files(ledger: Ledger) -> dict[str, bytes]:
    found = itertools.chain(ledger.root.glob("shards/*"), ledger.root.glob("rounds/*"))
    return {path.name: path.read_bytes() for path in found}


def test_committed_rows_come_back_sorted(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    labels = make_labels(50)
    manifest = commit_round(ledger, labels)
    assert ledger.rounds() == [1]
    assert ledger.manifest(1) == manifest
    assert ledger.labels(1).equals(labels.sort_by("label_id"))
    assert ledger.decisions(1).equals(decide_all(labels))
    assert sum(manifest.reasons.values()) == 50
    assert manifest.parents == parents()
    assert ledger.verify() == []


def test_accepted_labels_carry_the_score_that_they_were_accepted_for(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    write_attempt(ledger, make_labels(50))
    merged = merge(ledger)
    half = FilterConfig(rule=TopFractionRule(fraction=0.5))
    ledger.commit(1, merged, [decide(rows_of(ledger, merged), half)], parents())
    accepted, decisions = ledger.accepted(1), ledger.decisions(1)
    kept = decisions.filter(decisions["accepted"])
    assert kept.num_rows == 25
    for name in ("label_id", "score"):
        assert accepted[name].equals(kept[name])
    assert accepted["action"].equals(ledger.labels(1).filter(decisions["accepted"])["action"])


def test_labels_and_decisions_are_joined_in_any_order() -> None:
    labels = make_labels(20)
    decisions = decide_all(labels)
    shuffled = decisions.take(np.random.default_rng(0).permutation(20))
    names = labels.filter(pa.array(is_accepted(labels, shuffled)))["label_id"].to_pylist()
    assert sorted(names) == decisions.filter(decisions["accepted"])["label_id"].to_pylist()
    with pytest.raises(ValueError, match="5 labels have no decision"):
        is_accepted(labels.sort_by("label_id"), decisions.slice(5))


@pytest.mark.parametrize("num_actors", [1, 2, 4])
@pytest.mark.parametrize("shard_rows", [1, 7, 200])
def test_actors_and_order_do_not_change_a_byte(
    tmp_path: Path, num_actors: int, shard_rows: int
) -> None:
    reference = Ledger(tmp_path / "reference" / "ledger")
    labels = make_labels(60)
    commit_round(reference, labels)

    ledger = Ledger(tmp_path / "other" / "ledger")
    order = np.random.default_rng([num_actors, shard_rows]).permutation(60)
    for actor in range(num_actors):
        rows = order[actor::num_actors]
        for start in range(0, len(rows), shard_rows):
            # Each actor also repeats a row of its last shard, as a retried task does.
            chosen = rows[max(0, start - 1) : start + shard_rows]
            write_attempt(ledger, labels.take(pa.array(chosen)))
    merged = merge(ledger)
    ledger.commit(1, merged, [decide_all(rows_of(ledger, merged))], parents())
    assert committed_files(ledger) == committed_files(reference)


def test_repeated_labels_with_other_noise_resolve_by_content(tmp_path: Path) -> None:
    first, second = make_labels(10, seed=0), make_labels(10, seed=1)
    digests = set()
    for name, shards in {"a": (first, second), "b": (second, first.slice(3), first)}.items():
        ledger = Ledger(tmp_path / name)
        for shard in shards:
            write_attempt(ledger, shard)
        merged = ledger.merge(1, IDM, tmp_path / f"{name}.json")
        assert merged.num_rows == 10
        digests.add(merged.digest)
    assert len(digests) == 1


def test_a_resumed_round_skips_exactly_what_is_durable(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    labels = make_labels(30)
    assert ledger.attempted(1, IDM) == []
    write_attempt(ledger, labels.slice(0, 20), start=40)
    assert ledger.attempted(1, IDM) == [Shard(start=40, stop=60)]
    assert ledger.attempted(2, IDM) == []
    assert ledger.attempted(1, "f" * 64) == []


def test_labels_of_another_model_do_not_reach_the_merge(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    write_attempt(ledger, make_labels(5))
    write_attempt(ledger, make_labels(9, idm="f" * 64))
    assert merge(ledger).num_rows == 5


def test_the_same_attempt_is_one_file(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    labels = make_labels(8)
    assert write_attempt(ledger, labels) == write_attempt(ledger, labels.slice(0))
    assert len(list(tmp_path.glob("attempts/round-01/*"))) == 1


def test_a_damaged_attempt_is_labelled_again_and_healed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    labels = make_labels(8)
    path = write_attempt(ledger, labels)
    path.write_bytes(path.read_bytes()[:-1])
    assert ledger.attempted(1, IDM) == []
    assert path.name in ledger.verify()[0]
    write_attempt(ledger, labels)
    assert ledger.attempted(1, IDM) == [Shard(start=0, stop=8)]
    assert ledger.verify() == []


def test_committing_again_changes_nothing_and_repairs_shards(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    first = commit_round(ledger, make_labels(20))
    files = committed_files(ledger)
    for path in (tmp_path / "ledger" / "shards").iterdir():
        path.write_bytes(b"")
    assert commit_round(ledger, make_labels(20)) == first
    assert committed_files(ledger) == files


def test_other_content_for_a_committed_round_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    commit_round(ledger, make_labels(20))
    files = committed_files(ledger)
    with pytest.raises(UserError, match="round 1 is already committed with other content"):
        commit_round(ledger, make_labels(21))
    found = committed_files(ledger)
    assert {name: found[name] for name in files} == files
    assert ledger.labels(1).num_rows == 20


def test_an_empty_round_can_be_committed(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    manifest = commit_round(ledger, make_labels(0))
    assert manifest.labels == ()
    assert ledger.labels(1).num_rows == 0
    assert ledger.decisions(1).schema.equals(DECISION_SCHEMA)


def test_long_rounds_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "_ROWS_PER_SHARD", 16)
    ledger = Ledger(tmp_path / "ledger")
    manifest = commit_round(ledger, make_labels(50))
    for shards in (manifest.labels, manifest.decisions):
        assert [shard.num_rows for shard in shards] == [16, 16, 16, 2]
    assert ledger.labels(1).equals(make_labels(50).sort_by("label_id"))
    assert ledger.decisions(1).equals(decide_all(make_labels(50)))
    assert ledger.accepted(1).num_rows == 25


def test_more_labels_than_memory_holds_are_sorted_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "_ROWS_PER_SHARD", 64)
    whole = Ledger(tmp_path / "whole" / "ledger")
    for ledger in (whole, Ledger(tmp_path / "buckets" / "ledger")):
        for start in range(0, 600, 40):
            labels = make_labels(600).slice(start, 50)
            write_attempt(ledger, labels, start)
        merged = merge(ledger)
        ledger.commit(1, merged, [decide_all(rows_of(ledger, merged))], parents())
        monkeypatch.setattr(buckets, "_BUCKET_ROWS", 20)
        monkeypatch.setattr(buckets, "_SPILLED_ROWS", 100)
    assert ledger.labels(1).equals(make_labels(600).sort_by("label_id"))
    assert ledger.manifest(1) == whole.manifest(1)


@pytest.mark.parametrize(
    ("pairs", "labelled", "expected"),
    [
        ("abcab", "cba", (0, 0)),
        ("abc", "ab", (1, 0)),
        ("abc", "abd", (1, 1)),
        ("ab", "abb", (0, 1)),
        ("", "", (0, 0)),
    ],
)
def test_coverage_counts_pairs_without_a_label_and_labels_too_many(
    pairs: str, labelled: str, expected: tuple[int, int]
) -> None:
    def keys(letters: str) -> Iterator[pa.ChunkedArray]:
        for start in range(0, len(letters), 2):
            yield pa.chunked_array([list(letters[start : start + 2])])

    assert coverage(lambda: keys(pairs), lambda: keys(labelled)) == expected


def test_rows_of_another_round_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"rounds \[2\] given to round 1"):
        Ledger(tmp_path).write_attempt(1, make_labels(3, round_id=2), Shard(start=0, stop=3))


def test_decisions_must_belong_to_the_labels(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    write_attempt(ledger, make_labels(10))
    merged = merge(ledger)
    with pytest.raises(ValueError, match="one row per label"):
        ledger.commit(1, merged, [decide_all(make_labels(9))], parents())
    shuffled = decide_all(make_labels(10)).take(pa.array([1, 0, *range(2, 10)]))
    with pytest.raises(ValueError, match="one row per label"):
        ledger.commit(1, merged, [shuffled], parents())
    assert ledger.rounds() == []


def test_an_open_round_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="round 3 is not committed"):
        Ledger(tmp_path).labels(3)


def test_every_flip_and_truncation_is_named(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    commit_round(ledger, make_labels(30))
    files = [path for path in ledger.root.rglob("*") if path.is_file()]
    assert len(files) == 4  # attempt, labels, decisions, manifest
    for path in files:
        payload = path.read_bytes()
        for place in np.linspace(0, len(payload) - 1, 100).astype(int):
            flipped = bytearray(payload)
            flipped[place] ^= 1
            path.write_bytes(flipped)
            assert any(path.name in problem for problem in ledger.verify())
        for size in np.linspace(0, len(payload) - 1, 10).astype(int):
            path.write_bytes(payload[:size])
            assert any(path.name in problem for problem in ledger.verify())
        path.write_bytes(payload)
    assert ledger.verify() == []


def test_damaged_or_missing_shards_are_not_read(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    manifest = commit_round(ledger, make_labels(30))
    path = ledger.root / "shards" / f"{manifest.labels[0].sha256}.parquet"
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(UserError, match=f"{path.name} is damaged"):
        ledger.labels(1)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        ledger.labels(1)
    assert ledger.decisions(1).num_rows == 30


def test_a_manifest_cannot_point_outside_the_ledger(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    commit_round(ledger, make_labels(3))
    path = ledger.root / "rounds" / "round-01.json"
    content = json.loads(path.read_text())
    content["decisions"][0]["sha256"] = "../../secret"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"round-01\.json is damaged"):
        ledger.decisions(1)


def test_a_newer_version_reads_the_rounds_of_an_older_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Newer(Manifest):
        added: str = "default"

    ledger = Ledger(tmp_path / "ledger")
    older = commit_round(ledger, make_labels(3))
    added = pa.field("added", pa.string())
    monkeypatch.setattr("dynamics.storage.ledger.Manifest", Newer)
    monkeypatch.setattr("dynamics.storage.ledger.LABEL_SCHEMA", LABEL_SCHEMA.append(added))
    assert ledger.manifest(1) == Newer(**dict(older))
    assert ledger.labels(1)["added"].to_pylist() == [None] * 3
    assert ledger.attempted(1, IDM) == [Shard(start=0, stop=3)]
    assert ledger.verify() == []


@pytest.mark.parametrize("change", [{"version": 1}, {"version": 4}, {"added": "by a newer one"}])
def test_a_manifest_of_another_version_is_named_and_not_called_damaged(
    tmp_path: Path, change: dict[str, object]
) -> None:
    ledger = Ledger(tmp_path / "ledger")
    content = commit_round(ledger, make_labels(3)).model_dump(mode="json") | change
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    path = ledger.root / "rounds" / "round-01.json"
    written = json.dumps({**content, "digest": digest}, sort_keys=True, indent=1) + "\n"
    path.write_text(written)
    version = content["version"]
    with pytest.raises(
        UserError, match=rf"another version .* \(manifest version {version}, here 3"
    ):
        ledger.manifest(1)
    path.write_text(written.replace('"round_id": 1', '"round_id": 2'))
    with pytest.raises(UserError, match="does not match its digest"):
        ledger.manifest(1)


def test_a_manifest_under_another_name_is_refused(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "ledger")
    commit_round(ledger, make_labels(3))
    rounds = ledger.root / "rounds"
    (rounds / "round-02.json").write_bytes((rounds / "round-01.json").read_bytes())
    with pytest.raises(UserError, match="describes round 1"):
        ledger.manifest(2)


def test_full_disk_at_any_call_is_named_and_resumes_to_the_same_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    labels = make_labels(12)
    reference = Ledger(tmp_path / "reference" / "ledger")
    commit_round(reference, labels)
    messages = []
    for point in itertools.count(1):
        ledger = Ledger(tmp_path / str(point) / "ledger")
        seen = itertools.count(1)

        def full_at_point(
            call: Callable[..., Any], point: int = point, seen: Iterator[int] = seen
        ) -> Callable[..., Any]:
            def wrapper(*args: Any) -> Any:
                if next(seen) == point:
                    raise OSError(errno.ENOSPC, "no space left on device")
                return call(*args)

            return wrapper

        with monkeypatch.context() as patched:
            for name in ("open", "write", "fsync", "replace", "link", "mkdir"):
                patched.setattr(os, name, full_at_point(getattr(os, name)))
            try:
                commit_round(ledger, labels)
            except UserError as error:
                messages.append(str(error))
            else:
                break
        commit_round(ledger, labels)
        assert committed_files(ledger) == committed_files(reference)
    assert len(messages) > 30
    assert all(message.startswith("disk full: ") for message in messages)
    assert all(str(tmp_path) in message and "bytes" in message for message in messages)


@pytest.mark.parametrize("number", ["SIGKILL", pytest.param("SIGSTOP", marks=pytest.mark.slow)])
def test_a_writer_killed_or_stopped_at_any_disk_call_leaves_the_same_files_to_the_next_one(
    tmp_path: Path, number: str, record_property: Callable[[str, object], None]
) -> None:
    script = Path(__file__).with_name("kill_points.py")
    repository = Path(store.__file__).parents[2]
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), number],
        env={"PYTHONPATH": str(repository), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    *struck, unbroken = [json.loads(line) for line in result.stdout.splitlines()]
    assert [point["struck"] for point in struck] == [True] * len(struck)
    assert not unbroken["struck"]
    assert len(struck) >= 40
    for point in struck:
        assert not any(point["statuses"]), point
        assert point["files"] == unbroken["files"], point
    record_property("cases", len(struck))
