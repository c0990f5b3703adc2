from pathlib import Path

import numpy as np
import pytest

from dynamics.core.config import KeyframeConfig, LoopConfig
from dynamics.core.progress import silent
from dynamics.data.labelled.listing import LabelledPair
from dynamics.pretraining.frames import Footage, list_frames, read_footage, read_heldout
from tests.blocks import film, write_labels


@pytest.fixture(scope="module")
def cfg(tmp_path_factory: pytest.TempPathFactory) -> LoopConfig:
    """Eight clips, of which labelled pairs name six."""
    root = tmp_path_factory.mktemp("blocks")
    film(root / "clips", 8)
    write_labels(root / "labels.parquet", range(6))
    return LoopConfig(
        pool={
            "path": root / "clips",
            "keyframes": KeyframeConfig(spacing_frames=4, min_change=0.0),
        },
        labelled={
            "dataset": "parquet", "path": root / "labels.parquet", "heldout_fraction": 0.34,
        },
    )  # fmt: skip


def test_held_out_clips_are_read_under_no_name(cfg: LoopConfig, tmp_path: Path) -> None:
    listed = list_frames(cfg, tmp_path, silent)
    held = {pair.name for pair in listed.heldout if isinstance(pair, LabelledPair)}
    assert len(held) == 2
    assert len(listed.labelled) == 4
    assert {one.clip.name for one in listed.clips} == {
        f"clip-{number:03d}.mp4" for number in range(8)
    } - held
    footage = read_footage(cfg, listed, 32, 1000, silent)
    kept = read_heldout(cfg, listed, 32, silent)
    assert footage.frames.shape[1:] == kept.frames.shape[1:] == (32, 32, 3)
    assert len(kept.pairs) == 2
    learnt = {frame.tobytes() for frame in footage.frames}
    assert not learnt & {frame.tobytes() for frame in kept.frames}
    assert (np.diff(footage.clip) >= 0).all()
    assert (np.diff(footage.time_s)[np.diff(footage.clip) == 0] > 0).all()


def test_frames_are_read_up_to_a_number_in_an_order_that_the_seed_draws(
    cfg: LoopConfig, tmp_path: Path
) -> None:
    listed = list_frames(cfg, tmp_path, silent)
    few = read_footage(cfg, listed, 16, 8, silent)
    assert 8 <= len(few.frames) < 14
    other = list_frames(cfg.model_copy(update={"seed": 1}), tmp_path, silent)
    assert [one.clip.name for one in other.clips] != [one.clip.name for one in listed.clips]


def test_footage_is_read_back_as_it_was_saved(tmp_path: Path) -> None:
    frames = np.arange(4 * 2 * 2 * 3, dtype=np.uint8).reshape(4, 2, 2, 3)
    footage = Footage(frames, np.array([0, 0, 1, 1]), np.array([0.0, 1.0, 0.0, 0.5]))
    footage.save(tmp_path / "frames")
    again = Footage.load(tmp_path / "frames")
    assert again.pairs.tolist() == [[0, 1], [2, 3]]
    assert (again.frames == frames).all()
