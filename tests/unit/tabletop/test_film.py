from itertools import pairwise
from pathlib import Path
from typing import get_args

import av
import pyarrow as pa

from dynamics.core.config import PoolConfig, WorldConfig
from dynamics.core.records import PAIR_SCHEMA
from dynamics.data.video.filmed import CLIPS_SCHEMA, truth_table
from dynamics.data.video.ingest import Folder, ingest_videos
from dynamics.models.image_tokenizers.fsq import FsqAutoencoder, FsqConfig, FsqTokenizer
from dynamics.storage.tables import codes_matrix, read_table
from dynamics.tabletop.film import Split, film_split, filmed_keyframes
from dynamics.tabletop.language import parse
from dynamics.tabletop.scene import Scene, apply
from tests.unit.data.video.conftest import encoding_with

WORLD = WorldConfig(film_scale=3, actions_per_clip=4)


def ingest(folder: Path, num_pairs: int) -> pa.Table:
    images = FsqTokenizer(FsqAutoencoder(FsqConfig(frame_px=32)))
    videos = Folder(
        root=folder / "clips", keyframes=filmed_keyframes(WORLD, "pool"), max_pairs=num_pairs
    )
    encoding = encoding_with(lambda: images, folder / "codes")
    ref, (report,) = ingest_videos([videos], folder / "p.parts", PoolConfig(), images, encoding)
    assert not report.rejects
    return read_table(ref, PAIR_SCHEMA)


def test_every_filmed_action_becomes_one_pair_with_its_truth(tmp_path: Path) -> None:
    film_split("pool", WORLD, 24, 0, tmp_path)
    pairs = ingest(tmp_path, 24)
    truth = truth_table(pairs, tmp_path, WORLD.hold_frames)
    assert pairs.num_rows == truth.num_rows == 24
    assert codes_matrix(pairs, "source_codes").shape == (24, 16)
    for row in truth.to_pylist():
        action = parse(row["action"])
        assert action is not None
        after = apply(Scene.from_text(row["source_state"]), action)
        assert after == Scene.from_text(row["target_state"])


def test_filming_again_changes_nothing_and_seeds_change_everything(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        film_split("labelled", WORLD, 4, seed, tmp_path / name)
    first, second, other = (
        (tmp_path / name / "clips" / "000000.mp4").read_bytes() for name in ("a", "b", "c")
    )
    assert first == second != other


def test_splits_of_one_seed_share_no_transition(tmp_path: Path) -> None:
    transitions: dict[str, set[tuple[str, str]]] = {}
    for split in get_args(Split):
        film_split(split, WORLD, 120, 0, tmp_path / split)
        rows = read_table(tmp_path / split / "clips.parquet", CLIPS_SCHEMA).to_pylist()
        transitions[split] = {pair for row in rows for pair in pairwise(row["states"])}
        assert len(transitions[split]) == 120
    assert not transitions["labelled"] & transitions["heldout"]
    assert not transitions["pool"] & transitions["heldout"]


def test_a_filmed_clip_is_a_playable_video_of_the_promised_size(tmp_path: Path) -> None:
    film_split("heldout", WORLD, 1, 0, tmp_path)
    with av.open(str(tmp_path / "clips" / "000000.mp4")) as clip:
        frames = [frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)]
    assert len(frames) == 2 * WORLD.hold_frames
    assert frames[0].shape == (96, 96, 3)
