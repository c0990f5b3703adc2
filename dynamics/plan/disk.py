"""Disk of a run: the finished run folder, and what nodes keep beside it."""

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Split, load_simulator
from dynamics.core.places import Place, StorePath
from dynamics.plan.flops import pool_frames
from dynamics.plan.sizes import Sizes

BYTES_PER_FILMED_PIXEL = 0.2
"""Bytes of filmed clips per pixel of every frame; measured on the default run (443 kB for 10
clips of 14 frames of 128 x 128 px: 0.19)."""
_LEDGER_ROW_BYTES = 400
"""Bytes of a label, its decision and its attempt, compressed."""
_PAIR_ROW_BYTES = 150
"""Bytes of a pair without its codes, compressed: its digests hardly shrink."""
_REPORT_BYTES = 2 * 2**20
"""Bytes of a round's pictures, JSON and logs."""
_GENERATIONS = 2
"""Checkpoints of a fit at a time: the newest sound one, and the one that is being written."""
_F32 = 4


def disk_bytes(cfg: LoopConfig, sizes: Sizes) -> dict[str, int]:
    """Size of a run folder by part, in bytes, as its last fits write their last checkpoints.

    codes: 2 L bytes a frame and 2 L a pair (recognition weights), of the labelled set, the held-out
    pairs and the pool; training sets name them. rows: what else is known of a pair, in each of
    these tables and in every round's training set (labelled set and pool).
    adapters: two a round, 4 bytes a trained parameter. mlflow: copies of them, MLflow's logged
    models, unless a tracking server keeps these. checkpoints: weights and AdamW's two moments, the
    best weights where some clips validate; both adapters' fits side by side. They go with a fit.
    """
    labelled, heldout, pool = cfg.labelled.num_pairs, cfg.labelled.num_heldout, cfg.pool.most_pairs
    rounds = cfg.rounds
    frames = 2 * (labelled + heldout) + pool_frames(cfg)
    rows = labelled + heldout + pool + labelled + rounds * (labelled + pool)
    stored = sizes.trainable
    if cfg.train.method == "full":
        stored += sizes.image_tokenizer
    adapters = 2 * _F32 * (rounds + 1) * stored
    states = 3 + bool(cfg.train.validation_fraction)
    return {
        "codes": 2 * sizes.image_tokens * (frames + labelled + heldout + pool),
        "rows": rows * _PAIR_ROW_BYTES,
        "clips": _clip_bytes(cfg),
        "labels": rounds * pool * _LEDGER_ROW_BYTES,
        "adapters": adapters,
        "mlflow": adapters if cfg.track.server is None else 0,
        "checkpoints": 2 * _F32 * _GENERATIONS * states * sizes.trainable,
        "reports": (rounds + 1) * (_REPORT_BYTES + heldout * sizes.image_tokens * 2 * 2),
    }


def _clip_bytes(cfg: LoopConfig) -> int:
    """Bytes of the videos on disk, and of those that will be filmed."""
    wanted: dict[Split, int] = {}
    if cfg.labelled.dataset is None:
        wanted = {"labelled": cfg.labelled.num_pairs, "heldout": cfg.labelled.num_heldout}
    if not cfg.pool.parts:
        wanted["pool"] = cfg.pool.num_pairs
    on_disk = 0
    for part in cfg.pool.parts:
        if part.path.is_dir():
            on_disk += _bytes_below(part.path)
    filmed = sum(load_simulator(cfg).num_pixels(split, pairs) for split, pairs in wanted.items())
    return on_disk + round(filmed * BYTES_PER_FILMED_PIXEL)


def _bytes_below(folder: Place) -> int:
    if isinstance(folder, StorePath):
        return sum(meta["size"] for _, meta in folder.files())
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
