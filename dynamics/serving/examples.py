"""What a service shows of its run: scenes to begin with, held-out frames, what rounds changed."""

from contextlib import suppress
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow.compute as pc

from dynamics.core.config import LoopConfig, PoolPart
from dynamics.core.domain import Domain, ExampleScene
from dynamics.core.errors import UserError
from dynamics.core.images import frame_of
from dynamics.core.records import PICTURE_SCHEMA, TRANSITION_SCHEMA
from dynamics.data.video.ingest import clip_reader
from dynamics.data.video.sources import list_clips
from dynamics.evaluation.heldout import results_schema
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import codes_matrix, read_table

_NUM_CLIPS = 64


def example_scenes(domain: Domain, run: RunFolder) -> list[ExampleScene]:
    """The domain's own scenes; on real video the camera's frames of the first held-out pairs.

    Those have one action each, the pair's own. Nothing was trained on them.
    """
    if own := domain.examples(run.data):
        return own
    if not run.pictures.exists():
        return []
    columns = ["pair_id", "action"]
    heldout = read_table(run.heldout, TRANSITION_SCHEMA, columns).to_pylist()
    actions = {row["pair_id"]: row["action"] for row in heldout}
    return [
        ExampleScene(
            name=f"held out {number}",
            frame=frame_of(row["source"]),
            actions=[actions[row["pair_id"]]],
        )
        for number, row in enumerate(read_table(run.pictures, PICTURE_SCHEMA).to_pylist(), 1)
    ]


def heldout_frames(
    cfg: LoopConfig, domain: Domain, run: RunFolder, images: ImageTokenizer
) -> list[np.ndarray]:
    """The camera's frames of some held-out pairs, uint8 [H, W, 3], at the model's size.

    None where the clips were filmed and do not lie here.
    """
    if run.pictures.exists():
        rows = read_table(run.pictures, PICTURE_SCHEMA).to_pylist()
        return [frame_of(row[end]) for row in rows for end in ("source", "target")]
    if domain.simulator is None:
        return []
    read = clip_reader(domain.simulator.keyframes("heldout"), cfg.pool, images)
    with suppress(UserError):  # no such folder
        clips = islice(list_clips(PoolPart(path=run.data / "heldout" / "clips")), _NUM_CLIPS)
        return [frame for clip in clips for frame in read.frames(clip)]
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class ContrastPair:
    """The first held-out pair that one round draws wrong and another one right."""

    action: str
    codes: np.ndarray
    """int64 [4, L]: source, target, and what the two rounds draw."""
    num_pairs: int
    """Pairs whose truth is known."""
    num_gained: int
    """Those that the first round draws wrong and the other one right."""
    num_lost: int
    """Those that are the other way round."""


def contrast(cfg: LoopConfig, run: RunFolder, first: int, last: int) -> ContrastPair | None:
    """What two rounds draw differently; None where no pair is known to be gained."""
    columns = ["pair_id", "fdp_greedy_success", "greedy_codes"]
    schema = results_schema(cfg.evaluate.best_of)
    if not all(run.results(one).exists() for one in (first, last)):
        return None
    before, after = (read_table(run.results(one), schema, columns) for one in (first, last))
    was, now = before["fdp_greedy_success"], after["fdp_greedy_success"]
    gained = pc.and_(pc.invert(was), now)
    row = pc.index(gained, True).as_py()
    if row < 0 or before["pair_id"] != after["pair_id"]:
        return None
    heldout = read_table(run.heldout, TRANSITION_SCHEMA)
    pair = heldout.slice(pc.index(heldout["pair_id"], before["pair_id"][row]).as_py(), 1)
    parts = [(pair, "source_codes"), (pair, "target_codes")]
    parts += [(table.slice(row, 1), "greedy_codes") for table in (before, after)]
    return ContrastPair(
        action=pair["action"][0].as_py(),
        codes=np.concatenate([codes_matrix(table, column) for table, column in parts]),
        num_pairs=pc.count(pc.and_(was, now)).as_py(),
        num_gained=pc.sum(gained).as_py(),
        num_lost=pc.sum(pc.and_(was, pc.invert(now))).as_py(),
    )
