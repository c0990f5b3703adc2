import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.errors import UserError
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.storage import pairs as module
from dynamics.storage.pairs import (
    TableWriter,
    is_whole,
    store_codes,
    stored_rows,
    write_pairs,
)
from dynamics.storage.shards import Shard, read_shard
from dynamics.storage.tables import dataset_ref, iter_table, read_table, write_table
from tests.unit.storage.rows import make_pairs


def ingested(folder: Path, table: pa.Table, unit: int) -> Path:
    """The table as an ingest writes it: a codes file for each ``unit`` rows, frames shared."""
    writer = TableWriter(folder / "pool.parts", PAIR_SCHEMA, folder / "codes")
    small = [name for name in PAIR_SCHEMA.names if name not in module._LISTS]
    for start in range(0, table.num_rows, unit):
        rows = table.slice(start, unit)
        matrices = [np.array(rows[name].to_pylist()) for name in module._LISTS]
        frames, inverse = np.unique(
            np.concatenate(matrices[:2]).astype(np.uint16), axis=0, return_inverse=True
        )
        places = inverse.reshape(2, -1)
        writer.append(
            store_codes(folder / "codes", rows.select(small), frames, *places, matrices[2])
        )
    return writer.finish().path


def test_both_formats_give_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PART_ROWS", 20)
    monkeypatch.setattr(module, "_ROWS_WITH_CODES", 7)
    table = make_pairs()
    one = write_table(tmp_path / "a.parquet", table, TRANSITION_SCHEMA)
    parts = write_pairs(tmp_path / "a.parts", table, TRANSITION_SCHEMA, tmp_path / "codes")
    assert len(list((tmp_path / "a.parts" / "rows").iterdir())) == 3
    for ref in (one, parts):
        assert dataset_ref(ref.path) == ref
        assert ref.num_rows == table.num_rows
        assert read_table(ref, TRANSITION_SCHEMA).equals(table)
        columns = ["recognition", "pair_id", "target_codes"]
        assert read_table(ref.path, TRANSITION_SCHEMA, columns).equals(table.select(columns))
        found = list(iter_table(ref, TRANSITION_SCHEMA, ["action"], 3, 41))
        assert pa.concat_tables(found).equals(table.select(["action"]).slice(3, 38))
        shard = read_shard(ref, Shard(start=18, stop=43), schema=TRANSITION_SCHEMA)
        assert shard.equals(table.select(shard.column_names).slice(18, 25))
        again = tmp_path / f"{ref.path.name}-again.parts"
        writer = TableWriter(again, TRANSITION_SCHEMA, tmp_path / "codes")
        for rows in stored_rows(ref, TRANSITION_SCHEMA, tmp_path / "codes"):
            writer.append(rows)
        assert writer.finish().digest == parts.digest
        assert read_table(again, TRANSITION_SCHEMA).equals(table)


def test_the_digest_tells_rows_apart_and_not_how_they_were_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    table = make_pairs()
    pool = table.select(PAIR_SCHEMA.names)
    digests = set()
    for unit, part_rows in ((50, 50), (4, 20), (9, 1)):
        monkeypatch.setattr(module, "PART_ROWS", part_rows)
        path = ingested(tmp_path / str(unit), table, unit)
        assert read_table(path, PAIR_SCHEMA).equals(pool)
        digests.add(dataset_ref(path).digest)
    digests.add(write_pairs(tmp_path / "p.parts", pool, PAIR_SCHEMA, tmp_path / "codes").digest)
    assert len(digests) == 1

    for number, name in enumerate(table.column_names):
        changed = table.set_column(number, table.schema.field(name), table[name].take(turn(table)))
        ref = write_pairs(
            tmp_path / f"{name}.parts", changed, TRANSITION_SCHEMA, tmp_path / "codes"
        )
        digests.add(ref.digest)
    # Class, motion and origin are the same in all rows.
    assert len(digests) == 1 + len(TRANSITION_SCHEMA) - 3 + 1


