"""Synthetic pairs through every stage of a round, with models that cost nothing.

    python benchmarks/scale_rows.py FOLDER --rows 10000000 --codes 16

Prints a line of JSON a stage: its name, its begin and end in Unix seconds, its rows. `scale.py`
starts this in a process of its own and watches the memory of it and of its workers.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow as pa

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load
from dynamics.core.progress import Progress
from dynamics.core.records import (
    PAIR_SCHEMA,
    TRANSITION_SCHEMA,
    DataRefs,
    DatasetRef,
    ModelRef,
    pair_id,
    stable_hash,
)
from dynamics.inference.idm import Caption
from dynamics.pipeline.stages import Stages
from dynamics.storage.pairs import TableWriter, store_codes
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.streams import Done
from dynamics.training.batches import Batches, FitJob
from ray_jobs import runtime
from ray_jobs.executor import RayExecutor

PAIRS_A_CLIP = 5
CLIPS_A_UNIT = {16: 4096, 1024: 256}
"""By codes a frame: units of an ingest have about 32 MB of frames."""
BATCH = 256
_DIGEST = "0" * 64
_NUM_SENTENCES = 997


class FreeIdm:
    """Looks labels up by a code of each frame."""

    digest = _DIGEST
    prompt_version = "free"

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        self._captions = [
            Caption(f"move object {number} one step", tuple(-rng.random(6).round(3)))
            for number in range(_NUM_SENTENCES)
        ]

    def label(self, source_BL: Any, target_BL: Any, *, max_action_tokens: int) -> list[Caption]:
        """One sentence a pair."""
        numbers = (source_BL[:, 0] + 31 * target_BL[:, 0]) % _NUM_SENTENCES
        return [self._captions[number] for number in numbers.tolist()]

    def fits_prompt(self, action: str) -> bool:
        """True."""
        return True


def free_worker(make_worker: Any, num_codes: int) -> Any:
    """The real label worker, around models that cost nothing."""
    images = SimpleNamespace(num_tokens=num_codes, num_codes=1 << 16)
    with patch.multiple(
        "dynamics.labelling.worker",
        load_idm=lambda *_: FreeIdm(),
        load_image_tokenizer=lambda *_, **__: images,
    ):
        return make_worker()


class FreeExecutor(RayExecutor):
    """Labels on Ray with models that cost nothing."""

    def __init__(self, cfg: LoopConfig, folder: RunFolder, num_codes: int) -> None:
        super().__init__(cfg, folder)
        self._num_codes = num_codes

    def run_stream(self, stage: Any, stream: Any, progress: Progress) -> Iterator[Done]:
        """Run the stream with `free_worker`."""
        make = partial(free_worker, stream.make_worker, self._num_codes)
        return super().run_stream(stage, replace(stream, make_worker=make), progress)


def clips(first: int, num: int) -> pa.Table:
    """Columns of the pairs of some clips that need no codes."""
    digests = [stable_hash("clip", number) * 2 for number in range(first, first + num)]
    clip_B = np.repeat(np.arange(num), PAIRS_A_CLIP)
    frame_B = np.tile(np.arange(PAIRS_A_CLIP, dtype=np.int32), num)
    rng = np.random.default_rng(first)
    take = pa.array(clip_B.astype(np.int32))
    names = [f"clips/{number:09d}.mp4" for number in range(first, first + num)]
    classes = [f"class {number % 100}" for number in range(first, first + num)]
    ids = [
        pair_id(digests[c], f, f + 1)
        for c, f in zip(clip_B.tolist(), frame_B.tolist(), strict=True)
    ]
    columns = {
        "pair_id": pa.array(ids),
        "clip_sha256": pa.array(digests).take(take),
        "clip_path": pa.array(names).take(take),
        "clip_class": pa.array(classes).take(take),
        "frame0": frame_B,
        "frame1": frame_B + 1,
        "t0_s": frame_B / 6,
        "t1_s": (frame_B + 1) / 6,
        "motion": rng.random(len(frame_B), np.float32),
    }
    small = pa.schema([field for field in PAIR_SCHEMA if field.name in columns])
    return pa.table([columns[name] for name in small.names], names=small.names).cast(small)


def units(num_rows: int, num_codes: int, codes: Path) -> Iterator[pa.Table]:
    """Pairs in stored form, as units of an ingest leave them: each frame once."""
    num_clips = -(-num_rows // PAIRS_A_CLIP)
    for first in range(0, num_clips, CLIPS_A_UNIT[num_codes]):
        num = min(CLIPS_A_UNIT[num_codes], num_clips - first)
        rng = np.random.default_rng(first)
        start_FL = rng.integers(0, 4096, (num * (PAIRS_A_CLIP + 1), 1), np.uint16)
        frames_FL = start_FL + np.arange(num_codes, dtype=np.uint16) // 16
        source_B = np.arange(num * (PAIRS_A_CLIP + 1)).reshape(num, -1)[:, :-1].ravel()
        recognition = rng.random((num * PAIRS_A_CLIP, 1), np.float32).repeat(num_codes, 1)
        yield store_codes(codes, clips(first, num), frames_FL, source_B, source_B + 1, recognition)


def ingest(folder: RunFolder, num_rows: int, num_codes: int) -> DataRefs:
    """The pool, and its first rows as a labelled and a held-out set."""
    codes = folder.data / "codes"
    writer = TableWriter(folder.pool, PAIR_SCHEMA, codes)
    few: pa.Table | None = None
    for rows in units(num_rows, num_codes, codes):
        writer.append(rows)
        few = rows.slice(0, 1000) if few is None else few
    assert few is not None
    refs = {"pool": writer.finish()}
    for name, origin in (("labelled", "labelled"), ("heldout", "labelled")):
        with_action = few.append_column("action", pa.array(["stay"] * few.num_rows))
        with_action = with_action.append_column("origin", pa.array([origin] * few.num_rows))
        small = TableWriter(folder.table(name), TRANSITION_SCHEMA, codes)
        small.append(with_action)
        refs[name] = small.finish()
    return DataRefs(truth=None, **refs)


class FreeTokens:
    """Makes no token rows."""

    def idm_rows(self, *columns: Any) -> Any:
        """Nothing to learn from."""

    fdp_rows = idm_rows


def epoch(cfg: LoopConfig, training_set: DatasetRef, out: Path) -> int:
    """Every batch of an epoch, both frames' codes and the actions; returns the rows."""
    job = FitJob(
        task="idm",
        family=cfg.model.family,
        base=cfg.base_path(),
        device="cpu",
        transitions=training_set.path,
        steps=1,
        train=cfg.train.model_copy(update={"batch_size": BATCH}),
        seed=0,
        init_from=None,
        out=out / "adapter",
        checkpoint_dir=out / "checkpoints",
    )
    free: Any = SimpleNamespace(tokens=FreeTokens(), weights=lambda *_: None)
    batches = Batches(job, free, free)
    steps = training_set.num_rows // BATCH
    for step in range(steps):
        batches.batch(step)
    return steps * BATCH


