"""The ledger: pseudo-labels that are never lost, never doubled and never rewritten.

    attempts/round-01/<idm>-<start>-<stop>-<sha256>.parquet
                             what workers wrote about rows of the pool; any number, repeats allowed
    shards/<sha256>.parquet  labels and decisions, immutable
    rounds/round-01.json     the manifest: created once, last; it exists = committed

Workers only append attempts. One committer drops repeats by ``label_id``, sorts, cuts shards of a
fixed size and creates the manifest if it is absent, so that equal rows give equal bytes whoever
wrote them. A file's name ends in the sha256 of its bytes: damage is found on every read. There are
no timestamps, host names or pointers; everything else can be derived from the manifests.

Everything that holds a row for each label is read and written a shard at a time.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import Field, model_validator

from dynamics.core.errors import UserError
from dynamics.core.places import Place, matching
from dynamics.core.records import DECISION_SCHEMA, LABEL_SCHEMA, PAIR_SCHEMA, DatasetRef
from dynamics.storage.buckets import Buckets
from dynamics.storage.files import create_bytes, write_bytes
from dynamics.storage.pairs import is_whole
from dynamics.storage.parquet import from_parquet, to_parquet
from dynamics.storage.sealed import ContentFile, Sealed
from dynamics.storage.shards import Shard
from dynamics.storage.tables import iter_table

_ROWS_PER_SHARD = 65_536
_MANIFEST_NAME = re.compile(r"round-(\d{2,})\.json")
_ATTEMPT_NAME = re.compile(r"([0-9a-f]{12})-(\d+)-(\d+)-[0-9a-f]{64}\.parquet")

Keys = Callable[[], Iterator[pa.ChunkedArray]]
"""Reads a key column from its beginning, some rows at a time."""


class Merged(Sealed):
    """The labels of a round before they are decided on."""

    version: Literal[1] = 1
    labels: tuple[ContentFile, ...]
    """LABEL_SCHEMA, sorted by label_id over all shards."""


class Manifest(Sealed):
    """Everything that a round committed.

    A new field has a default and a new column is nullable, so that older rounds stay readable.
    """

    version: Literal[3] = 3
    """Format; version 2 is read as well. Version 1 had a column per score."""
    round_id: int = Field(ge=0)
    labels: tuple[ContentFile, ...]
    """LABEL_SCHEMA, sorted by label_id over all shards."""
    decisions: tuple[ContentFile, ...]
    """DECISION_SCHEMA, one row per label, same order; in version 2 one shard."""
    reasons: dict[str, int]
    """Labels per decision reason."""
    parents: dict[str, str]
    """Digests of what the labels were made from: pool, idm, config, prompt version."""

    @model_validator(mode="before")
    @classmethod
    def _of_version_2(cls, content: Any) -> Any:
        if isinstance(content, Mapping) and content.get("version") == 2:
            return {**content, "version": 3, "decisions": [content.get("decisions")]}
        return content


class Ledger:
    """The label store below one folder: any number of writers, at most one content per round."""

    def __init__(self, root: Place) -> None:
        self.root = root

    def write_attempt(self, round_id: int, labels: pa.Table, shard: Shard) -> Place:
        """Store a worker's labels (LABEL_SCHEMA, any order); durable when it returns.

        Writing the same rows again changes nothing. Returns the attempt's file.

        Args:
            round_id: The round.
            labels: All by one IDM.
            shard: The rows of the pool that they are about.

        Raises:
            ValueError: rows of another round or of two IDMs, or another schema.
            UserError: the disk is full.
        """
        _check_round(labels, round_id)
        payload = to_parquet(labels.sort_by("label_id"), LABEL_SCHEMA)
        (idm,) = pc.unique(labels["idm_digest"]).to_pylist()
        sha256 = hashlib.sha256(payload).hexdigest()
        name = f"{idm[:12]}-{shard.start}-{shard.stop}-{sha256}.parquet"
        path = self.attempts(round_id) / name
        _write_unless_there(path, payload)
        return path

    def attempted(self, round_id: int, idm_digest: str, *, checked: bool = True) -> list[Shard]:
        """The rows of the pool that have a durable label by this IDM: a resumed round skips them.

        A damaged attempt counts as not written, so its pairs are labelled again; with ``checked``
        False the names are believed.
        """
        found = self._attempts_of(round_id, idm_digest)
        return [shard for path, shard in found if not checked or _sound(path) is not None]

    def merge(self, round_id: int, idm_digest: str, out: Place) -> DatasetRef:
        """Write the round's attempts as shards, one row per label_id, sorted by it.

        When a label was computed twice with other floating-point noise, the choice depends on the
        rows alone, not on who wrote which file.

        Args:
            round_id: The round.
            idm_digest: Of the IDM whose attempts count.
            out: Gets the list of the shards (`Merged`).
        """
        attempts = self._attempts_of(round_id, idm_digest)
        size = sum(shard.stop - shard.start for _, shard in attempts)
        with Buckets(LABEL_SCHEMA, "label_id", size) as buckets:
            for path, _ in attempts:
                if (payload := _sound(path)) is not None:
                    buckets.add(from_parquet(payload, LABEL_SCHEMA, where=path))
            unique = map(_one_per_label, map(buckets.bucket, buckets.prefixes()))
            shards = [
                self._write_shard(rows, LABEL_SCHEMA) for rows in _cut(unique, _ROWS_PER_SHARD)
            ]
        payload = Merged(labels=tuple(shards)).to_bytes()
        write_bytes(out, payload)
        return _ref(out, payload, shards)

    def merged(self, labels: DatasetRef, columns: Sequence[str]) -> Iterator[pa.Table]:
        """Columns of what `merge` wrote, a shard at a time, sorted by label_id."""
        for shard in _merged(labels).labels:
            yield self._read_shard(shard, LABEL_SCHEMA, columns)

    def commit(
        self,
        round_id: int,
        labels: DatasetRef,
        decisions: Iterable[pa.Table],
        parents: dict[str, str],
    ) -> Manifest:
        """Make a round part of the ledger; committing the same content again changes nothing.

        Args:
            round_id: The round.
            labels: What `merge` returned.
            decisions: DECISION_SCHEMA, one row per label in the order of the labels, however cut.
            parents: Digests of pool, idm and config, and the prompt version.

        Raises:
            UserError: the round was committed before with other content, or the disk is full.
            ValueError: labels and decisions do not belong together.
        """
        shards, reasons = _merged(labels).labels, Counter[str]()
        decided: list[ContentFile] = []
        last = ""
        for shard, rows in zip(shards, _paired(decisions, shards), strict=True):
            found = self._read_shard(shard, LABEL_SCHEMA, ["label_id", "pair_id", "round_id"])
            _check_round(found, round_id)
            last = _check_pairing(found, rows, after=last)
            decided.append(self._write_shard(rows, DECISION_SCHEMA))
            reasons.update(reason_counts(rows))
        manifest = Manifest(
            round_id=round_id,
            labels=shards,
            decisions=tuple(decided),
            reasons=dict(reasons),
            parents=parents,
        )
        path = self._manifest_path(round_id)
        if not create_bytes(path, manifest.to_bytes()) and self.manifest(round_id) != manifest:
            raise UserError(
                f"round {round_id} is already committed with other content in {path}; "
                "committed rounds never change: use another run_dir"
            )
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

    def labels(self, round_id: int, columns: Sequence[str] | None = None) -> pa.Table:
        """All labels of a committed round, see `iter_labels`."""
        return _whole(self.iter_labels(round_id, columns), LABEL_SCHEMA, columns)

    def decisions(self, round_id: int, columns: Sequence[str] | None = None) -> pa.Table:
        """All decisions of a committed round, see `iter_decisions`."""
        return _whole(self.iter_decisions(round_id, columns), DECISION_SCHEMA, columns)

    def iter_labels(
        self, round_id: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The labels of a committed round (LABEL_SCHEMA, or some columns), sorted by label_id.

        Raises:
            UserError: not committed, or a shard is missing or damaged.
        """
        for shard in self.manifest(round_id).labels:
            yield self._read_shard(shard, LABEL_SCHEMA, columns)

    def iter_decisions(
        self, round_id: int, columns: Sequence[str] | None = None
    ) -> Iterator[pa.Table]:
        """The decisions of a committed round (DECISION_SCHEMA), row by row those of `iter_labels`.

        Raises:
            UserError: not committed, or a shard is missing or damaged.
        """
        manifest = self.manifest(round_id)
        found = (self._read_shard(part, DECISION_SCHEMA, columns) for part in manifest.decisions)
        return _paired(found, manifest.labels)

    def iter_decided(
        self, round_id: int, columns: Sequence[str] = LABEL_SCHEMA.names
    ) -> Iterator[pa.Table]:
        """The labels of a committed round with their decisions, sorted by label_id.

        The named columns of LABEL_SCHEMA, then ``accepted``, ``score`` and ``reason``.
        """
        more = [DECISION_SCHEMA.field(name) for name in ("accepted", "score", "reason")]
        labels = self.iter_labels(round_id, columns)
        decisions = self.iter_decisions(round_id, [field.name for field in more])
        for rows, decided in zip(labels, decisions, strict=True):
            schema = pa.schema([*rows.schema, *more])
            yield pa.table([*rows.columns, *decided.columns], schema=schema)

    def iter_accepted(
        self, round_id: int, columns: Sequence[str] = LABEL_SCHEMA.names
    ) -> Iterator[pa.Table]:
        """The accepted ones of `iter_decided`."""
        for rows in self.iter_decided(round_id, columns):
            yield rows.filter(rows["accepted"])

    def accepted(self, round_id: int) -> pa.Table:
        """All accepted labels of a committed round (LABEL_SCHEMA), see `iter_accepted`."""
        schema = pa.schema([*LABEL_SCHEMA, *list(DECISION_SCHEMA)[2:]])
        return _whole(self.iter_accepted(round_id), schema, None)

    def ref(self, round_id: int) -> DatasetRef:
        """Reference to the labels and decisions of a committed round."""
        path = self._manifest_path(round_id)
        return _ref(path, path.read_bytes(), self.manifest(round_id).labels)

    def verify(self, pool: Place | None = None) -> list[str]:
        """Read every file and compare it with its digest; one line per problem, naming the file.

        With a ``pool`` that exists (PAIR_SCHEMA), every round must have one label for each pair.
        """
        problems = []
        if pool is not None and is_whole(pool):
            try:
                _fingerprint(keys_of(pool))
            except UserError as error:
                problems.append(str(error))
                pool = None
        else:
            pool = None
        for round_id in self.rounds():
            try:
                manifest = self.manifest(round_id)
            except UserError as error:
                problems.append(str(error))
                continue
            damaged = list(self._damaged_shards(manifest))
            problems += damaged
            if pool is not None and not damaged:
                problems += self._uncovered(round_id, pool)
        for path in matching(self.root, "attempts/round-*/*.parquet"):
            if _sound(path) is None:
                problems.append(f"{path} is damaged; delete it, its pairs are labelled again")
        return problems

    def _uncovered(self, round_id: int, pool: Place) -> Iterator[str]:
        def labelled() -> Iterator[pa.ChunkedArray]:
            return (rows["pair_id"] for rows in self.iter_labels(round_id, ["pair_id"]))

        missing, surplus = coverage(keys_of(pool), labelled)
        if missing or surplus:
            yield (
                f"{self._manifest_path(round_id)} lacks a label for {missing:,} of the "
                f"pairs in {pool} and has {surplus:,} too many; committed "
                "rounds never change: use another run_dir"
            )

    def attempts(self, round_id: int) -> Place:
        """The folder that workers write a round's labels into."""
        return self.root / "attempts" / f"round-{round_id:02d}"

    def _damaged_shards(self, manifest: Manifest) -> Iterator[str]:
        for shard in (*manifest.labels, *manifest.decisions):
            try:
                self._shard_bytes(shard)
            except UserError as error:
                yield f"{error} (round {manifest.round_id})"

    @property
    def _rounds(self) -> Place:
        return self.root / "rounds"

    def _manifest_path(self, round_id: int) -> Place:
        return self._rounds / f"round-{round_id:02d}.json"

    def _shard_path(self, sha256: str) -> Place:
        return self.root / "shards" / f"{sha256}.parquet"

    def _attempts_of(self, round_id: int, idm_digest: str) -> list[tuple[Place, Shard]]:
        """The attempts of an IDM with the rows of the pool that they cover."""
        found = []
        for path in matching(self.attempts(round_id), "*.parquet"):
            name = _ATTEMPT_NAME.fullmatch(path.name)
            if name and idm_digest.startswith(name[1]):
                found.append((path, Shard(start=int(name[2]), stop=int(name[3]))))
        return found

    def _write_shard(self, rows: pa.Table, schema: pa.Schema) -> ContentFile:
        payload = to_parquet(rows, schema)
        sha256 = hashlib.sha256(payload).hexdigest()
        _write_unless_there(self._shard_path(sha256), payload)
        return ContentFile(sha256=sha256, num_rows=rows.num_rows)

    def _shard_bytes(self, shard: ContentFile) -> bytes:
        path = self._shard_path(shard.sha256)
        if not path.exists():
            raise UserError(f"{path} is missing; restore it from a copy of the ledger")
        payload = _sound(path)
        if payload is None:
            raise UserError(f"{path} is damaged; restore it from a copy of the ledger")
        return payload

    def _read_shard(
        self, shard: ContentFile, schema: pa.Schema, columns: Sequence[str] | None
    ) -> pa.Table:
        where = self._shard_path(shard.sha256)
        return from_parquet(self._shard_bytes(shard), schema, where=where, columns=columns)


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


