"""The ledger: pseudo-labels that are never lost, never doubled and never rewritten.

    attempts/round-01/<sha256>.parquet   what workers wrote; any number, any order, repeats allowed
    shards/<sha256>.parquet              committed labels and decisions, immutable
    rounds/round-01.json                 the manifest: created once, last; it exists = committed

Workers only append attempts. One committer drops repeats by ``label_id``, sorts, cuts shards of a
fixed size and creates the manifest if it is absent, so that equal rows give equal bytes whoever
wrote them. A shard's name is the sha256 of its bytes: damage is found on every read. There are no
timestamps, host names or pointers; everything else can be derived from the manifests.
"""

import hashlib
import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field

from dynamics.core.errors import UserError
from dynamics.core.records import DECISION_SCHEMA, LABEL_SCHEMA, PAIR_SCHEMA, DatasetRef
from dynamics.storage.files import create_bytes, write_bytes
from dynamics.storage.pairs import is_whole
from dynamics.storage.parquet import from_parquet, to_parquet
from dynamics.storage.sealed import ContentFile, Sealed
from dynamics.storage.tables import read_table, write_table

_ROWS_PER_SHARD = 65_536
_MANIFEST_NAME = re.compile(r"round-(\d{2,})\.json")


class Manifest(Sealed):
    """Everything that a round committed.

    A new field has a default and a new column is nullable, so that older rounds stay readable.
    """

    version: Literal[2] = 2
    """Format; another one cannot be read. Version 1 had a column per score."""
    round_id: int = Field(ge=0)
    labels: tuple[ContentFile, ...]
    """LABEL_SCHEMA, sorted by label_id over all shards."""
    decisions: ContentFile
    """DECISION_SCHEMA, one row per label, same order."""
    reasons: dict[str, int]
    """Labels per decision reason."""
    parents: dict[str, str]
    """Digests of what the labels were made from: pool, idm, config, prompt version."""


