"""Files as people have them, in tests/data/cases: what is read of each, and what is said of others.

docs/FORMATS.md has the table.
"""

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.errors import UserError
from dynamics.core.images import PictureError, read_picture
from dynamics.data.labelled import DATASETS
from dynamics.data.labelled.read import PairReader
from dynamics.data.units import Unit
from dynamics.data.video.decode import ClipFrames, DecodeSpec, Ends
from dynamics.data.video.sandbox import DecodeWorker, Rejected
from dynamics.data.video.sources import SOURCES, Clip, Skipped
from dynamics.data.video.unpack import as_file

CASES = REPOSITORY_ROOT / "tests" / "data" / "cases"
SPEC = DecodeSpec(frame_px=64, top_k=6, spacing_frames=5, min_change=0.0, max_cut=2.0)
BLACK_BARS = (0, 0, 0)
BAD_VIDEOS = {
    "audio_only.mp4": "no_video",
    "empty.mp4": "unreadable",
    "one_frame.mp4": "too_short",
    "other.gif": "unreadable",
    "tiny14.mp4": "frame_size",
}
BAD_PICTURES = {
    "empty.png": "unreadable",
    "html.jpg": "unreadable",
    "i32.tif": "pixel_format",
    "phone.heic": "unreadable",
    "px1.png": "frame_size",
    "svg.png": "unreadable",
    "trunc.jpg": "truncated",
}
NUM_PAIRS = {
    **{f"aurora/{name}": 6 for name in ("bom", "crlf", "dot_slash", "good", "jsonl", "nan")},
    **{f"aurora/{name}": 6 for name in ("nfd", "null_rows", "space_end", "upper_ext", "utf16")},
    **{"aurora/dup_rows": 12, "aurora/emoji": 5, "aurora/winpath": 6},
    **{f"epic/{name}": 3 for name in ("MP4", "bom", "bom_first", "colon_ms", "crlf", "good")},
    **{"epic/noms": 3, "epic/nul": 3, "epic/quote_nl": 3, "epic/unequal": 2},
    **{f"something/{name}": 4 for name in ("good", "id_with_ext", "int_id", "no_ext_mov")},
    **{"something/template_only": 4, "something/upper": 4},
}
SENTENCES = {
    "aurora/absolute": "path_outside.*write it relative to the folder",
    "aurora/dict_data": r"not an object; write the list in it alone: jq \.data",
    "aurora/empty_list": "0 of 0 rows can be used",
    "aurora/latin1": "is not UTF-8 .*Latin-1.*iconv",
    "aurora/trailing_comma": "not valid JSON at line 32.*a comma stands before it",
    "epic/semicolon": "no column video_id.*separated by semicolons",
}


@pytest.fixture(scope="module")
def worker() -> Iterator[DecodeWorker]:
    worker = DecodeWorker(memory_mb=1024, timeout_s=30)
    yield worker
    worker.close()


def ends(worker: DecodeWorker, name: str) -> np.ndarray:
    found = worker.segment(CASES / "videos" / name, None, 64, BLACK_BARS)
    assert isinstance(found, Ends)
    return found.frames.astype(int)


@pytest.mark.parametrize("path", sorted((CASES / "videos").iterdir()), ids=lambda path: path.name)
def test_a_video_is_read_or_refused_with_its_reason(worker: DecodeWorker, path: Path) -> None:
    clip, pair = worker.decode(path, SPEC), worker.segment(path, None, 64)
    if path.name in BAD_VIDEOS:
        assert {one.reason for one in (clip, pair) if isinstance(one, Rejected)} == {
            BAD_VIDEOS[path.name]
        }
        return
    assert isinstance(clip, ClipFrames), clip
    assert isinstance(pair, Ends), pair
    assert len(clip.indices) == 6
    assert (np.diff(clip.times_s) > 0).all()
    assert clip.times_s[0] >= 0
    assert pair.times_s[1] > pair.times_s[0] == 0


def test_frames_are_turned_mirrored_and_stretched_as_a_player_does(worker: DecodeWorker) -> None:
    plain = ends(worker, "plain.mp4")
    for name, expected in (
        ("hflip.mp4", plain[:, :, ::-1]),
        ("rot90.mp4", np.rot90(plain, axes=(1, 2))),
        ("rot45.mp4", plain),
    ):
        assert abs(ends(worker, name) - expected).mean() < 1, name
    # 48x64 pixels twice as wide as high: 96x64, so bars above and below, none beside.
    lit = ends(worker, "sar2.mp4").max(axis=(0, 3)) > 40
    assert lit.any(axis=0).all()
    assert 40 <= lit.any(axis=1).sum() <= 46