@contextmanager
def stage(name: str, rows: int) -> Iterator[None]:
    """Print when the body began and ended."""
    begin = time.time()
    yield
    line = {"stage": name, "begin": begin, "end": time.time(), "rows": rows}
    print(json.dumps(line), flush=True)


def run(root: Path, num_rows: int, num_codes: int) -> None:
    """All stages, in a run folder below ``root``."""
    settings = [
        "filter.rule={kind: top_fraction, fraction: 1.0}",
        "filter.score=mean_logprob",
        "label.candidates=1",
        "label.num_actors=2",
        "label.shard_rows=16384",
        "label.batch_size=1024",
    ]
    cfg = load(Path(__file__).parents[1] / "configs" / "tabletop.yaml", settings)
    cfg = cfg.model_copy(update={"run_dir": root / "run"})
    folder = RunFolder(cfg.run_dir)
    models = ModelRef(
        base=cfg.base_path(), idm=root, fdp=root, idm_digest=_DIGEST, fdp_digest=_DIGEST
    )
    with folder.claimed(cfg):
        stages = Stages(cfg, folder.root, executor=FreeExecutor(cfg, folder, num_codes))
        with stage("ingest", num_rows):
            data = ingest(folder, num_rows, num_codes)
        runtime.ensure_ray(cfg.cluster)
        with stage("label", num_rows):
            labels = stages.label(data.pool, models, 1)
        runtime.stop_ray()
        with stage("filter", num_rows):
            decisions = stages.filter(labels, 1)
        with stage("build", num_rows):
            training_set = stages.build_training_set(data, decisions, 1)
        with stage("epoch", num_rows):
            epoch(cfg, training_set, root)
    sizes = {path.name: _size(path) for path in (folder.data, folder.ledger, folder.root)}
    print(json.dumps({"bytes": sizes, "accepted": training_set.num_rows}), flush=True)


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def main() -> None:
    """Run in FOLDER, and remove what was written there."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rows", type=int, required=True)
    parser.add_argument("--codes", type=int, choices=CLIPS_A_UNIT, required=True)
    options = parser.parse_args()
    runtime.prepare_environment()
    try:
        run(options.folder.resolve(), options.rows, options.codes)
    finally:
        runtime.stop_ray()
        shutil.rmtree(options.folder / "run", ignore_errors=True)


if __name__ == "__main__":
    main()