def turn(table: pa.Table) -> pa.Array:
    return pa.array(np.roll(np.arange(table.num_rows), 1))


def test_weights_beyond_float16_become_its_largest(tmp_path: Path) -> None:
    table = make_pairs(1)
    place = table.column_names.index("recognition")
    weights = pa.array([[1e30, 65504.0, 0.5, 0, 0, 1e-9]], pa.list_(pa.float32()))
    table = table.set_column(place, table.schema.field(place), weights)
    ref = write_pairs(tmp_path / "a.parts", table, TRANSITION_SCHEMA, tmp_path / "codes")
    found = read_table(ref, TRANSITION_SCHEMA)["recognition"][0].as_py()
    assert found == [65504.0, 65504.0, 0.5, 0, 0, 0]


def test_a_table_exists_with_its_manifest_and_is_never_replaced(tmp_path: Path) -> None:
    table, codes = make_pairs(), tmp_path / "codes"
    folder = tmp_path / "a.parts"
    write_pairs(folder, table, TRANSITION_SCHEMA, codes)
    before = (folder / "manifest.json").read_bytes()
    write_pairs(folder, table, TRANSITION_SCHEMA, codes)
    assert (folder / "manifest.json").read_bytes() == before
    with pytest.raises(UserError, match=r"a\.parts holds other rows"):
        write_pairs(folder, table.slice(1), TRANSITION_SCHEMA, codes)
    (folder / "manifest.json").unlink()
    assert not is_whole(folder)
    with pytest.raises(UserError, match=r"a\.parts does not exist; run the stage"):
        dataset_ref(folder)


def test_what_was_changed_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "a.parts"
    ref = write_pairs(folder, make_pairs(), TRANSITION_SCHEMA, tmp_path / "codes")
    (part,) = (folder / "rows").iterdir()
    (codes,) = (tmp_path / "codes").iterdir()
    for path in (part, codes):
        whole = path.read_bytes()
        path.write_bytes(whole[:-9] + b"x" + whole[-8:])
        with pytest.raises(UserError, match=f"{path} is damaged"):
            read_table(ref, TRANSITION_SCHEMA)
        path.unlink()
        with pytest.raises(UserError, match=str(path)):
            read_table(ref, TRANSITION_SCHEMA)
        path.write_bytes(whole)
    assert read_table(ref, TRANSITION_SCHEMA).num_rows == ref.num_rows
    manifest = folder / "manifest.json"
    whole = manifest.read_bytes()
    manifest.write_bytes(whole.replace(b'"num_rows": 50', b'"num_rows": 49'))
    with pytest.raises(UserError, match=r"manifest\.json is damaged"):
        dataset_ref(folder)
    manifest.write_bytes(whole)
    newer = module.read_manifest(folder).model_copy(update={"version": 2})
    manifest.write_bytes(newer.to_bytes())
    assert json.loads(manifest.read_bytes())["version"] == 2
    with pytest.raises(UserError, match=r"manifest\.json was written by another version"):
        dataset_ref(folder)


def test_another_table_than_the_reference_names_is_refused(tmp_path: Path) -> None:
    codes = tmp_path / "codes"
    ref = write_pairs(tmp_path / "a.parts", make_pairs(), TRANSITION_SCHEMA, codes)
    other = write_pairs(tmp_path / "b.parts", make_pairs(9), TRANSITION_SCHEMA, codes)
    (ref.path / "manifest.json").write_bytes((other.path / "manifest.json").read_bytes())
    with pytest.raises(UserError, match=r"a\.parts is damaged or was changed"):
        read_table(ref, TRANSITION_SCHEMA)


def test_a_table_without_rows_is_a_table(tmp_path: Path) -> None:
    ref = write_pairs(tmp_path / "a.parts", make_pairs(0), TRANSITION_SCHEMA, tmp_path / "codes")
    assert read_table(ref, TRANSITION_SCHEMA).equals(TRANSITION_SCHEMA.empty_table())