class Ledger:
    """The label store below one folder: any number of writers, at most one content per round."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write_attempt(self, round_id: int, labels: pa.Table) -> Path:
        """Store a worker's labels (LABEL_SCHEMA, any order); durable when it returns.

        Writing the same rows again changes nothing. Returns the attempt's file.

        Raises:
            ValueError: rows of another round, or another schema.
            UserError: the disk is full.
        """
        _check_round(labels, round_id)
        payload = to_parquet(labels.sort_by("label_id"), LABEL_SCHEMA)
        path = self.attempts(round_id) / f"{hashlib.sha256(payload).hexdigest()}.parquet"
        if not (path.exists() and path.read_bytes() == payload):
            write_bytes(path, payload)
        return path

    def attempted(self, round_id: int, idm_digest: str) -> set[str]:
        """The pair_ids that have a durable label by this IDM: what a resumed round skips.

        A damaged attempt counts as not written, so its pairs are labelled again.
        """
        done: set[str] = set()
        for rows in self._read_attempts(round_id, idm_digest):
            done.update(rows["pair_id"].to_pylist())
        return done

    def merge(self, round_id: int, idm_digest: str, out: Path) -> DatasetRef:
        """Write the round's attempts as one table: one row per label_id, sorted by it.

        When a label was computed twice with other floating-point noise, the choice depends on the
        rows alone, not on who wrote which file.
        """
        attempts = list(self._read_attempts(round_id, idm_digest))
        rows = pa.concat_tables([LABEL_SCHEMA.empty_table(), *attempts])
        return write_table(out, _one_per_label(rows), LABEL_SCHEMA)

    def commit(
        self, round_id: int, labels: DatasetRef, decisions: pa.Table, parents: dict[str, str]
    ) -> Manifest:
        """Make a round part of the ledger; committing the same content again changes nothing.

        Args:
            round_id: The round.
            labels: What `merge` returned.
            decisions: DECISION_SCHEMA, one row per label in the order of the labels.
            parents: Digests of pool, idm and config, and the prompt version.

        Raises:
            UserError: the round was committed before with other content, or the disk is full.
            ValueError: labels and decisions do not belong together.
        """
        rows = read_table(labels, LABEL_SCHEMA)
        _check_round(rows, round_id)
        _check_pairing(rows, decisions)
        starts = range(0, rows.num_rows, _ROWS_PER_SHARD)
        label_files = [to_parquet(rows.slice(at, _ROWS_PER_SHARD), LABEL_SCHEMA) for at in starts]
        decision_file = to_parquet(decisions, DECISION_SCHEMA)
        manifest = Manifest(
            round_id=round_id,
            labels=tuple(
                _shard(payload, min(_ROWS_PER_SHARD, rows.num_rows - at))
                for at, payload in zip(starts, label_files, strict=True)
            ),
            decisions=_shard(decision_file, decisions.num_rows),
            reasons=reason_counts(decisions),
            parents=parents,
        )
        if round_id in self.rounds():
            self._refuse_other(manifest)
        for payload in (*label_files, decision_file):
            self._write_shard(payload)
        if not create_bytes(self._manifest_path(round_id), manifest.to_bytes()):
            self._refuse_other(manifest)
        return manifest

    def rounds(self) -> list[int]:
        """The committed rounds, ascending."""
        names = (_MANIFEST_NAME.fullmatch(path.name) for path in self._rounds.glob("*.json"))
        return sorted(int(match[1]) for match in names if match)

    def manifest(self, round_id: int) -> Manifest:
        """The manifest of a committed round.

        Raises:
            UserError: the round is not committed, or its manifest is damaged.
        """
        path = self._manifest_path(round_id)
        if not path.exists():
            raise UserError(f"round {round_id} is not committed: {path} does not exist")
        manifest = Manifest.from_bytes(path.read_bytes(), where=path)
        if manifest.round_id != round_id:
            raise UserError(f"{path} is damaged: it describes round {manifest.round_id}")
        return manifest

    def labels(self, round_id: int) -> pa.Table:
        """The labels of a committed round (LABEL_SCHEMA), sorted by label_id.

        Raises:
            UserError: not committed, or a shard is missing or damaged.
        """
        shards = self.manifest(round_id).labels
        tables = [self._read_shard(shard, LABEL_SCHEMA) for shard in shards]
        return pa.concat_tables([LABEL_SCHEMA.empty_table(), *tables])

    def decisions(self, round_id: int) -> pa.Table:
        """The decisions of a committed round (DECISION_SCHEMA), sorted by label_id.

        Raises:
            UserError: not committed, or the shard is missing or damaged.
        """
        return self._read_shard(self.manifest(round_id).decisions, DECISION_SCHEMA)

    def decisions_ref(self, round_id: int) -> DatasetRef:
        """Reference to the decisions of a committed round (DECISION_SCHEMA)."""
        shard = self.manifest(round_id).decisions
        path = self._shard_path(shard.sha256)
        return DatasetRef(path=path, num_rows=shard.num_rows, digest=shard.sha256)

    def accepted(self, round_id: int) -> pa.Table:
        """The accepted labels of a committed round, sorted by label_id.

        LABEL_SCHEMA, then ``score``: the one that the filter compared.
        """
        labels, decisions = self.labels(round_id), self.decisions(round_id)
        scored = labels.append_column("score", decisions["score"])
        return scored.filter(pa.array(is_accepted(labels, decisions)))

    def verify(self, pool: Path | None = None) -> list[str]:
        """Read every file and compare it with its digest; one line per problem, naming the file.

        With a ``pool`` that exists (PAIR_SCHEMA), every round must have one label for each pair.
        """
        problems = []
        pairs = None
        if pool is not None and is_whole(pool):
            try:
                pairs = read_table(pool, PAIR_SCHEMA, ["pair_id"])["pair_id"]
            except UserError as error:
                problems.append(str(error))
        for round_id in self.rounds():
            try:
                manifest = self.manifest(round_id)
            except UserError as error:
                problems.append(str(error))
                continue
            damaged = list(self._damaged_shards(manifest))
            problems += damaged
            if pairs is None or damaged:
                continue
            missing, surplus = coverage(pairs, self.labels(round_id)["pair_id"])
            if missing or surplus:
                problems.append(
                    f"{self._manifest_path(round_id)} lacks a label for {missing:,} of the "
                    f"{len(pairs):,} pairs in {pool} and has {surplus:,} too many; committed "
                    "rounds never change: use another run_dir"
                )
        for path in sorted(self.root.glob("attempts/round-*/*.parquet")):
            if _sound(path) is None:
                problems.append(f"{path} is damaged; delete it, its pairs are labelled again")
        return problems

    def attempts(self, round_id: int) -> Path:
        """The folder that workers write a round's labels into."""
        return self.root / "attempts" / f"round-{round_id:02d}"

    def _damaged_shards(self, manifest: Manifest) -> Iterator[str]:
        for shard in (*manifest.labels, manifest.decisions):
            try:
                self._shard_bytes(shard)
            except UserError as error:
                yield f"{error} (round {manifest.round_id})"

    @property
    def _rounds(self) -> Path:
        return self.root / "rounds"

    def _manifest_path(self, round_id: int) -> Path:
        return self._rounds / f"round-{round_id:02d}.json"

    def _shard_path(self, sha256: str) -> Path:
        return self.root / "shards" / f"{sha256}.parquet"

    def _read_attempts(self, round_id: int, idm_digest: str) -> Iterator[pa.Table]:
        for path in sorted(self.attempts(round_id).glob("*.parquet")):
            payload = _sound(path)
            if payload is not None:
                rows = from_parquet(payload, LABEL_SCHEMA, where=path)
                yield rows.filter(pc.equal(rows["idm_digest"], idm_digest))

    def _write_shard(self, payload: bytes) -> None:
        path = self._shard_path(hashlib.sha256(payload).hexdigest())
        # Compared, not only looked for: committing again repairs a damaged shard.
        if not (path.exists() and path.read_bytes() == payload):
            write_bytes(path, payload)

    def _shard_bytes(self, shard: ContentFile) -> bytes:
        path = self._shard_path(shard.sha256)
        if not path.exists():
            raise UserError(f"{path} is missing; restore it from a copy of the ledger")
        payload = _sound(path)
        if payload is None:
            raise UserError(f"{path} is damaged; restore it from a copy of the ledger")
        return payload

    def _read_shard(self, shard: ContentFile, schema: pa.Schema) -> pa.Table:
        where = self._shard_path(shard.sha256)
        return from_parquet(self._shard_bytes(shard), schema, where=where)

    def _refuse_other(self, manifest: Manifest) -> None:
        path = self._manifest_path(manifest.round_id)
        if self.manifest(manifest.round_id) != manifest:
            raise UserError(
                f"round {manifest.round_id} is already committed with other content in {path}; "
                "committed rounds never change: use another run_dir"
            )