def keys_of(pool: DatasetRef | Place) -> Keys:
    """The pair_ids of a pool."""
    return lambda: (rows["pair_id"] for rows in iter_table(pool, PAIR_SCHEMA, ["pair_id"]))


def coverage(pairs: Keys, labelled: Keys) -> tuple[int, int]:
    """Number of pairs without a label, and of labels that are repeats or belong to no pair.

    They are counted only where sums over all keys differ; both columns are then in memory.

    Args:
        pairs: The pair_ids of a pool; a repeated one needs one label.
        labelled: The pair_ids of its labels.
    """
    if _fingerprint(pairs) == _fingerprint(labelled):
        return 0, 0
    wanted = pc.unique(_chunks(pairs))
    found = _chunks(labelled)
    both = pc.sum(pc.is_in(wanted, value_set=pc.unique(found)), min_count=0).as_py()
    return len(wanted) - both, len(found) - both


def _fingerprint(keys: Keys) -> tuple[int, int]:
    """Number and sum of the keys, hashes read as numbers: their order does not matter."""
    count = total = 0
    for column in keys():
        count += len(column)
        total += sum(map(int.from_bytes, column.cast(pa.binary()).to_pylist()))
    return count, total


def _chunks(keys: Keys) -> pa.ChunkedArray:
    return pa.chunked_array([chunk for column in keys() for chunk in column.chunks], pa.string())


