import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.errors import UserError
from dynamics.core.records import LABEL_SCHEMA, DatasetRef
from dynamics.storage.pairs import list_matrix
from dynamics.storage.parquet import to_parquet
from dynamics.storage.tables import (
    codes_matrix,
    dataset_ref,
    read_table,
    score_column,
    score_names,
    write_table,
)

SCHEMA = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("codes", pa.list_(pa.uint16()), nullable=False),
        pa.field("weights", pa.list_(pa.float32()), nullable=False),
    ]
)


def make_table(num_rows: int = 20_000) -> pa.Table:
    codes = np.arange(num_rows * 4).reshape(num_rows, 4) % 512
    columns = [[f"row {row}" for row in range(num_rows)], codes.tolist(), (codes / 512).tolist()]
    return pa.table(dict(zip(SCHEMA.names, columns, strict=True)), schema=SCHEMA)


def test_round_trip_keeps_rows_and_schema(tmp_path: Path) -> None:
    table = make_table()
    ref = write_table(tmp_path / "t.parquet", table, SCHEMA)
    back = read_table(ref, SCHEMA)
    assert back.equals(table)
    assert back.schema.equals(SCHEMA)
    assert dataset_ref(ref.path) == ref
    assert ref.num_rows == 20_000


def test_bytes_do_not_depend_on_chunks_order_of_columns_or_metadata() -> None:
    table = make_table()
    pieces = pa.concat_tables([table.slice(0, 7), table.slice(7, 12_000), table.slice(12_007)])
    shuffled = pieces.select(["weights", "name", "codes"]).replace_schema_metadata({"by": "me"})
    assert shuffled["name"].num_chunks == 3
    assert to_parquet(shuffled, SCHEMA) == to_parquet(table, SCHEMA)
    assert to_parquet(table.slice(100, 500), SCHEMA) == to_parquet(
        pa.Table.from_pylist(table.slice(100, 500).to_pylist(), SCHEMA), SCHEMA
    )


def test_columns_are_read_in_the_named_order(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "t.parquet", make_table(10), SCHEMA)
    assert read_table(ref, SCHEMA, columns=["weights", "name"]).column_names == ["weights", "name"]


def test_a_table_that_does_not_fit_the_schema_is_refused() -> None:
    table = make_table(3)
    with pytest.raises(ValueError, match="differ from"):
        to_parquet(table.drop_columns(["codes"]), SCHEMA)
    with pytest.raises(ValueError, match="differ from"):
        to_parquet(table.append_column("extra", pa.array([1, 2, 3])), SCHEMA)
    holed = pa.table({**table.to_pydict(), "name": ["a", None, "c"]})
    with pytest.raises(ValueError, match="null"):
        to_parquet(holed, SCHEMA)


def test_damage_is_found_before_use(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "t.parquet", make_table(200), SCHEMA)
    payload = ref.path.read_bytes()
    for place in range(0, len(payload), max(1, len(payload) // 100)):
        flipped = bytearray(payload)
        flipped[place] ^= 1
        ref.path.write_bytes(flipped)
        with pytest.raises(UserError, match=r"t\.parquet is damaged"):
            read_table(ref, SCHEMA)
    for size in np.linspace(0, len(payload) - 1, 10).astype(int):
        ref.path.write_bytes(payload[:size])
        for source in (ref, ref.path):
            with pytest.raises(UserError, match=r"t\.parquet is damaged"):
                read_table(source, SCHEMA)
        with pytest.raises(UserError, match=r"t\.parquet is damaged"):
            dataset_ref(ref.path)


def test_missing_files_and_other_schemas_are_named(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    for read in (lambda: read_table(path, SCHEMA), lambda: dataset_ref(path)):
        with pytest.raises(UserError, match=r"t\.parquet does not exist"):
            read()
    write_table(path, make_table(3), SCHEMA)
    other = pa.schema([pa.field("name", pa.string())])
    with pytest.raises(UserError, match=r"newer version: its columns \['codes', 'weights'\]"):
        read_table(path, other)


def test_a_file_from_before_a_column_was_added_is_read_with_nulls(tmp_path: Path) -> None:
    older = write_table(tmp_path / "t.parquet", make_table(3), SCHEMA)
    note = pa.field("note", pa.string())
    newer = SCHEMA.insert(1, note)
    table = read_table(older, newer)
    assert table.schema.equals(newer)
    assert table["note"].to_pylist() == [None] * 3
    assert table.drop_columns(["note"]).equals(make_table(3))
    assert read_table(older, newer, ["note"])["note"].to_pylist() == [None] * 3
    with pytest.raises(UserError, match=r"t\.parquet lacks the columns \['note'\]"):
        read_table(older, SCHEMA.append(note.with_nullable(False)))


def test_a_column_of_another_type_or_with_nulls_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    number = pa.schema([pa.field("name", pa.int64(), nullable=False)])
    write_table(path, pa.table({"name": [1]}), number)
    text = pa.schema([pa.field("name", pa.string(), nullable=False)])
    with pytest.raises(UserError, match="has int64 with no nulls in name, expected string"):
        read_table(path, text)
    holed = pa.schema([pa.field("name", pa.string())])
    write_table(path, pa.table({"name": [None]}, holed), holed)
    with pytest.raises(UserError, match="has string with nulls in name, expected string"):
        read_table(path, text)


def test_a_changed_file_does_not_pass_as_the_old_reference(tmp_path: Path) -> None:
    ref = write_table(tmp_path / "t.parquet", make_table(3), SCHEMA)
    write_table(ref.path, make_table(4), SCHEMA)
    with pytest.raises(UserError, match="damaged or was changed"):
        read_table(ref, SCHEMA)
    assert isinstance(dataset_ref(ref.path), DatasetRef)


def test_matrices_of_slices_and_chunks() -> None:
    table = make_table(10)
    parts = pa.concat_tables([table.slice(2, 3), table.slice(7)])
    expected = np.array(parts["codes"].to_pylist())
    codes = codes_matrix(parts, "codes")
    assert codes.dtype == np.int64
    assert np.array_equal(codes, expected)
    weights = list_matrix(parts, "weights")
    assert weights.dtype == np.float32
    assert np.array_equal(weights, (expected / 512).astype(np.float32))
    assert codes_matrix(table.slice(0, 0), "codes").shape == (0, 0)


def test_scores_of_slices_and_chunks() -> None:
    scores = [{"a": -1.0}, {}, {"a": math.nan, "b": -3.0}, {"c": -4.0}]
    labels = pa.table({"scores": pa.array(scores, LABEL_SCHEMA.field("scores").type)})
    parts = pa.concat_tables([labels.slice(1, 2), labels.slice(0, 1)])
    assert np.array_equal(score_column(parts, "a"), [math.nan, math.nan, -1.0], equal_nan=True)
    assert np.array_equal(score_column(parts, "b"), [math.nan, -3.0, math.nan], equal_nan=True)
    assert score_names(parts) == {"a", "b"}
    assert score_names(labels.slice(1, 1)) == score_names(labels.slice(0, 0)) == set()
    assert score_column(labels.slice(0, 0), "a").dtype == np.float64


def test_ragged_codes_are_refused() -> None:
    table = pa.table({"codes": pa.array([[1, 2], [3]], pa.list_(pa.uint16()))})
    with pytest.raises(ValueError, match="different lengths"):
        codes_matrix(table, "codes")
