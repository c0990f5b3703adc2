"""Exports of a real run, read back with the tools that their users have."""

import json
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.errors import UserError
from dynamics.core.images import read_picture
from dynamics.core.progress import silent
from dynamics.core.records import DECISION_SCHEMA, PAIR_SCHEMA
from dynamics.data.labelled import lerobot as lerobot_set
from dynamics.exports import EXPORTS, export_run
from dynamics.exports import parquet as parquet_export
from dynamics.exports import webdataset as webdataset_export
from dynamics.exports.labels import LINEAGE_SCHEMA, accepted_labels
from dynamics.storage.ledger import Ledger
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.shards import Shard
from dynamics.storage.tables import read_table, write_table
from tests.runs import LocalRun

LABEL_FORMATS = [name for name in EXPORTS if name != "adapters"]


class Row:
    """A row that a reader of any format must find."""

    def __init__(self, action: str, before: Any, after: Any, lineage: dict[str, Any]) -> None:
        self.action = action
        self.before, self.after = (np.array(image) for image in (before, after))
        self.lineage = {name: lineage[name] for name in LINEAGE_SCHEMA.names}


@pytest.fixture(scope="module")
def run(local_run: LocalRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run in which every label has a sentence of its own, with awkward letters."""
    folder = RunFolder(tmp_path_factory.mktemp("exported") / "run")
    shutil.copytree(local_run.folder, folder.root)
    labels = Ledger(folder.ledger).labels(1)
    said = [f'push the "ring" no. {n} <left> | größer, 左' for n in range(labels.num_rows)]
    commit(folder, with_column(labels, "action", said), Ledger(folder.ledger).decisions(1))
    return folder


def with_column(rows: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = rows.schema.field(name)
    return rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))


def commit(folder: RunFolder, labels: pa.Table, decisions: pa.Table, **parents: str) -> None:
    """Make these the labels and decisions of round 1, in place of those that are there."""
    ledger = Ledger(folder.ledger)
    made_from = ledger.manifest(1).parents | parents
    shutil.rmtree(folder.ledger)
    ledger.write_attempt(1, labels, Shard(start=0, stop=labels.num_rows))
    merged = ledger.merge(1, made_from["idm"], folder.labels(1))
    ledger.commit(1, merged, [decisions.sort_by("label_id")], made_from)


@pytest.fixture
def copied(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A run of its own, to break."""
    shutil.copytree(run.root, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="module")
def truth(run: RunFolder) -> dict[str, Row]:
    """The exported rows by label_id, from the run itself."""
    rows = accepted_labels(run, None).rows(silent)
    return {row.key: Row(row.action, row.source, row.target, row.lineage) for row in rows}


@pytest.fixture
def export(run: RunFolder, tmp_path: Path) -> Callable[[str], Path]:
    def make(name: str) -> Path:
        export_run(run, name, tmp_path / name, None, silent)
        return tmp_path / name

    return make


def open_png(payload: bytes) -> Image.Image:
    return Image.open(BytesIO(payload), formats=["PNG"])


def read_aurora(folder: Path) -> Iterator[Row]:
    """Read like AURORA's own loader: in its folder, by the paths of the entries."""
    (task,) = (folder / "data").iterdir()
    for entry in json.loads((folder / "data" / task.name / "train.json").read_text()):
        assert entry["input"].split("/")[1] == task.name
        images = [Image.open(folder / entry[key]).convert("RGB") for key in ("input", "output")]
        yield Row(entry["instruction"], *images, entry)


def read_hf(folder: Path) -> Iterator[Row]:
    import datasets

    found = datasets.load_dataset(str(folder), split="train", cache_dir=str(folder / ".." / "hf-c"))
    for row in found:
        yield Row(row["action"], row["before"], row["after"], row)


def read_webdataset(folder: Path) -> Iterator[Row]:
    import webdataset

    shards = [str(path) for path in sorted(folder.glob("*.tar"))]
    for sample in webdataset.WebDataset(shards, shardshuffle=False):
        content = json.loads(sample["json"])
        assert sample["__key__"] == content["label_id"]
        images = [open_png(sample[name]) for name in ("before.png", "after.png")]
        yield Row(content["action"], *images, content)


def lerobot_features(info: dict[str, Any]) -> Any:
    """Features as LeRobot builds them from ``meta/info.json``."""
    import datasets

    language = {
        "role": datasets.Value("string"),
        "content": datasets.Value("string"),
        "style": datasets.Value("string"),
        "timestamp": datasets.Value("float32"),
        "camera": datasets.Value("string"),
        "tool_calls": datasets.List(datasets.Json()),
    }
    events = {name: value for name, value in language.items() if name != "timestamp"}
    columns = {
        "language_persistent": datasets.List(language),
        "language_events": datasets.List(events),
    }
    for name, one in info["features"].items():
        if one["dtype"] == "image":
            columns[name] = datasets.Image()
        elif one["dtype"] != "language":
            assert one["shape"] == [1]
            columns[name] = datasets.Value(one["dtype"])
    return datasets.Features(columns)


def read_lerobot(folder: Path) -> Iterator[Row]:
    import datasets
    import pandas as pd

    info = read_json(folder / "meta" / "info.json")
    tasks = pd.read_parquet(folder / "meta" / "tasks.parquet")
    files = sorted(str(path) for path in (folder / "data").glob("*/*.parquet"))
    frames = datasets.Dataset.from_parquet(
        files, features=lerobot_features(info), cache_dir=str(folder / ".." / "lerobot-cache")
    )
    assert len(frames) == info["total_frames"]
    for episode in pq.read_table(folder / "meta" / "episodes").to_pylist():
        first, last = (
            frames[index]
            for index in (episode["dataset_from_index"], episode["dataset_to_index"] - 1)
        )
        assert [first["timestamp"], last["timestamp"]] == [0.0, 1.0]
        (spoken,) = first["language_persistent"]
        assert first["language_events"] == []
        assert spoken["style"] == "subtask"
        action = tasks.iloc[first["task_index"]].name
        assert [action] == episode["tasks"] == [spoken["content"]]
        camera = "observation.images.scene"
        yield Row(action, first[camera], last[camera], last)


READERS: dict[str, Callable[[Path], Iterator[Row]]] = {
    "aurora": read_aurora,
    "hf": read_hf,
    "lerobot": read_lerobot,
    "webdataset": read_webdataset,
}


def test_every_format_of_labels_is_read_back_here() -> None:
    assert sorted(READERS) == sorted(LABEL_FORMATS)


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_what_was_exported_reads_back_equal(
    export: Callable[[str], Path], truth: dict[str, Row], name: str
) -> None:
    assert_equal({row.lineage["label_id"]: row for row in READERS[name](export(name))}, truth)


@pytest.mark.slow
@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_a_thousand_random_rows_read_back_equal(
    copied: RunFolder, tmp_path: Path, name: str, record_property: Callable[[str, object], None]
) -> None:
    rng, ledger = np.random.default_rng(0), Ledger(copied.ledger)
    letters = [letter for letter in map(chr, range(32, 0x2FFF)) if letter.isprintable()]
    pool = read_table(copied.pool, PAIR_SCHEMA)
    rows, ids = rng.integers(pool.num_rows, size=1000), [f"{n:064x}" for n in range(1000)]
    pairs = with_column(pool.take(pa.array(rows)), "pair_id", ids)
    ref = write_table(copied.data / "pool.parquet", pairs, PAIR_SCHEMA)
    labels = ledger.labels(1).take(pa.array(rows % ledger.labels(1).num_rows))
    said = ["a" + "".join(rng.choice(letters, rng.integers(1, 60))) + "." for _ in range(1000)]
    for column, values in (("pair_id", ids), ("label_id", ids[::-1]), ("action", said)):
        labels = with_column(labels, column, values)
    decisions = pa.table(
        {
            "label_id": labels["label_id"],
            "pair_id": labels["pair_id"],
            "accepted": [True] * 1000,
            "score": rng.normal(size=1000).astype(np.float32),
            "reason": ["accepted"] * 1000,
        },
        schema=DECISION_SCHEMA,
    )
    commit(copied, labels, decisions, pool=ref.digest)
    made = accepted_labels(copied, None).rows(silent)
    truth = {row.key: Row(row.action, row.source, row.target, row.lineage) for row in made}
    export_run(copied, name, tmp_path / name, None, silent)
    found = {row.lineage["label_id"]: row for row in READERS[name](tmp_path / name)}
    assert len(truth) == 1000
    assert_equal(found, truth)
    record_property("cases", 1000)


def assert_equal(found: dict[str, Row], truth: dict[str, Row]) -> None:
    assert set(found) == set(truth)
    for key, row in found.items():
        assert row.action == truth[key].action
        assert row.lineage == truth[key].lineage
        assert np.array_equal(row.before, truth[key].before)
        assert np.array_equal(row.after, truth[key].after)


def test_the_accepted_labels_are_exported_and_no_other(
    run: RunFolder, truth: dict[str, Row]
) -> None:
    ledger = Ledger(run.ledger)
    said = {row["label_id"]: row for row in ledger.labels(1).to_pylist()}
    accepted = {row["label_id"]: row for row in ledger.decisions(1).to_pylist() if row["accepted"]}
    assert set(truth) == set(accepted)
    assert len(truth) < len(said)
    for key, row in truth.items():
        assert row.action == said[key]["action"]
        assert row.lineage["score"] == accepted[key]["score"]
        assert row.lineage["logprob"] == pytest.approx(sum(said[key]["token_logprobs"]))


@pytest.mark.parametrize("name", LABEL_FORMATS)
def test_an_export_says_where_it_comes_from(
    export: Callable[[str], Path], run: RunFolder, truth: dict[str, Row], name: str
) -> None:
    lineage = read_json(export(name) / "lineage.json")
    report = run.report(1)
    assert report is not None
    assert lineage["format"] == name
    assert lineage["round"] == 1
    assert lineage["config_digest"] == run.config().digest()
    assert lineage["frames"] == {"clip": len(truth)}
    assert {row.lineage["idm_digest"] for row in truth.values()} == {lineage["idm_digest"]}


@pytest.mark.parametrize("name", [*LABEL_FORMATS, "adapters"])
def test_equal_runs_export_equal_bytes(run: RunFolder, tmp_path: Path, name: str) -> None:
    contents = []
    for folder in (tmp_path / "one", tmp_path / "two"):
        export_run(run, name, folder, None, silent)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append({path.relative_to(folder).as_posix(): path.read_bytes() for path in files})
    assert contents[0] == contents[1]


def test_frames_are_the_ones_that_the_model_saw(run: RunFolder, truth: dict[str, Row]) -> None:
    images = accepted_labels(run, None).images
    pairs = read_table(run.pool, PAIR_SCHEMA).to_pylist()
    pool = {row["pair_id"]: row for row in pairs}
    for frames, column in (("before", "source_codes"), ("after", "target_codes")):
        encoded = images.encode(np.stack([getattr(row, frames) for row in truth.values()]))
        codes = [pool[row.lineage["pair_id"]][column] for row in truth.values()]
        assert np.array_equal(encoded, np.array(codes))


def test_without_clips_the_frames_are_drawn_from_the_codes(
    copied: RunFolder, truth: dict[str, Row]
) -> None:
    clips = sorted((copied.data / "pool" / "clips").iterdir())
    clips[0].unlink()
    clips[1].write_bytes(clips[2].read_bytes())  # another film under its name
    labels = accepted_labels(copied, None)
    rows = {row.key: row for row in labels.rows(silent)}
    drawn = {key for key, row in rows.items() if row.lineage["frames"] == "codes"}
    gone = {clips[0].name, clips[1].name}
    assert drawn == {key for key, row in truth.items() if row.lineage["clip_path"] in gone}
    assert drawn
    assert labels.frames_from == {"codes": len(drawn), "clip": len(truth) - len(drawn)}
    assert all(rows[key].source.shape == truth[key].before.shape for key in drawn)


def test_large_exports_are_cut_into_shards(
    export: Callable[[str], Path], truth: dict[str, Row], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(webdataset_export, "SHARD_BYTES", 4000)
    monkeypatch.setattr(parquet_export, "FILE_BYTES", 4000)
    tars = export("webdataset")
    assert len(list(tars.glob("*.tar"))) > 1
    assert len(list(read_webdataset(tars))) == len(truth)
    with tarfile.open(sorted(tars.glob("*.tar"))[0]) as first:
        assert len(first.getnames()) % 3 == 0
    lerobot = export("lerobot")
    assert len(list((lerobot / "data").glob("*/*.parquet"))) > 1
    for episode in pq.read_table(lerobot / "meta" / "episodes").to_pylist():
        place = f"chunk-{episode['data/chunk_index']:03d}/file-{episode['data/file_index']:03d}"
        frames = pq.read_table(lerobot / "data" / f"{place}.parquet", columns=["episode_index"])
        assert frames["episode_index"].to_pylist().count(episode["episode_index"]) == 2
    monkeypatch.setattr(lerobot_set, "plain_action", str)  # an untrained IDM says anything
    again = lerobot_set.list_lerobot(lerobot).pairs
    assert sorted(pair.action for pair in again) == sorted(row.action for row in truth.values())
    for end in (again[-1].frames.source, again[-1].frames.target):  # type: ignore[union-attr]
        read_picture(end.read())


def test_lerobot_statistics_are_those_of_the_frames(
    export: Callable[[str], Path], truth: dict[str, Row]
) -> None:
    folder = export("lerobot")
    stats = read_json(folder / "meta" / "stats.json")["observation.images.scene"]
    frames = np.stack([image for row in truth.values() for image in (row.before, row.after)]) / 255
    assert np.allclose(np.array(stats["mean"]).ravel(), frames.mean((0, 1, 2)))
    assert np.allclose(np.array(stats["std"]).ravel(), frames.std((0, 1, 2)))
    assert stats["count"] == [len(frames)]


@pytest.mark.parametrize("name", ["hf", "lerobot"])
def test_a_dataset_card_has_a_header_and_the_numbers(
    export: Callable[[str], Path], run: RunFolder, truth: dict[str, Row], name: str
) -> None:
    _, header, text = (export(name) / "README.md").read_text().split("---\n", 2)
    loaded = yaml.safe_load(header)
    assert loaded["license"] == "apache-2.0"
    assert loaded["size_categories"] == ["n<1K"]
    assert "inverse-dynamics" in loaded["tags"]
    assert f"{len(truth)} pairs of video frames" in text
    assert run.config().digest() in text
    assert "label/accuracy_accepted" in text
    assert ("lerobot.utils.collate import lerobot_collate_fn" in text) == (name == "lerobot")


def test_a_folder_with_content_is_left_alone(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="not empty and nothing is overwritten"):
        export_run(run, "hf", tmp_path, None, silent)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_file_in_the_way_is_left_alone(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    with pytest.raises(UserError, match="no folder"):
        export_run(run, "hf", tmp_path / "out", None, silent)


def test_an_interrupted_export_leaves_nothing(run: RunFolder, tmp_path: Path) -> None:
    def interrupt(done: int, total: int, what: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_run(run, "aurora", tmp_path / "out", None, interrupt)
    assert not list(tmp_path.iterdir())


def test_an_empty_folder_may_be_filled(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_run(run, "aurora", tmp_path / "out", 1, silent)
    assert (tmp_path / "out" / "lineage.json").is_file()


@pytest.mark.parametrize(
    ("name", "round_id", "said"),
    [
        ("hf", 0, "round 0 has no labels"),
        ("hf", 7, "has not finished round 7"),
        ("adapters", -1, "round -1 has no labels"),
    ],
)
def test_a_wrong_request_is_one_line(
    run: RunFolder, tmp_path: Path, name: str, round_id: int | None, said: str
) -> None:
    with pytest.raises(UserError, match=said):
        export_run(run, name, tmp_path / "out", round_id, silent)
    assert not list(tmp_path.iterdir())


def test_a_blocked_round_is_exported_only_when_it_is_named(
    copied: RunFolder, tmp_path: Path
) -> None:
    path = copied.round(1) / "report.json"
    report = read_json(path)
    guard = {"name": "copy_rate", "value": 1.0, "limit": 0.5, "passed": False, "message": "copies"}
    write_json(path, {**report, "guards": [guard]})
    with pytest.raises(UserError, match="no promoted round from round 1 on"):
        export_run(copied, "hf", tmp_path / "out", None, silent)
    export_run(copied, "hf", tmp_path / "out", 1, silent)
    assert read_json(tmp_path / "out" / "lineage.json")["promoted"] is False
    assert "Over its limit: copies" in (tmp_path / "out" / "README.md").read_text()


def with_pool(run: RunFolder, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Change the pool's rows, and the manifest's word for which pool it was."""
    rows = [change(row) for row in read_table(run.pool, PAIR_SCHEMA).to_pylist()]
    ref = write_table(
        run.data / "pool.parquet", pa.Table.from_pylist(rows, schema=PAIR_SCHEMA), PAIR_SCHEMA
    )
    manifest = Ledger(run.ledger).manifest(1)
    changed = manifest.model_copy(update={"parents": {**manifest.parents, "pool": ref.digest}})
    (run.ledger / "rounds" / "round-01.json").write_bytes(changed.to_bytes())


@pytest.mark.parametrize("name", ["../../secret.mp4", "/etc/passwd"])
def test_a_clip_outside_the_pool_is_never_opened(
    copied: RunFolder, tmp_path: Path, name: str
) -> None:
    with_pool(copied, lambda row: {**row, "clip_path": name})
    export_run(copied, "aurora", tmp_path / "out", None, silent)
    assert list(read_json(tmp_path / "out" / "lineage.json")["frames"]) == ["codes"]


def test_a_link_out_of_the_pool_is_never_followed(copied: RunFolder, tmp_path: Path) -> None:
    for clip in sorted((copied.data / "pool" / "clips").iterdir()):
        clip.rename(tmp_path / clip.name)
        clip.symlink_to(tmp_path / clip.name)
    export_run(copied, "aurora", tmp_path / "out", None, silent)
    assert list(read_json(tmp_path / "out" / "lineage.json")["frames"]) == ["codes"]


def test_another_pool_than_the_labelled_one_is_refused(copied: RunFolder, tmp_path: Path) -> None:
    rows = read_table(copied.pool, PAIR_SCHEMA).slice(1)
    write_table(copied.data / "pool.parquet", rows, PAIR_SCHEMA)
    with pytest.raises(UserError, match="not the pool that round 1 labelled"):
        export_run(copied, "aurora", tmp_path / "out", None, silent)


def test_another_base_than_the_runs_is_refused(copied: RunFolder, tmp_path: Path) -> None:
    recorded = read_json(copied.root / "run.json")
    write_json(copied.root / "run.json", {**recorded, "base_digest": "0" * 64})
    with pytest.raises(UserError, match="not the one that"):
        export_run(copied, "aurora", tmp_path / "out", None, silent)


def test_the_command_says_what_it_wrote(
    run: RunFolder, truth: dict[str, Row], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-m",
        "dynamics.cli.main",
        "export",
        str(run.root),
        "--out",
        str(out),
    ]
    done = subprocess.run(
        [*command, "--as", "webdataset", "--round", "1"],
        cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"{len(truth)} labels of round 1; frames of {len(truth)} decoded" in done.stdout
    again = subprocess.run(
        [*command, "--as", "hf"],
        cwd=REPOSITORY_ROOT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert again.returncode == 2
    assert again.stderr.startswith("error: ")
    assert "not empty and nothing is overwritten" in again.stderr