def _merged(labels: DatasetRef) -> Merged:
    return Merged.from_bytes(labels.path.read_bytes(), where=labels.path)


def _ref(path: Place, payload: bytes, shards: Sequence[ContentFile]) -> DatasetRef:
    rows = sum(shard.num_rows for shard in shards)
    return DatasetRef(path=path, num_rows=rows, digest=hashlib.sha256(payload).hexdigest())


def _whole(
    tables: Iterator[pa.Table], schema: pa.Schema, columns: Sequence[str] | None
) -> pa.Table:
    return pa.concat_tables([schema.empty_table().select(columns or schema.names), *tables])


def _cut(tables: Iterable[pa.Table], size: int) -> Iterator[pa.Table]:
    """The same rows in tables of ``size`` rows; the last one may be shorter."""
    waiting: list[pa.Table] = []
    for table in tables:
        waiting.append(table)
        if sum(rows.num_rows for rows in waiting) >= size:
            rows = pa.concat_tables(waiting)
            while rows.num_rows >= size:
                yield rows.slice(0, size)
                rows = rows.slice(size)
            waiting = [rows]
    if sum(rows.num_rows for rows in waiting):
        yield pa.concat_tables(waiting)


def _paired(tables: Iterable[pa.Table], shards: Sequence[ContentFile]) -> Iterator[pa.Table]:
    """The same rows, cut like the shards."""
    source = iter(tables)
    waiting: list[pa.Table] = []
    for shard in shards:
        while sum(rows.num_rows for rows in waiting) < shard.num_rows:
            if (more := next(source, None)) is None:
                raise ValueError(_UNPAIRED)
            waiting.append(more)
        rows = pa.concat_tables(waiting)
        yield rows.slice(0, shard.num_rows)
        waiting = [rows.slice(shard.num_rows)]
    if sum(rows.num_rows for rows in (*waiting, *source)):
        raise ValueError(_UNPAIRED)


