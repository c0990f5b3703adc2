"""Random operations on a ledger: nothing is lost, doubled or changed, whatever comes between."""

import os
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from dynamics.core.errors import UserError
from dynamics.core.records import LABEL_SCHEMA
from dynamics.storage.ledger import Ledger
from dynamics.storage.shards import Shard
from tests.unit.storage.rows import IDM, decide_all, make_labels, parents

ROWS, ROUNDS = 24, (1, 2)
LABELS = {number: make_labels(ROWS, round_id=number) for number in ROUNDS}
CALLS = ("open", "write", "fsync", "replace", "link", "mkdir")
SHARDS = [
    Shard(start=start, stop=start + size) for size in (4, 8, 24) for start in range(0, ROWS, size)
]
shards = st.sampled_from(SHARDS)
rounds = st.sampled_from(ROUNDS)


class Crash(BaseException):
    """Ends an operation as abruptly as a kill does."""


class LedgerMachine(RuleBasedStateMachine):
    """Workers that append, crash and repeat; committers that crash; damaged attempts."""

    def __init__(self) -> None:
        super().__init__()
        self._scratch = tempfile.TemporaryDirectory()
        self.root = Path(self._scratch.name)
        self.done: dict[int, set[int]] = {number: set() for number in ROUNDS}
        self.committed: dict[int, bytes] = {}

    @property
    def ledger(self) -> Ledger:
        """Always a new one: nothing is kept in memory."""
        return Ledger(self.root / "ledger")

    @rule(number=rounds, shard=shards)
    def append(self, number: int, shard: Shard) -> None:
        rows = LABELS[number].slice(shard.start, shard.stop - shard.start)
        self.ledger.write_attempt(number, rows, shard)
        self.done[number] |= set(range(shard.start, shard.stop))

    @rule(number=rounds, shard=shards, call=st.integers(0, 9))
    def append_and_crash(self, number: int, shard: Shard, call: int) -> None:
        crashing(call, lambda: self.append(number, shard))
        self.done[number] = {
            row
            for found in self.ledger.attempted(number, IDM)
            for row in range(found.start, found.stop)
        }

    @rule(number=rounds, which=st.integers(0, 99), size=st.integers(0, 500))
    def damage_an_attempt(self, number: int, which: int, size: int) -> None:
        files = sorted(self.ledger.attempts(number).glob("*.parquet"))
        if files and number not in self.committed:
            path = files[which % len(files)]
            path.write_bytes(path.read_bytes()[:size])
            sound = self.ledger.attempted(number, IDM)
            self.done[number] = {row for one in sound for row in range(one.start, one.stop)}

    @rule(number=rounds)
    def commit(self, number: int) -> None:
        merged = self.ledger.merge(number, IDM, self.root / f"labels-{number}.json")
        tables = self.ledger.merged(merged, LABEL_SCHEMA.names)
        found = {row for rows in tables for row in rows["label_id"].to_pylist()}
        names = LABELS[number]["label_id"].to_pylist()
        assert found == {names[row] for row in self.done[number]}
        decided = [decide_all(rows) for rows in self.ledger.merged(merged, LABEL_SCHEMA.names)]
        path = self.root / "ledger" / "rounds" / f"round-{number:02d}.json"
        if number in self.committed and merged.num_rows != self.num_committed(number):
            with pytest.raises(UserError, match="already committed"):
                self.ledger.commit(number, merged, decided, parents())
        elif merged.num_rows == ROWS:  # as the loop does: when every pair has a label
            self.ledger.commit(number, merged, decided, parents())
            self.committed.setdefault(number, path.read_bytes())

    @rule(number=rounds, call=st.integers(0, 40))
    def commit_and_crash(self, number: int, call: int) -> None:
        crashing(call, lambda: self.commit(number))
        path = self.root / "ledger" / "rounds" / f"round-{number:02d}.json"
        if path.exists():
            self.committed.setdefault(number, path.read_bytes())

    def num_committed(self, number: int) -> int:
        return sum(shard.num_rows for shard in self.ledger.manifest(number).labels)

    @invariant()
    def what_is_committed_stays(self) -> None:
        ledger = self.ledger
        assert ledger.rounds() == sorted(self.committed)
        for number, payload in self.committed.items():
            path = ledger.root / "rounds" / f"round-{number:02d}.json"
            assert path.read_bytes() == payload
            assert ledger.labels(number).equals(LABELS[number].sort_by("label_id"))
        assert all("attempts" in problem for problem in ledger.verify())

    def teardown(self) -> None:
        self._scratch.cleanup()


def crashing(call: int, work: Callable[[], None]) -> None:
    """Do some work whose ``call``-th disk call ends it, half way through when it is a write."""
    left = [call]

    def patched(name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        def wrapper(*args: Any, **named: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                if name == "write" and left[0] == -1:
                    real(args[0], args[1][: len(args[1]) // 2])
                raise Crash
            return real(*args, **named)

        return wrapper

    patches = {name: patched(name, getattr(os, name)) for name in CALLS}
    with suppress(Crash), mock.patch.multiple(os, **patches):
        work()


@pytest.mark.parametrize("cases", [100, pytest.param(10_000, marks=pytest.mark.slow)])
def test_any_order_of_operations_keeps_what_is_committed(
    cases: int, record_property: Callable[[str, object], None]
) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        LedgerMachine,
        settings=settings(
            max_examples=cases // 50,
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
    record_property("cases", cases)