def is_accepted(labels: pa.Table, decisions: pa.Table) -> NDArray[np.bool_]:
    """Mask of the accepted labels, bool [B].

    Args:
        labels: LABEL_SCHEMA, any order; a label may occur more than once.
        decisions: DECISION_SCHEMA over these labels, any order.

    Raises:
        ValueError: a label without a decision.
    """
    ids = decisions["label_id"].combine_chunks()
    rows = pc.index_in(labels["label_id"], value_set=ids)
    if rows.null_count:
        raise ValueError(f"{rows.null_count} labels have no decision")
    verdicts: NDArray[np.bool_] = decisions["accepted"].take(rows).to_numpy()
    return verdicts


def coverage(pairs: pa.ChunkedArray, labelled: pa.ChunkedArray) -> tuple[int, int]:
    """Number of pairs without a label, and of labels that are repeats or belong to no pair.

    Args:
        pairs: The pair_ids of a pool; a repeated one needs one label.
        labelled: The pair_ids of its labels.
    """
    wanted = pc.unique(pairs)
    found = pc.sum(pc.is_in(wanted, value_set=pc.unique(labelled)), min_count=0).as_py()
    return len(wanted) - found, len(labelled) - found


def _sound(path: Path) -> bytes | None:
    """The bytes of a content-named file, None when they do not match the name."""
    payload = path.read_bytes()
    return payload if hashlib.sha256(payload).hexdigest() == path.stem else None


def _shard(payload: bytes, num_rows: int) -> ContentFile:
    return ContentFile(sha256=hashlib.sha256(payload).hexdigest(), num_rows=num_rows)


def _check_round(labels: pa.Table, round_id: int) -> None:
    found = set(pc.unique(labels["round_id"]).to_pylist())
    if not found <= {round_id}:
        raise ValueError(f"labels of rounds {sorted(found)} given to round {round_id}")


def _check_pairing(labels: pa.Table, decisions: pa.Table) -> None:
    ids = labels["label_id"].to_pylist()
    if any(first >= second for first, second in itertools.pairwise(ids)):
        raise ValueError("labels must be sorted by label_id, without repeats")
    if not all(decisions[key].equals(labels[key]) for key in ("label_id", "pair_id")):
        raise ValueError("decisions must have one row per label, in the order of the labels")


def _one_per_label(rows: pa.Table) -> pa.Table:
    """One row per label_id, sorted by it; among repeats the one whose text is smallest."""
    ids = np.array(rows["label_id"].to_pylist(), dtype=object)
    order = np.argsort(ids, kind="stable")
    same = ids[order][1:] == ids[order][:-1]
    if not same.any():
        return rows.take(pa.array(order))
    keep = []
    for group in np.split(order, np.flatnonzero(~same) + 1):
        texts = (
            [repr(row) for row in rows.take(pa.array(group)).to_pylist()]
            if len(group) > 1
            else [""]
        )
        keep.append(int(group[texts.index(min(texts))]))
    return rows.take(pa.array(keep))


def reason_counts(decisions: pa.Table) -> dict[str, int]:
    """Rows per reason that occurs; they sum to the number of rows."""
    counts = pc.value_counts(decisions["reason"]).to_pylist()
    return {entry["values"]: int(entry["counts"]) for entry in counts}
