import pytest

from dynamics.core.errors import UserError
from dynamics.data.labelled.epic import list_epic
from tests.made_data import write_clip, write_epic

HEAD = "narration_id,video_id,start_timestamp,stop_timestamp,narration\n"


def test_a_narration_names_the_ends_of_its_segment(tmp_path):
    pair = list_epic(write_epic(tmp_path, num_videos=2)).pairs[1]
    assert pair.frames.path.name == "P01_00.MP4"
    assert pair.frames.span_s == (1.1, 1.9)
    assert pair.action == "remove the cross"
    assert pair.clip_class == "open"
    assert pair.sources == ("P01_00",)


def test_the_published_time_stamps_are_read(tmp_path):
    write_clip(tmp_path / "P01_01.MP4", (1, 2))
    row = "P01_01_0,P01_01,01:02:03.14,01:02:06.37,open door\n"
    (tmp_path / "EPIC_100_train.csv").write_text(HEAD + row)
    (pair,) = list_epic(tmp_path).pairs
    assert pair.frames.span_s == pytest.approx((3723.14, 3726.37))


def test_bad_rows_are_counted(tmp_path):
    write_clip(tmp_path / "P01_01.MP4", (1, 2))
    rows = (
        "a,P01_01,00:00:00.10,00:00:00.80,open door\n"
        "b,P01_09,00:00:00.10,00:00:00.80,open door\n"
        "c,P01_01,00:00:00.80,00:00:00.10,open door\n"
        "d,P01_01,soon,00:00:00.80,open door\n"
        "e,P01_01,00:00:00.10,00:00:00.80,\n"
        "f,../P01_01,00:00:00.10,00:00:00.80,open door\n"
        "g,P01_01\n"
        'h,P01_01,00:00:00.10,00:00:00.80,"open, then ""close"""\n'
    )
    (tmp_path / "EPIC_100_train.csv").write_text(HEAD + rows)
    listed = list_epic(tmp_path)
    assert [pair.action for pair in listed.pairs] == ["open door", 'open, then "close"']
    assert listed.counts() == {
        "missing_video": 2,
        "empty_segment": 1,
        "no_timestamp": 1,
        "no_action": 2,
    }
    assert "github.com/epic-kitchens" in listed.summary()


@pytest.mark.parametrize("text", ["", "video_id,narration\nP01,open\n", "\x00\x01\x02"])
def test_a_file_without_the_columns_names_them(tmp_path, text):
    write_clip(tmp_path / "P01_01.MP4", (1, 2))
    (tmp_path / "EPIC_100_train.csv").write_text(text)
    with pytest.raises(UserError, match=r"has no column .*start_timestamp"):
        list_epic(tmp_path)
