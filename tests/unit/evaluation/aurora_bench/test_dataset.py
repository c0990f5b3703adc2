"""Rows of a benchmark folder that are read, counted and refused."""

import json
import os

import pytest
from PIL import Image

from dynamics.core.errors import UserError
from dynamics.evaluation.aurora_bench.dataset import SUBSETS, read_benchmark


def test_the_shared_pairs_are_all_usable(real_bench):
    data = read_benchmark(real_bench)
    counts = [sum(item.subset == subset for item in data.items) for subset in SUBSETS]
    assert counts == [10] * 5
    assert data.rejects == {}


def test_a_row_becomes_an_item(bench):
    item = read_benchmark(bench).items[0]
    assert (item.item_id, item.subset, item.instruction) == (
        "ag-0000",
        "ag",
        "push the red ring a1",
    )
    assert item.target == bench / "data/ag/0-b.png"


def test_of_several_wordings_the_first_is_taken(write_bench):
    root = write_bench(lambda rows: rows[0].update(instruction=["turn  it\nround", "spin it"]))
    assert read_benchmark(root).items[0].instruction == "turn it round"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"output": "data/ag/gone.png"}, "missing_file"),
        ({"output": "data/ag/broken.png"}, "truncated"),
        ({"output": "data/ag/bomb.png"}, "too_large"),
        ({"output": ""}, "no_target"),
        ({"input": 7}, "malformed_row"),
        ({"instruction": "  "}, "no_instruction"),
        ({"instruction": None}, "no_instruction"),
        ({"task": "clevr"}, "other_subset"),
        ({"task": 3}, "malformed_row"),
    ],
)
def test_a_row_that_cannot_be_used_is_counted(write_bench, change, reason):
    def spoil(rows):
        rows.append({**rows[0], **change})

    root = write_bench(spoil)
    (root / "data/ag/broken.png").write_bytes((root / "data/ag/0-a.png").read_bytes()[:200])
    Image.new("1", (9000, 9000)).save(root / "data/ag/bomb.png")
    data = read_benchmark(root)
    assert len(data.items) == 4
    assert data.rejects == {reason: 1}


def test_rows_that_are_no_objects_are_counted(write_bench):
    data = read_benchmark(write_bench(lambda rows: rows.extend([None, "x", []])))
    assert data.rejects == {"malformed_row": 3}


@pytest.mark.parametrize(
    "path",
    [
        "../outside.png",
        "data/../../outside.png",
        "/etc/hostname",
        "http://host/a.png",
        "file:data/ag/0-a.png",
        "C:\\a.png",
        "data\\..\\..\\a.png",
        "data/ag/0-a.png\x00.jpg",
    ],
)
@pytest.mark.parametrize("key", ["input", "output"])
def test_a_path_that_leaves_the_folder_is_refused(write_bench, path, key):
    root = write_bench(lambda rows: rows[1].update({key: path}))
    with pytest.raises(UserError, match=r"row 1: .*not a relative path"):
        read_benchmark(root)


def test_a_link_that_leads_out_is_refused(write_bench, tmp_path):
    root = write_bench(lambda rows: rows[0].update(input="data/link.png"))
    (tmp_path / "outside.png").write_bytes((root / "data/ag/0-a.png").read_bytes())
    os.symlink(tmp_path / "outside.png", root / "data/link.png")
    with pytest.raises(UserError, match="link that leads out"):
        read_benchmark(root)


def test_names_and_manifests_are_read_as_in_labelled_sets(bench):
    plain = read_benchmark(bench).items
    rows = json.loads((bench / "test.json").read_text())
    rows[0]["input"] = rows[0]["input"].replace("/", "\\")
    rows[1]["output"] = (
        str(bench / rows[1]["output"]).upper().replace(str(bench).upper(), str(bench))
    )
    lines = "\r\n".join(map(json.dumps, rows))
    (bench / "test.json").write_bytes(lines.encode("utf-16"))
    assert [item.digest for item in read_benchmark(bench).items] == [item.digest for item in plain]
    (bench / "data/ag/0-a.png").write_text("version https://git-lfs.github.com/spec/v1")
    assert read_benchmark(bench).rejects == {"git_lfs": 1}


@pytest.mark.parametrize("text", ["{", "{}", '"x"', "[" * 100_000])
def test_a_manifest_that_is_no_list_is_named(bench, text):
    (bench / "test.json").write_text(text)
    with pytest.raises(UserError, match=r"test\.json"):
        read_benchmark(bench)


def test_a_folder_without_a_manifest_is_named(tmp_path):
    with pytest.raises(UserError, match="AURORA's layout"):
        read_benchmark(tmp_path)


def test_a_manifest_without_a_usable_pair_says_why(write_bench):
    root = write_bench(lambda rows: [row.update(output="") for row in rows])
    with pytest.raises(UserError, match=r"no usable pair .no_target 4"):
        read_benchmark(root)


def test_a_changed_picture_or_text_changes_an_items_digest(bench, write_bench):
    before = read_benchmark(bench).items
    Image.new("RGB", (64, 48)).save(bench / "data/ag/0-b.png")
    rows = json.loads((bench / "test.json").read_text())
    rows[1]["instruction"] = "another one"
    (bench / "test.json").write_text(json.dumps(rows))
    after = read_benchmark(bench).items
    changed = [a.digest != b.digest for a, b in zip(before, after, strict=True)]
    assert changed == [True, True, False, False]


def test_disc_edit_prompts_come_from_rows_and_from_auroras_own_folder(write_bench):
    def change(rows):
        rows[0]["pos"] = "leave the cube"
        rows[1].update(pos="leave it", neg="push it")

    root = write_bench(change)
    folder = root / "disc_edit_data"
    (folder / "clevr").mkdir(parents=True)
    source = {"input": "data/kubric/2-a.png", "pos": "keep it", "prompt": "move it"}
    (folder / "clevr" / "valid.json").write_text(json.dumps([source, {"pos": "x"}]))
    (folder / "whatsup").mkdir()
    row = {"image": "data/whatsup/3-a.png", "pos": "cup left", "neg": "cup right"}
    (folder / "whatsup" / "itm_test.json").write_text(json.dumps([row]))
    data = read_benchmark(root)
    assert [(d.subset, d.fulfilled, d.wanted) for d in data.disc_items] == [
        ("ag", "leave the cube", "push the red ring a1"),
        ("ag", "leave it", "push it"),
        ("clevr", "keep it", "move it"),
        ("whatsup", "cup left", "cup right"),
    ]
    assert data.rejects == {"disc_edit: no_instruction": 1}