def _write_unless_there(path: Place, payload: bytes) -> None:
    # Compared, not only looked for: writing again repairs a damaged file.
    if not (path.exists() and path.read_bytes() == payload):
        write_bytes(path, payload)


def _sound(path: Place) -> bytes | None:
    """The bytes of a file whose name ends in their sha256, None when they do not match."""
    payload = path.read_bytes()
    return payload if path.stem.endswith(hashlib.sha256(payload).hexdigest()) else None


def _check_round(labels: pa.Table, round_id: int) -> None:
    found = set(pc.unique(labels["round_id"]).to_pylist())
    if not found <= {round_id}:
        raise ValueError(f"labels of rounds {sorted(found)} given to round {round_id}")


def _check_pairing(labels: pa.Table, decisions: pa.Table, after: str) -> str:
    """The last label_id; all must come ``after`` that of the shard before, ascending."""
    ids = pa.concat_arrays([pa.array([after]), *labels["label_id"].chunks])
    if not pc.all(pc.less(ids[:-1], ids[1:])).as_py():
        raise ValueError("labels must be sorted by label_id, without repeats")
    if not all(decisions[key].equals(labels[key]) for key in ("label_id", "pair_id")):
        raise ValueError(_UNPAIRED)
    return str(ids[-1].as_py())


_UNPAIRED = "decisions must have one row per label, in the order of the labels"


def _one_per_label(rows: pa.Table) -> pa.Table:
    """One row per label_id, sorted by it; among repeats the one whose text is smallest."""
    rows = rows.combine_chunks().sort_by("label_id")
    ids = rows["label_id"].combine_chunks()
    same = pc.equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    if not same.any():
        return rows
    firsts = np.flatnonzero(np.concatenate([[True], ~same]))
    sizes = np.diff(firsts, append=len(ids))
    keep = firsts.copy()
    for group in np.flatnonzero(sizes > 1).tolist():
        texts = [repr(row) for row in rows.slice(firsts[group], sizes[group]).to_pylist()]
        keep[group] += texts.index(min(texts))
    return rows.take(pa.array(keep))


def reason_counts(decisions: pa.Table) -> dict[str, int]:
    """Rows per reason that occurs; they sum to the number of rows."""
    counts = pc.value_counts(decisions["reason"]).to_pylist()
    return {entry["values"]: int(entry["counts"]) for entry in counts}
