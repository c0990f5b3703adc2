import json
from pathlib import Path

import pytest

from dynamics.core.errors import UserError
from dynamics.data.labelled.aurora import list_aurora
from dynamics.data.labelled.split import grouped
from tests.made_data import picture, write_aurora


def manifest(root: Path, rows: list[object], name: str = "rows.json") -> Path:
    (root / name).write_text(json.dumps(rows))
    return root / name


def test_a_checkout_gives_all_tasks_that_are_there_and_names_the_others(tmp_path):
    listed = list_aurora(write_aurora(tmp_path))
    assert [pair.clip_class for pair in listed.pairs] == ["magicbrush"] * 8 + ["ag"] * 8
    assert listed.counts() == {"missing_manifest": 2}
    assert "data/something/train.json" in listed.summary()
    assert "zenodo.org" in listed.summary()


def test_a_list_of_wordings_gives_its_first(tmp_path):
    listed = list_aurora(write_aurora(tmp_path))
    assert [pair.action for pair in listed.pairs[:2]] == ["slide the ring", "remove the cross"]


def test_paths_of_a_task_s_manifest_count_from_the_checkout(tmp_path):
    write_aurora(tmp_path)
    listed = list_aurora(tmp_path / "data" / "ag" / "train.json")
    assert len(listed.pairs) == 8
    assert listed.pairs[0].frames.source.read() == picture(100)


def test_frames_of_one_video_and_turns_of_one_picture_share_a_source(tmp_path):
    names = [
        ("data/ag/images/V.mp4_1_left.png", "data/ag/images/V.mp4_1_right.png"),
        ("data/ag/images/V.mp4_9_left.png", "data/ag/images/V.mp4_9_right.png"),
        ("data/ag/images/W.mp4_1_left.png", "data/ag/images/W.mp4_1_right.png"),
        ("data/magicbrush/images/7/7-input.png", "data/magicbrush/images/7/7-output1.png"),
        ("data/magicbrush/images/7/7-output1.png", "data/magicbrush/images/7/7-output2.png"),
        ("data/whatsup/images/a.jpeg", "data/whatsup/images/b.jpeg"),
        ("data/whatsup/images/c.jpeg", "data/whatsup/images/b.jpeg"),
        ("data/whatsup/images/c.jpeg", "data/whatsup/images/d.jpeg"),
    ]
    for name in {name for pair in names for name in pair}:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(picture(1))
    rows = [{"input": a, "output": b, "instruction": "do it"} for a, b in names]
    groups = grouped(list_aurora(manifest(tmp_path, rows)).pairs)
    assert [len(group) for group in groups] == [2, 1, 2, 3]


def test_bad_rows_are_counted_and_the_rest_is_used(tmp_path):
    (tmp_path / "a.png").write_bytes(picture(1))
    (tmp_path / "b.png").write_bytes(picture(2))
    (tmp_path / "out.png").symlink_to("/etc/hostname")
    good = {"input": "a.png", "output": "b.png", "instruction": "open it"}
    rows = [
        good,
        good | {"input": "../a.png"},
        good | {"output": "/etc/passwd"},
        good | {"output": "http://example.org/b.png"},
        good | {"output": "out.png"},
        good | {"output": "c.png"},
        good | {"instruction": ""},
        good | {"instruction": "x" * 10_000},
        good | {"instruction": "<image> IMGIMGAZ"},
        good | {"instruction": [["nested"]]},
        {"instruction": "no images"},
        "not a row",
        None,
    ]
    listed = list_aurora(manifest(tmp_path, rows))
    assert len(listed.pairs) == 1
    assert listed.counts() == {
        "path_outside": 3,
        "symlink": 1,
        "missing_image": 1,
        "no_action": 2,
        "long_action": 1,
        "special_token": 1,
        "no_path": 3,
    }
    assert "\n" not in listed.summary()


@pytest.mark.parametrize("text", ["{", '{"rows": []}', "[" * 100_000, "null"])
def test_a_manifest_that_is_no_list_is_one_line(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(UserError, match=r"rows\.json") as caught:
        list_aurora(path)
    assert "\n" not in str(caught.value)


def test_a_manifest_of_eleven_thousand_rows_says_which_half_of_its_images_is_missing(tmp_path):
    rows, payload = [], picture(3, size=16)
    folder = tmp_path / "data" / "ag" / "images"
    folder.mkdir(parents=True)
    for number in range(11_373):
        names = [f"data/ag/images/V{number}.mp4_1_{side}.png" for side in ("left", "right")]
        if number % 2:
            for name in names:
                (tmp_path / name).write_bytes(payload)
        row = {"instruction": f"move it {number}", "input": names[0], "output": names[1]}
        rows.append(row)
    manifest(tmp_path / "data" / "ag", rows, "train.json")
    listed = list_aurora(tmp_path)
    assert len(listed.pairs) == 5686
    assert listed.counts() == {"missing_image": 5687, "missing_manifest": 3}
    assert "5,686 of 11,373 rows can be used" in listed.summary()
    assert "5,687 missing_image (e.g. data/ag/images/V0.mp4_1_left.png)" in listed.summary()


def test_the_benchmark_s_own_file_lists_every_pair(real_bench):
    listed = list_aurora(real_bench / "test.json")
    assert len(listed.pairs) == 50
    assert listed.rejects == ()
    assert {pair.clip_class for pair in listed.pairs} == {
        "magicbrush",
        "ag",
        "something",
        "whatsup",
        "kubric",
    }
