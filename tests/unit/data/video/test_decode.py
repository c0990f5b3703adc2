import struct
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from dynamics.data.video import decode
from dynamics.data.video.decode import (
    MIN_BYTES_PER_S,
    BadClip,
    DecodeSpec,
    film_s,
    read_clip,
    read_ends,
)
from dynamics.data.video.encode import write_mp4

SPEC = DecodeSpec(frame_px=32, top_k=6, spacing_frames=3, min_change=0.004, max_cut=0.5)


def write_video(
    path: Path,
    frames: np.ndarray,
    codec: str,
    pix_fmt: str,
    *,
    rotation: float = 0.0,
    shift: int = 0,
    max_b_frames: int = 0,
) -> None:
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled"}) as container:
        stream = container.add_stream(codec, 10)
        if max_b_frames:
            stream.codec_context.max_b_frames = max_b_frames
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], pix_fmt
        if rotation:
            stream.set_display_rotation(rotation)
        for frame in (*(av.VideoFrame.from_ndarray(one, format="rgb24") for one in frames), None):
            for packet in stream.encode(frame):
                packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                container.mux(packet)


def area_mean(frames: np.ndarray, factor: int) -> np.ndarray:
    num, height, width, _ = frames.shape
    blocks = frames.reshape(num, height // factor, factor, width // factor, factor, 3)
    return blocks.mean((2, 4))


def test_picked_frames_are_the_states_of_the_clip(film, tmp_path):
    for seed in range(20):
        frames = film(seed)
        write_mp4(tmp_path / "clip.mp4", frames, 6)
        clip = read_clip(tmp_path / "clip.mp4", SPEC)
        assert clip.indices == (3, 6, 9, 12, 15, 18)
        assert clip.times_s == pytest.approx([index / 6 for index in clip.indices])
        assert {pair.verdict for pair in clip.pairs} == {"accepted"}
        error = clip.frames - area_mean(frames[list(clip.indices)], 4)
        assert abs(error).mean() < 1.5


def test_second_pass_over_a_large_clip_gives_the_same_frames(film, tmp_path, monkeypatch):
    write_mp4(tmp_path / "clip.mp4", film(0), 6)
    once = read_clip(tmp_path / "clip.mp4", SPEC)
    monkeypatch.setattr(decode, "KEEP_BYTES", 0)
    twice = read_clip(tmp_path / "clip.mp4", SPEC)
    np.testing.assert_array_equal(once.frames, twice.frames)
    assert once.pairs == twice.pairs


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("clip.mp4", "mpeg4", "yuv420p"),
        ("clip.avi", "mjpeg", "yuvj420p"),
        ("clip.webm", "libvpx", "yuv420p"),
        ("clip.mkv", "libx264", "yuv444p10le"),
    ],
)
def test_every_container_gives_the_filmed_colours(film, tmp_path, name, codec, pix_fmt):
    frames = film(4)
    write_video(tmp_path / name, frames, codec, pix_fmt)
    clip = read_clip(tmp_path / name, SPEC)
    assert clip.indices == (3, 6, 9, 12, 15, 18)
    assert clip.times_s == pytest.approx([index / 10 for index in clip.indices], abs=0.002)
    error = clip.frames - area_mean(frames[list(clip.indices)], 4)
    assert abs(error.mean()) < 2
    assert abs(error).mean() < 6


def test_wide_clip_is_cropped_to_its_centre(film, tmp_path):
    frames = film(5)
    wide = np.concatenate([np.full_like(frames, 0), frames, np.full_like(frames, 255)], axis=2)
    write_mp4(tmp_path / "wide.mp4", wide, 6)
    clip = read_clip(tmp_path / "wide.mp4", SPEC)
    assert abs(clip.frames - area_mean(frames[list(clip.indices)], 4)).mean() < 2


@pytest.mark.parametrize("quarter_turns", [1, 2, 3])
def test_rotated_clip_is_turned_upright(film, tmp_path, quarter_turns):
    frames = film(6)
    # A phone held sideways: stored turned one way, with the turn back as metadata.
    stored = np.ascontiguousarray(np.rot90(frames, -quarter_turns, axes=(1, 2)))
    write_video(tmp_path / "phone.mp4", stored, "libx264", "yuv420p", rotation=90 * quarter_turns)
    with av.open(str(tmp_path / "phone.mp4")) as container:
        assert next(container.decode(video=0)).rotation % 360 == 90 * quarter_turns
    clip = read_clip(tmp_path / "phone.mp4", SPEC)
    assert abs(clip.frames - area_mean(frames[list(clip.indices)], 4)).mean() < 3


def test_clip_whose_pairs_are_all_rejected_carries_no_frames(tmp_path):
    write_mp4(tmp_path / "still.mp4", np.full((20, 64, 64, 3), 90, np.uint8), 6)
    clip = read_clip(tmp_path / "still.mp4", SPEC)
    assert clip.frames.shape == (0, 32, 32, 3)
    assert {pair.verdict for pair in clip.pairs} == {"near_copy"}


