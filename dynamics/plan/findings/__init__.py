"""Findings about the data of a run before it trains: what will go wrong, and what to do.

To add one: a function from `Evidence` to a `Finding`, and one line in FINDINGS.
"""

from collections.abc import Callable

import pyarrow as pa

from dynamics.core.config import LoopConfig
from dynamics.core.images import frame_of
from dynamics.core.records import PAIR_SCHEMA, PICTURE_SCHEMA, TRANSITION_SCHEMA, DataRefs
from dynamics.models import load_tokens
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.plan.findings.blind import blind_tokenizer
from dynamics.plan.findings.curve import learning_curve
from dynamics.plan.findings.finding import Evidence, Finding, Frame
from dynamics.plan.findings.labels import heldout_overlap, label_counts
from dynamics.plan.findings.machine import machine
from dynamics.plan.findings.pool import pool_pairs
from dynamics.plan.findings.rounds import expected_of_rounds
from dynamics.plan.findings.wordings import wordings
from dynamics.plan.findings.words import long_sentences, unknown_words
from dynamics.storage.run_folder import RunFolder, read_json
from dynamics.storage.tables import iter_table, read_table

__all__ = ["FINDINGS", "Finding", "evidence_of", "expected_of_rounds", "findings"]

FINDINGS: dict[str, Callable[[Evidence], Finding]] = {
    "blind_tokenizer": blind_tokenizer,
    "unknown_words": unknown_words,
    "long_sentences": long_sentences,
    "wordings": wordings,
    "pool_pairs": pool_pairs,
    "label_counts": label_counts,
    "learning_curve": learning_curve,
    "heldout_overlap": heldout_overlap,
    "machine": machine,
}
MOST_POOL = 5000
"""Pairs of the pool that are looked at, the first ones."""


def findings(evidence: Evidence) -> dict[str, Finding]:
    """All findings by name, in the order of FINDINGS."""
    return {name: find(evidence) for name, find in FINDINGS.items()}


def evidence_of(
    cfg: LoopConfig, folder: RunFolder, data: DataRefs, images: ImageTokenizer
) -> Evidence:
    """Evidence from the tables of a run folder."""
    pair, transition = (
        [name for name in schema.names if name != "recognition"]
        for schema in (PAIR_SCHEMA, TRANSITION_SCHEMA)
    )
    stop = min(MOST_POOL, data.pool.num_rows)
    pool = pa.concat_tables(
        [PAIR_SCHEMA.empty_table().select(pair), *iter_table(data.pool, PAIR_SCHEMA, pair, 0, stop)]
    )
    return Evidence(
        cfg=cfg,
        tokens=load_tokens(cfg.model.family, cfg.base_path(), images),
        labelled=read_table(data.labelled, TRANSITION_SCHEMA, transition),
        heldout=read_table(data.heldout, TRANSITION_SCHEMA, transition),
        pool=pool,
        num_pool=data.pool.num_rows,
        images=images,
        pictures=_pictures(folder),
        counts=read_json(folder.ingest) if folder.ingest.exists() else {},
    )


def _pictures(folder: RunFolder) -> dict[str, tuple[Frame, Frame]]:
    if not folder.pictures.exists():
        return {}
    rows = read_table(folder.pictures, PICTURE_SCHEMA).to_pylist()
    return {row["pair_id"]: (frame_of(row["source"]), frame_of(row["target"])) for row in rows}
