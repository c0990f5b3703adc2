from contextlib import suppress
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.errors import UserError
from dynamics.storage.parquet import check_seal, sealed_parquet
from dynamics.storage.run_folder import TrainingLog, read_json, write_json
from dynamics.storage.sealed import seal, unsealed
from dynamics.storage.tables import dataset_ref, read_table, write_table

RECORD = {"digest": "a" * 64, "loss": 0.1, "names": ["idm", "fdp"], "steps": {"2": None}}
SCHEMA = pa.schema([pa.field("pair_id", pa.string(), nullable=False)])


def test_any_flipped_byte_of_a_record_is_refused_or_white_space(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_json(path, RECORD)
    assert read_json(path) == RECORD
    payload = path.read_bytes()
    for place in range(len(payload)):
        for bits in (1, 32):
            changed = payload[:place] + bytes([payload[place] ^ bits]) + payload[place + 1 :]
            path.write_bytes(changed)
            with suppress(UserError):
                assert read_json(path) == RECORD  # white space


def test_a_record_of_an_older_version_has_no_digest() -> None:
    assert unsealed(RECORD) == unsealed(seal(RECORD)) == RECORD


def test_a_flip_of_any_byte_of_a_loss_curve_is_refused(tmp_path: Path) -> None:
    log = TrainingLog(tmp_path / "idm.jsonl")
    log.append(25, {"loss": 2.0})
    log.append(50, {"loss": 1.5})
    payload, curve = log.path.read_bytes(), log.lines()
    for place in range(len(payload)):
        changed = bytearray(payload)
        changed[place] ^= 1 << place % 8
        log.path.write_bytes(changed)
        with suppress(UserError):
            assert log.lines() == curve  # white space


def test_any_flipped_byte_of_a_single_table_is_named_or_without_effect(tmp_path: Path) -> None:
    table = pa.table({"pair_id": [f"{row:064x}" for row in range(100)]}, schema=SCHEMA)
    path = tmp_path / "results.parquet"
    ref = write_table(path, table, SCHEMA)
    assert dataset_ref(path) == ref
    payload = path.read_bytes()
    rng, unnoticed = np.random.default_rng(0), 0
    for place in rng.integers(len(payload), size=300).tolist():
        path.write_bytes(payload[:place] + bytes([payload[place] ^ 4]) + payload[place + 1 :])
        with suppress(UserError):
            assert read_table(path, SCHEMA).equals(table)  # the name of the digest itself
            unnoticed += 1
    assert unnoticed < 20
    for size in rng.integers(len(payload), size=20).tolist():
        path.write_bytes(payload[:size])
        with pytest.raises(UserError, match=r"results\.parquet"):
            dataset_ref(path)


def test_every_flipped_bit_and_every_cut_of_a_sealed_table_is_found():
    whole = sealed_parquet(pa.table({"row": [1, 2, 3], "action": ["push", "", "turn"]}))
    assert check_seal(whole) == whole
    flipped = (
        whole[:at] + bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
        for at in range(len(whole))
        for bit in range(8)
    )
    for damaged in (*flipped, *(whole[:size] for size in range(len(whole)))):
        with pytest.raises((pa.ArrowInvalid, OSError)):
            check_seal(damaged)
