import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dynamics.core.errors import UserError
from dynamics.data.labelled.lerobot import list_lerobot
from tests.made_data import lerobot_info, write_lerobot


def rewrite(root, **changes) -> None:
    (root / "meta" / "info.json").write_text(json.dumps(lerobot_info(**changes)))


def test_an_episode_with_one_task_is_one_segment_of_its_video(tmp_path):
    listed = list_lerobot(write_lerobot(tmp_path))
    assert len(listed.pairs) == 4
    pair = listed.pairs[2]
    assert pair.name == "videos/observation.images.front/chunk-000/file-000.mp4"
    assert pair.frames.span_s == pytest.approx((2.0, 2.9))
    assert pair.action == pair.clip_class == "take the square"
    assert pair.sources == ("episode 2",)


def test_language_columns_cut_an_episode_where_the_subtask_changes(tmp_path):
    listed = list_lerobot(write_lerobot(tmp_path, language=True, subtasks=True))
    assert [(pair.action, pair.frames.span_s) for pair in listed.pairs[2:4]] == [
        ("reach in episode 1", pytest.approx((1.0, 1.4))),
        ("lift in episode 1", pytest.approx((1.5, 1.9))),
    ]
    assert listed.pairs[2].sources == listed.pairs[3].sources


def test_subtask_indices_are_finer_than_tasks(tmp_path):
    listed = list_lerobot(write_lerobot(tmp_path, subtasks=True))
    assert [pair.action for pair in listed.pairs[:2]] == ["reach for it", "lift it"]


def test_broken_episodes_are_counted_and_the_rest_is_used(tmp_path):
    write_lerobot(tmp_path)
    path = tmp_path / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    rows[0]["data/file_index"] = 7
    rows[1]["videos/observation.images.front/file_index"] = 7
    rows[2]["videos/observation.images.front/from_timestamp"] = None
    pq.write_table(pa.Table.from_pylist(rows), path)
    listed = list_lerobot(tmp_path)
    assert [pair.sources for pair in listed.pairs] == [("episode 3",)]
    assert listed.counts() == {"missing_data": 1, "missing_video": 1, "damaged_metadata": 1}


@pytest.mark.parametrize(
    "template",
    [
        "../{video_key}/file-{file_index:03d}.mp4",
        "/etc/{video_key}",
        "http://example.org/{video_key}.mp4",
    ],
)
def test_paths_of_info_json_never_leave_the_dataset(tmp_path, template):
    write_lerobot(tmp_path)
    rewrite(tmp_path, video_path=template)
    with pytest.raises(UserError, match="4 path_outside"):
        list_lerobot(tmp_path)


def test_formats_of_info_json_reach_no_attribute(tmp_path):
    write_lerobot(tmp_path)
    rewrite(tmp_path, video_path="videos/{video_key.__class__}/{0}.mp4")
    with pytest.raises(UserError, match="4 missing_video"):
        list_lerobot(tmp_path)


def test_pictures_in_data_files_are_read_where_there_is_no_video(tmp_path):
    write_lerobot(tmp_path, subtasks=True)
    rewrite(tmp_path, features={"eye": {"dtype": "image"}})
    path = tmp_path / "data/chunk-000/file-000.parquet"
    frames = pq.read_table(path)
    eyes = [{"bytes": b"picture %d" % row, "path": None} for row in range(frames.num_rows)]
    pq.write_table(frames.append_column("eye", pa.array(eyes)), path, row_group_size=7)
    listed = list_lerobot(tmp_path)
    assert len(listed.pairs) == 8
    read = [(p.frames.source.read(), p.frames.target.read()) for p in listed.pairs[2:4]]
    assert read == [(b"picture 10", b"picture 14"), (b"picture 15", b"picture 19")]
    assert listed.pairs[2].sources == ("episode 1",)


def test_every_camera_can_be_chosen(tmp_path):
    write_lerobot(tmp_path)
    front, wrist = ("observation.images.front", "observation.images.wrist")
    rewrite(tmp_path, features={name: {"dtype": "video"} for name in (front, wrist)})
    assert f"(camera {front}, not {wrist})" in list_lerobot(tmp_path).title
    with pytest.raises(UserError, match=rf"camera {wrist}, not {front}.*4 damaged_metadata"):
        list_lerobot(tmp_path, wrist)  # whose videos no episode names
    with pytest.raises(UserError, match=rf"no camera top; labelled.camera can be {front}, {wrist}"):
        list_lerobot(tmp_path, "top")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"codebase_version": "v2.1"}, "version v2.1, not v3; convert it: .*push-to-hub=false"),
        ({"features": {"action": {"dtype": "float32"}}}, "no camera"),
        ({"features": {"depth": {"dtype": "video", "info": {"is_depth_map": True}}}}, "no camera"),
        ({"features": None}, "no camera"),
    ],
)
def test_other_datasets_say_what_to_do(tmp_path, changes, said):
    write_lerobot(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(UserError, match=said):
        list_lerobot(tmp_path)


def test_damaged_metadata_is_one_line(tmp_path):
    write_lerobot(tmp_path)
    (tmp_path / "meta/tasks.parquet").write_bytes(b"x")
    with pytest.raises(UserError, match=r"tasks\.parquet is damaged"):
        list_lerobot(tmp_path)
    (tmp_path / "meta/info.json").write_text("{")
    with pytest.raises(UserError, match=r"info\.json is not valid JSON"):
        list_lerobot(tmp_path)


@pytest.mark.parametrize(
    "name", ["meta/info.json", "meta/tasks.parquet", "data/chunk-000/file-000.parquet"]
)
def test_a_pointer_in_place_of_a_file_is_named(tmp_path, name):
    write_lerobot(tmp_path)
    (tmp_path / name).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid x")
    with pytest.raises(UserError, match="run git lfs pull"):
        list_lerobot(tmp_path)