def test_a_cut_file_gives_its_frames_and_has_no_last_one(film, tmp_path):
    frames = film(0)
    with av.open(str(tmp_path / "clip.avi"), "w") as container:
        stream = container.add_stream("mjpeg", 10)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[1:3], "yuvj420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    whole = (tmp_path / "clip.avi").read_bytes()
    (tmp_path / "half.avi").write_bytes(whole[: len(whole) // 2])
    assert read_clip(tmp_path / "half.avi", SPEC).indices == (0, 3)
    with pytest.raises(BadClip) as caught:
        read_ends(tmp_path / "half.avi", None, 32)
    assert caught.value.reason == "damaged"


def test_the_ends_of_a_video_are_its_first_and_last_frame(film, tmp_path):
    frames = film(3)
    write_mp4(tmp_path / "clip.mp4", frames, 6)
    ends = read_ends(tmp_path / "clip.mp4", None, 32)
    assert ends.indices == (0, len(frames) - 1)
    assert ends.times_s == pytest.approx((0, (len(frames) - 1) / 6))
    assert abs(ends.frames - area_mean(frames[[0, -1]], 4)).mean() < 1.5


@pytest.mark.parametrize(("name", "codec"), [("clip.mp4", "libx264"), ("clip.webm", "libvpx")])
def test_the_ends_of_a_segment_are_what_a_player_shows_then(film, tmp_path, name, codec):
    frames = np.concatenate([film(seed, hold=5) for seed in range(4)])  # over several key frames
    write_video(tmp_path / name, frames, codec, "yuv420p")
    for first, last in ((0, 1), (7, 52), (52, 53), (90, len(frames) - 1)):
        span_s = (first / 10 + 0.03, last / 10 + 0.03)
        ends = read_ends(tmp_path / name, span_s, 32)
        assert ends.indices == (first, last)
        assert ends.times_s == pytest.approx((first / 10, last / 10), abs=0.002)
        assert abs(ends.frames - area_mean(frames[[first, last]], 4)).mean() < 4


@pytest.mark.parametrize(
    ("span_s", "reason"),
    [((1.0, 1.0), "empty_segment"), ((-1.0, 1.0), "empty_segment"), ((0.0, 60.0), "past_the_end")],
)
def test_segments_that_are_not_there_are_rejected(film, tmp_path, span_s, reason):
    write_mp4(tmp_path / "clip.mp4", film(0), 6)
    with pytest.raises(BadClip) as caught:
        read_ends(tmp_path / "clip.mp4", span_s, 32)
    assert caught.value.reason == reason


def test_a_segment_may_end_a_moment_after_its_video(film, tmp_path):
    frames = film(0)
    write_mp4(tmp_path / "clip.mp4", frames, 6)
    ends = read_ends(tmp_path / "clip.mp4", (0.0, len(frames) / 6 + 0.5), 32)
    assert ends.indices == (0, len(frames) - 1)


def test_long_clips_have_key_frames_for_every_minute(film, tmp_path):
    spec = replace(SPEC, per_minute=6.0)
    assert [spec.most_frames(seconds) for seconds in (5, 60, 90, 7200)] == [6, 6, 9, 720]
    assert replace(spec, frame_px=512).most_frames(7200) == 170  # 128 MB of frames
    write_mp4(tmp_path / "clip.mp4", film(0), 6)
    few, many = (
        read_clip(tmp_path / "clip.mp4", replace(SPEC, top_k=2, per_minute=rate))
        for rate in (0, 60)
    )
    assert len(few.pairs) == 1 < len(many.pairs)


def test_the_length_of_a_film_is_its_headers_or_what_the_file_has_room_for(film, tmp_path):
    frames, path = film(0), tmp_path / "clip.mkv"
    write_video(path, frames, "libx264", "yuv420p")
    assert film_s(path) == pytest.approx(len(frames) / 10, abs=0.1)
    payload = path.read_bytes()
    duration = payload.index(b"\x44\x89\x88") + 3  # a header that claims eleven days
    path.write_bytes(payload[:duration] + struct.pack(">d", 1e9) + payload[duration + 8 :])
    assert film_s(path) == path.stat().st_size / MIN_BYTES_PER_S


def test_a_first_frame_that_comes_late_is_shown_from_the_beginning(film, tmp_path):
    frames = film(0)
    write_video(tmp_path / "clip.avi", frames, "mpeg4", "yuv420p", max_b_frames=2)
    ends = read_ends(tmp_path / "clip.avi", (0.0, 1.03), 32)
    assert abs(ends.frames[0] - area_mean(frames[:1], 4)[0]).mean() < 4


def test_a_clock_that_leaps_goes_on_at_the_nominal_rate(film, tmp_path):
    """Flash video counts milliseconds before zero as weeks."""
    frames = film(0)
    write_video(tmp_path / "clip.flv", frames, "flv1", "yuv420p", shift=-10)
    ends = read_ends(tmp_path / "clip.flv", None, 32)
    assert ends.times_s == pytest.approx((0, (len(frames) - 1) / 10), abs=0.002)


def test_a_still_has_no_two_ends(tmp_path):
    write_mp4(tmp_path / "clip.mp4", np.zeros((1, 64, 64, 3), np.uint8), 6)
    with pytest.raises(BadClip) as caught:
        read_ends(tmp_path / "clip.mp4", None, 32)
    assert caught.value.reason == "too_short"
