"""Synthetic pairs through every stage of a round, with models that cost nothing.

    python benchmarks/scale_rows.py FOLDER --rows 10000000 --codes 16

Prints a line of JSON a stage: its name, begin and end in Unix seconds, rows, CPU seconds.
`scale.py` starts this in a process of its own and watches the memory of it and of its workers.
"""

import argparse
import json
import os
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
from memory import below, cpu_s

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynamics.core.config import KeyframeConfig, LoopConfig, PoolConfig
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
from dynamics.data.units import Encoding, Unit, read_schema
from dynamics.data.video.ingest import Folder, ingest_videos
from dynamics.data.video.sources import SOURCES, Clip
from dynamics.inference.idm import Caption
from dynamics.pipeline.stages import Stages
from dynamics.storage.pairs import TableWriter, stored_rows
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.streams import Done
from dynamics.training.batches import Batches, FitJob
from ray_jobs import runtime
from ray_jobs.executor import RayExecutor

PAIRS_A_CLIP = 5
CLIPS_A_UNIT = {16: 4096, 1024: 256}
"""``ingest.part_clips`` by codes a frame."""
SHARD_ROWS = {16: 16_384, 1024: 8192}
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
    images = FreeImages(num_codes)
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


class FreeImages:
    """An image tokenizer that spreads a frame's only pixel over its codes."""

    frame_px = 1
    bars = False
    num_codes = 1 << 16

    def __init__(self, num_tokens: int) -> None:
        self.num_tokens = num_tokens

    def encode_with_features(self, frames_F113: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Codes [F, L] and one feature of each, [F, L, 1]."""
        pixel_F1 = frames_F113[:, 0, 0, :1].astype(np.uint16)
        codes_FL = pixel_F1 * 16 + np.arange(self.num_tokens, dtype=np.uint16) // 16
        features = np.broadcast_to(pixel_F1[..., None], (*codes_FL.shape, 1)).astype(np.float32)
        return codes_FL, features


class FreeReader:
    """Makes clips of one size up, instead of decoding them."""

    prefix = spec = ""

    def __init__(self, *_: Any) -> None: ...

    def __call__(self, unit: Unit[Clip]) -> pa.Table:
        """The clips of a unit, as `read_schema` has them."""
        pairs, clips = PAIRS_A_CLIP, unit.entries
        clip_B = pa.array(np.repeat(np.arange(len(clips), dtype=np.int32), pairs))
        frame_B = np.tile(np.arange(pairs, dtype=np.int32), len(clips))
        digests = [stable_hash(clip.name) * 2 for clip in clips]
        columns = {
            "pair_id": pa.array([pair_id(d, f, f + 1) for d in digests for f in range(pairs)]),
            "clip_sha256": pa.array(digests).take(clip_B),
            "clip_path": pa.array([clip.name for clip in clips]).take(clip_B),
            "clip_class": pa.array([clip.clip_class for clip in clips]).take(clip_B),
            "frame0": frame_B,
            "frame1": frame_B + 1,
            "t0_s": frame_B / 6,
            "t1_s": (frame_B + 1) / 6,
            "motion": np.full(len(frame_B), 0.1, np.float32),
            "source": frame_B,
            "target": frame_B + 1,
        }
        schema = read_schema(PAIR_SCHEMA)
        fields = list(schema.field("pairs").type.value_type)
        values = [pa.array(columns[field.name], field.type) for field in fields]
        struct = pa.StructArray.from_arrays(values, fields=fields)
        offsets = pa.array(np.arange(len(clips) + 1, dtype=np.int32) * pairs)
        numbers = np.frombuffer(bytes.fromhex("".join(d[: 2 * pairs + 2] for d in digests)), "u1")
        pixels = np.repeat(numbers, 3).tobytes()
        size = 3 * (pairs + 1)
        verdicts = [
            json.dumps({"clip": clip.name, "sha256": digest, "rejects": {}, "rows": pairs})
            for clip, digest in zip(clips, digests, strict=True)
        ]
        frames = [pixels[at : at + size] for at in range(0, len(pixels), size)]
        lists = pa.ListArray.from_arrays(offsets, struct)
        return pa.table({"verdict": verdicts, "frames": frames, "pairs": lists}).cast(schema)


def listing(num_clips: int) -> Iterator[Clip]:
    """Clips of a hundred classes."""
    for number in range(num_clips):
        yield Clip(
            path=Path("/clips"),
            name=f"clips/{number:09d}.mp4",
            clip_class=f"class {number % 100}",
            version="1",
        )


def ingest(folder: RunFolder, num_rows: int, num_codes: int) -> DataRefs:
    """The pool, by the real ingest of free clips; its first rows as labelled and held-out set."""
    images: Any = FreeImages(num_codes)
    encoding = Encoding(codes=folder.codes, load=lambda _: images, decide=lambda *_: "float32")
    num_clips = num_rows // PAIRS_A_CLIP
    with (
        patch.dict(SOURCES, {"free": lambda _: listing(num_clips)}),
        patch("dynamics.data.video.ingest.clip_reader", FreeReader),
    ):
        pool, _ = ingest_videos(
            [Folder(root=Path("/clips"), source="free", keyframes=KeyframeConfig())],
            folder.pool,
            PoolConfig(),
            images,
            encoding,
            part_clips=CLIPS_A_UNIT[num_codes],
        )
    few = next(stored_rows(pool, PAIR_SCHEMA, folder.codes)).slice(0, 1000)
    few = few.append_column("action", pa.array(["stay"] * few.num_rows))
    few = few.append_column("origin", pa.array(["labelled"] * few.num_rows))
    refs = {}
    for name in ("labelled", "heldout"):
        writer = TableWriter(folder.table(name), TRANSITION_SCHEMA, folder.codes)
        writer.append(few)
        refs[name] = writer.finish()
    return DataRefs(truth=None, pool=pool, **refs)


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
    """Print when the body began and ended, and what CPU it took of all processes here."""
    begin, cpu = time.time(), _cpu_s()
    yield
    line = {"stage": name, "begin": begin, "end": time.time(), "rows": rows}
    print(json.dumps(line | {"cpu_s": round(_cpu_s() - cpu, 2)}), flush=True)


def _cpu_s() -> float:
    return sum(map(cpu_s, [os.getpid(), *below(os.getpid())]))


def run(root: Path, num_rows: int, num_codes: int) -> None:
    """All stages, in a run folder below ``root``."""
    settings = [
        "filter.rule={kind: top_fraction, fraction: 1.0}",
        "filter.score=mean_logprob",
        "label.candidates=1",
        "label.num_actors=2",
        f"label.shard_rows={SHARD_ROWS[num_codes]}",
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
