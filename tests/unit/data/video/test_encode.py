import errno
from pathlib import Path

import av
import numpy as np
import pytest

from dynamics.core.errors import UserError
from dynamics.data.video import encode
from dynamics.data.video.decode import SCALING
from dynamics.data.video.encode import encode_mp4, write_mp4


def decoded(path: Path, size: int) -> np.ndarray:
    """All frames, scaled as ingest scales them."""
    with av.open(str(path)) as container:
        return np.stack(
            [
                frame.to_ndarray(format="rgb24", width=size, height=size, interpolation=SCALING)
                for frame in container.decode(video=0)
            ]
        )


def area_mean(frames: np.ndarray, factor: int) -> np.ndarray:
    num, height, width, _ = frames.shape
    blocks = frames.reshape(num, height // factor, factor, width // factor, factor, 3)
    return blocks.mean((2, 4))


def test_same_frames_give_the_same_bytes(film):
    assert encode_mp4(film(0), 6) == encode_mp4(iter(film(0)), 6)


def test_frames_survive_the_codec_at_the_size_the_model_sees(film, tmp_path):
    frames = film(0)
    write_mp4(tmp_path / "clip.mp4", frames, 6)
    error = decoded(tmp_path / "clip.mp4", 32) - area_mean(frames, 4)
    assert abs(error.mean()) < 0.5
    assert abs(error).mean() < 1.5


def test_clip_is_h264_with_the_asked_rate(film, tmp_path):
    write_mp4(tmp_path / "clip.mp4", film(0, size=96), 6)
    with av.open(str(tmp_path / "clip.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.average_rate == 6
        assert (stream.width, stream.height) == (96, 96)


def test_odd_sides_name_the_setting(tmp_path):
    with pytest.raises(UserError, match=r"clip\.mp4.*15x15.*film_scale"):
        write_mp4(tmp_path / "clip.mp4", np.zeros((2, 15, 15, 3), np.uint8), 6)
    assert list(tmp_path.iterdir()) == []


def test_no_frames_is_an_error_and_leaves_no_file(tmp_path):
    with pytest.raises(UserError, match="at least one frame"):
        write_mp4(tmp_path / "clip.mp4", [], 6)
    assert list(tmp_path.iterdir()) == []


def test_full_disk_is_named_and_leaves_no_file(film, tmp_path, monkeypatch):
    def full(source: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(encode.os, "replace", full)
    with pytest.raises(UserError, match=r"disk full.*clip\.mp4"):
        write_mp4(tmp_path / "clip.mp4", film(0), 6)
    assert list(tmp_path.iterdir()) == []
