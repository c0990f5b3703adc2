import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import av
import numpy as np
import pytest

from dynamics.data.video.decode import ClipFrames, DecodeSpec
from dynamics.data.video.encode import encode_mp4, write_mp4
from dynamics.data.video.sandbox import (
    DecodeWorker,
    ReadClip,
    Rejected,
    close_decoders,
    decoder,
    read_clip_file,
)
from dynamics.storage.streams import read_ahead

SPEC = DecodeSpec(frame_px=32, top_k=6, spacing_frames=3, min_change=0.004, max_cut=0.5)


@pytest.fixture
def worker():
    worker = DecodeWorker(memory_mb=1024, timeout_s=20)
    yield worker
    worker.close()


@pytest.fixture
def good(film, tmp_path) -> Path:
    write_mp4(tmp_path / "good.mp4", film(0), 6)
    return tmp_path / "good.mp4"


def write_audio_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", 8000)
        sound = np.zeros((1, 4096), np.float32)
        frame = av.AudioFrame.from_ndarray(sound, format="fltp", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def broken(folder: Path, good: Path) -> dict[str, tuple[Path, set[str]]]:
    """Hostile and broken files by name, each with the reasons that fit it."""
    whole = good.read_bytes()
    contents = {
        "empty": (b"", {"unreadable"}),
        "text": (b"this is not a video\n" * 50, {"unreadable"}),
        "ffconcat": (b"ffconcat version 1.0\nfile good.mp4\n", {"unreadable"}),
        "playlist": (
            b"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\ngood.mp4\n#EXT-X-ENDLIST\n",
            {"unreadable"},
        ),
        "truncated": (whole[: len(whole) // 2], {"unreadable"}),
        "header_only": (whole[:40], {"unreadable", "no_video"}),
        "image": (b"\x89PNG\r\n\x1a\n" + bytes(200), {"unreadable"}),
        "single_frame": (encode_mp4(np.zeros((1, 64, 64, 3), np.uint8), 6), {"too_short"}),
        "tiny_frames": (encode_mp4(np.zeros((9, 8, 8, 3), np.uint8), 6), {"frame_size"}),
        "shorter_than_spacing": (encode_mp4(np.zeros((3, 64, 64, 3), np.uint8), 6), {"too_short"}),
    }
    files = {}
    for name, (content, reasons) in contents.items():
        path = folder / f"{name}.mp4"
        path.write_bytes(content)
        files[name] = (path, reasons)
    write_audio_only(folder / "audio.mp4")
    files["audio"] = (folder / "audio.mp4", {"no_video"})
    files["absent"] = (folder / "absent.mp4", {"unreadable"})
    return files


def test_broken_files_are_rejected_with_a_reason_and_the_worker_goes_on(worker, good):
    for name, (path, reasons) in broken(good.parent, good).items():
        result = worker.decode(path, SPEC)
        assert isinstance(result, Rejected), name
        assert result.reason in reasons, (name, result)
        assert str(path.parent) not in result.detail
    assert isinstance(worker.decode(good, SPEC), ClipFrames)


def test_flipped_bits_never_stop_the_worker(worker, good):
    whole = bytearray(good.read_bytes())
    rng = np.random.default_rng(0)
    for _ in range(30):
        damaged = whole.copy()
        for place in rng.integers(0, len(whole), 50):
            damaged[place] ^= 1 << int(rng.integers(8))
        path = good.parent / "flipped.mp4"
        path.write_bytes(damaged)
        assert isinstance(worker.decode(path, SPEC), ClipFrames | Rejected)
    assert isinstance(worker.decode(good, SPEC), ClipFrames)


def test_hung_worker_is_replaced_after_the_time_limit(good):
    worker = DecodeWorker(memory_mb=1024, timeout_s=1.0)
    assert isinstance(worker.decode(good, SPEC), ClipFrames)
    hung = worker.pid
    os.kill(hung, signal.SIGSTOP)
    begin = time.monotonic()
    assert worker.decode(good, SPEC) == Rejected(reason="timeout")
    assert time.monotonic() - begin < 5
    assert not Path(f"/proc/{hung}").exists()
    worker.close()


def test_dead_worker_is_a_reject_and_the_next_clip_is_read(worker, good):
    assert isinstance(worker.decode(good, SPEC), ClipFrames)
    os.kill(worker.pid, signal.SIGKILL)
    result = worker.decode(good, SPEC)
    assert isinstance(result, Rejected)
    assert result.reason == "decoder_crashed"
    assert isinstance(worker.decode(good, SPEC), ClipFrames)


def test_clip_that_spins_is_ended_by_its_processor_time():
    spin = "from dynamics.data.video.worker import limit_cpu\nlimit_cpu(0)\nwhile True: pass"
    done = subprocess.run([sys.executable, "-c", spin], timeout=60, check=False)
    assert done.returncode == -signal.SIGXCPU


# FFmpeg's H.264 decoder reports a failed allocation as invalid data; which of the allocations,
# its own or ours, fails first is not the same every time.
@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt", "reasons"),
    [
        ("huge.avi", "mjpeg", "yuvj420p", {"out_of_memory"}),
        ("huge.mp4", "libx264", "yuv420p", {"damaged", "out_of_memory"}),
    ],
)
def test_clip_beyond_the_memory_limit_is_rejected_and_the_next_is_read(
    good, name, codec, pix_fmt, reasons
):
    path = good.parent / name
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, 10)
        stream.width = stream.height = 4096
        stream.pix_fmt = pix_fmt
        frame = av.VideoFrame.from_ndarray(np.zeros((4096, 4096, 3), np.uint8), format="rgb24")
        for number in range(3):
            frame.pts = number
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    worker = DecodeWorker(memory_mb=40, timeout_s=60)
    result = worker.decode(path, SPEC)
    assert isinstance(result, Rejected)
    assert result.reason in reasons
    assert isinstance(worker.decode(good, SPEC), ClipFrames)
    worker.close()


def test_worker_sees_no_secrets_and_cannot_write(worker, good, monkeypatch):
    monkeypatch.setenv("SECRET_KEY", "hunter2")
    assert isinstance(worker.decode(good, SPEC), ClipFrames)
    assert b"hunter2" not in Path(f"/proc/{worker.pid}/environ").read_bytes()
    limits = Path(f"/proc/{worker.pid}/limits").read_text().splitlines()
    assert any(line.split()[:4] == ["Max", "file", "size", "0"] for line in limits)


def test_closing_ends_the_process(good):
    worker = DecodeWorker(memory_mb=1024, timeout_s=20)
    worker.decode(good, SPEC)
    pid = worker.pid
    worker.close()
    assert not Path(f"/proc/{pid}").exists()


def read(path: Path) -> ReadClip:
    with decoder(memory_mb=1024, timeout_s=600) as worker:
        return read_clip_file(path, SPEC, worker)


def test_clips_are_read_ahead_in_their_order(film, tmp_path):
    paths = []
    for number in range(12):
        paths.append(tmp_path / f"{number}.mp4")
        write_mp4(paths[-1], film(number, num_actions=2 + number % 5), 6)
    results = list(read_ahead(read, paths, close_decoders))
    assert [path for path, _ in results] == paths
    assert [len(found.result.pairs) for _, found in results] == [
        min(5, 2 + number % 5) for number in range(12)
    ]


def test_a_process_keeps_its_workers_until_they_are_closed(good):
    pids = set()
    for _ in range(3):
        with decoder(memory_mb=1024, timeout_s=20) as worker:
            worker.decode(good, SPEC)
            pids.add(worker.pid)
    assert len(pids) == 1
    close_decoders()
    assert not Path(f"/proc/{pids.pop()}").exists()


def test_who_stops_reading_does_not_wait_for_hung_clips(good):
    def read_number(number: int) -> ClipFrames | Rejected:
        with decoder(memory_mb=1024, timeout_s=600) as worker:
            if number:
                os.kill(worker.pid, signal.SIGSTOP)
            return worker.decode(good, SPEC)

    begin = time.monotonic()
    with closing(read_ahead(read_number, range(9), close_decoders)) as results:
        assert isinstance(next(results)[1], ClipFrames)
    assert time.monotonic() - begin < 30