def test_a_bad_packet_costs_the_pairs_around_it(worker: DecodeWorker) -> None:
    spec = DecodeSpec(frame_px=64, top_k=6, spacing_frames=5, min_change=0.0, max_cut=2.0)
    found = worker.decode(CASES / "videos" / "one_bad_packet.avi", spec)
    assert isinstance(found, ClipFrames)
    verdicts = {(pair.source, pair.target): pair.verdict for pair in found.pairs}
    assert [pair for pair, verdict in verdicts.items() if verdict == "damaged"] == [(36, 65)]


def test_a_folder_lists_every_video_and_counts_the_rest() -> None:
    found = list(SOURCES["folder"](CASES / "videos"))
    assert [one for one in found if isinstance(one, Skipped)] == [
        Skipped(name="other.gif", reason="skipped .gif")
    ]
    assert len(found) == len(list((CASES / "videos").iterdir()))


@pytest.mark.parametrize("path", sorted((CASES / "tars").iterdir()), ids=lambda path: path.name)
def test_every_tar_is_read(worker: DecodeWorker, path: Path, tmp_path: Path) -> None:
    shutil.copy(path, tmp_path)
    found = list(SOURCES["webdataset"](tmp_path))
    clips = [one for one in found if isinstance(one, Clip)]
    assert clips
    assert {one.reason for one in found if isinstance(one, Skipped)} <= {
        "skipped hidden",
        "skipped without suffix",
        "skipped .txt",
    }
    with as_file(clips[-1]) as file:
        assert isinstance(worker.decode(file, SPEC), ClipFrames)


def as_cache(folder: Path, cache: Path) -> Path:
    """A folder as the Hugging Face cache lays it out: links to files named by their digests."""
    snapshot, blobs = cache / "snapshots" / ("a" * 40), cache / "blobs"
    blobs.mkdir(parents=True)
    for path in filter(Path.is_file, folder.rglob("*")):
        blob = blobs / hashlib.sha256(path.read_bytes()).hexdigest()
        shutil.copy(path, blob)
        link = snapshot / path.relative_to(folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(Path("../" * len(link.relative_to(cache).parts[1:])) / "blobs" / blob.name)
    return snapshot


@pytest.fixture(params=["plain", "cache"])
def layout(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.mark.parametrize("name", sorted({**NUM_PAIRS, **SENTENCES}))
def test_a_labelled_set_is_read_or_refused_in_a_sentence(
    name: str, layout: str, tmp_path: Path
) -> None:
    kind = name.partition("/")[0]
    folder = CASES / "sets" / name
    if layout == "cache":
        folder = as_cache(folder, tmp_path / "cache")
    path = folder / "train.json" if kind == "aurora" else folder
    if name in SENTENCES:
        with pytest.raises(UserError, match=SENTENCES[name]) as caught:
            DATASETS[kind](path)
        assert "\n" not in str(caught.value)
        return
    listed = DATASETS[kind](path)
    assert len(listed.pairs) == NUM_PAIRS[name]
    read = PairReader(frame_px=64, bars=None, memory_mb=1024, timeout_s=30)
    # One pair stands for all of a set whose pairs differ in their shade only.
    rows = read(Unit(key="", entries=listed.pairs[:1]))
    assert [json.loads(verdict)["rows"] for verdict in rows["verdict"].to_pylist()] == [1]


def test_absolute_paths_into_the_very_folder_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(CASES / "sets" / "aurora" / "absolute", folder)
    manifest = folder / "train.json"
    text = manifest.read_text().replace("/absolute/path/to/this/folder", str(folder))
    manifest.write_text(text)
    assert len(DATASETS["aurora"](manifest).pairs) == 6


@pytest.mark.parametrize("path", sorted((CASES / "pictures").iterdir()), ids=lambda path: path.name)
def test_a_picture_has_one_verdict_everywhere(worker: DecodeWorker, path: Path) -> None:
    payload = path.read_bytes()
    pair = worker.pictures(payload, payload, 32)
    if path.name in BAD_PICTURES:
        with pytest.raises(PictureError) as caught:
            read_picture(path)
        assert caught.value.reason == BAD_PICTURES[path.name]
        assert isinstance(pair, Rejected)
        assert pair.reason == BAD_PICTURES[path.name]
    else:
        assert read_picture(path).mode == "RGB"
        assert isinstance(pair, Ends), pair


def test_a_picture_of_20_million_pixels_is_read(worker: DecodeWorker, tmp_path: Path) -> None:
    Image.new("1", (4000, 5000)).save(tmp_path / "large.png")
    payload = (tmp_path / "large.png").read_bytes()
    assert isinstance(worker.pictures(payload, payload, 32), Ends)
