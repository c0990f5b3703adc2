"""Which pair comes next."""

import shutil
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dynamics.annotate.candidates import Candidates, Offer
from dynamics.annotate.namer import RunNamer
from dynamics.core.records import pair_id
from dynamics.data.video.decode import ClipFrames
from dynamics.data.video.keyframes import Pair
from dynamics.data.video.sandbox import ReadClip, Rejected
from dynamics.data.video.sources import Clip
from dynamics.storage.run_folder import RunFolder

GREY, BLUE, RED = (128, 128, 128), (40, 40, 200), (200, 40, 40)


def clip(name: str) -> Clip:
    return Clip(path=None, name=name, clip_class="", version="1")


class Reader:
    """Clips of three frames, the colours of the next ones by name: two pairs a clip."""

    def __init__(self, colours) -> None:
        self.colours = colours

    def read(self, clip):
        if clip.name not in self.colours:
            return ReadClip(sha256="", result=Rejected(reason="unreadable"))
        frames = np.zeros((3, 64, 64, 3), np.uint8) + np.array(GREY, np.uint8)
        for row, colour in enumerate(self.colours[clip.name], start=1):
            frames[row, 16:48, 16:48] = colour
        pairs = tuple(
            Pair(source=20 * row, target=20 * row + 20, motion=0.1, verdict="accepted")
            for row in range(2)
        )
        content = ClipFrames(
            frames=frames,
            shown=frames[:0],
            indices=(0, 20, 40),
            times_s=(0.0, 2.0, 4.0),
            pairs=pairs,
        )
        return ReadClip(sha256=clip.name, result=content)


def all_read(colours, answered=(), namer=None) -> Candidates:
    clips = [clip(name) for name in [*colours, "broken.mp4"]]
    found = Candidates(clips, Reader(colours), answered, namer)
    found.start()
    deadline = time.monotonic() + 10
    while not found.complete and time.monotonic() < deadline:
        time.sleep(0.005)
    assert found.complete
    assert found.failed is None
    return found


def taken(candidates: Candidates) -> list[tuple[str, int]]:
    order = []
    while (one := candidates.take()) is not None:
        order.append((one.shot.clip_path, one.shot.frame0))
    return order


def test_varied_pairs_come_first_and_every_clip_before_any_clip_twice():
    alike = {f"blue{number}": (BLUE, GREY) for number in range(5)}
    order = taken(all_read({**alike, "red": (RED, BLUE)}))
    assert len(order) == 12
    assert {name for name, _ in order[:6]} == {*alike, "red"}
    assert "red" in [name for name, _ in order[:3]]


def test_what_is_like_an_answered_pair_comes_after_what_is_not():
    colours = {"red": (RED, GREY), "blue": (BLUE, GREY), "other": (RED, GREY)}
    answered = [SimpleNamespace(pair_id=pair_id("red", 0, 20), clip_path="red")]
    assert taken(all_read(colours, answered))[:2] == [("other", 20), ("blue", 0)]


def test_what_the_idm_is_least_sure_of_comes_first():
    class Namer:
        round = 1
        images = SimpleNamespace(frame_px=64, bars=None)

        def name(self, frames_BHW3, ends_P2):
            sure = float(frames_BHW3[1, 32, 32, 0]) / 255
            return [Offer("push", sure), Offer("pull", 0.99)]

    shades = {"sure": ((200,) * 3, BLUE), "unsure": ((90,) * 3, BLUE), "half": ((140,) * 3, BLUE)}
    candidates = all_read(shades, namer=Namer())
    assert candidates.take().offer == Offer("push", pytest.approx(90 / 255))
    assert [name for name, _ in taken(candidates)][:2] == ["half", "sure"]


def test_a_runs_idm_offers_sentences(tmp_path):
    stored = Path(__file__).parents[2] / "data" / "run-2" / "run"
    namer = RunNamer(RunFolder(shutil.copytree(stored, tmp_path / "run")))
    side = namer.images.frame_px
    frames = np.random.default_rng(0).integers(0, 256, (3, side, side, 3), dtype=np.uint8)
    offers = namer.name(frames, np.array([[0, 1], [1, 2]]))
    assert namer.round == 1
    assert len(offers) == 2
    assert all(0 <= offer.confidence <= 1 for offer in offers)


def test_answered_pairs_do_not_come_back_and_their_clips_come_last():
    first = SimpleNamespace(pair_id=pair_id("a", 0, 20), clip_path="a")
    order = taken(all_read({"a": (BLUE, GREY), "b": (BLUE, RED)}, [first]))
    assert sorted(order) == [("a", 20), ("b", 0), ("b", 20)]
    assert order[0][0] == "b"


def test_clips_without_a_pair_are_counted():
    candidates = all_read({"a": (BLUE, GREY)})
    assert (candidates.num_read, candidates.num_bad, candidates.num_waiting) == (2, 1, 2)
