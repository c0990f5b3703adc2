import json

import pytest

from dynamics.core.errors import UserError
from dynamics.data.labelled.something import list_something
from tests.made_data import write_clip, write_something


def test_a_label_names_the_first_and_last_frame_of_its_clip(tmp_path):
    listed = list_something(write_something(tmp_path, num=2))
    pair = listed.pairs[1]
    assert pair.frames.span_s is None
    assert pair.frames.path.name == "1.webm"
    assert pair.action == "putting cup 1 on plate"
    assert pair.clip_class == "Putting something on something"
    assert pair.sources == ("1",)


def test_missing_videos_and_rows_without_a_label_are_counted(tmp_path):
    write_something(tmp_path, num=2)
    path = tmp_path / "labels" / "train.json"
    rows = json.loads(path.read_text())
    rows += [{"id": "99", "label": "lift it"}, {"id": "0"}, {"id": "../../etc", "label": "go"}, 7]
    path.write_text(json.dumps(rows))
    listed = list_something(tmp_path)
    assert len(listed.pairs) == 2
    assert listed.counts() == {"missing_video": 2, "no_action": 2}
    assert "qualcomm.com" in listed.summary()


def test_a_validation_file_may_be_named(tmp_path):
    write_something(tmp_path, num=1)
    write_clip(tmp_path / "more" / "77.webm", (1, 2))
    path = tmp_path / "labels" / "validation.json"
    path.write_text(json.dumps([{"id": "77", "label": "lift it"}]))
    assert [pair.name for pair in list_something(path).pairs] == ["more/77.webm"]


def test_missing_labels_say_where_they_were_looked_for(tmp_path):
    with pytest.raises(UserError, match=r"no label file.*labels/train\.json"):
        list_something(tmp_path)


def test_archives_and_other_formats_are_named_where_videos_are_missing(tmp_path):
    rows = [{"id": name, "label": "Moving"} for name in ("1", "videos\\2.webm", "3", "4")]
    (tmp_path / "train.json").write_text(json.dumps(rows))
    for name in ("2.mp4", "3.wmv", "clips.tar.gz", "4.csv"):
        (tmp_path / name).write_bytes(b"x")
    listed = list_something(tmp_path)
    assert [pair.name for pair in listed.pairs] == ["2.mp4"]
    assert listed.counts() == {"missing_video": 2, "skipped .wmv": 1, "archive": 1}
    assert "1 of 4 rows can be used" in listed.summary()
    assert "clips.tar.gz): labelled sets are read unpacked" in listed.summary()
