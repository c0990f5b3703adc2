"""Small tables of pairs, labels and decisions."""

import numpy as np
import pyarrow as pa

from dynamics.core.config import FilterConfig
from dynamics.core.records import LABEL_SCHEMA, TRANSITION_SCHEMA, label_id, pair_id, stable_hash
from dynamics.labelling.filter import decide

IDM = "1" * 64


def make_labels(num_rows: int, *, round_id: int = 1, idm: str = IDM, seed: int = 0) -> pa.Table:
    rng = np.random.default_rng([seed, round_id])
    rows = []
    for number in range(num_rows):
        pair = stable_hash("pair", number)
        logprobs = np.float32(-rng.exponential(size=3)).tolist()
        rows.append(
            {
                "label_id": label_id(pair, idm, "v1", "{}"),
                "pair_id": pair,
                "clip_class": f"class-{number % 3}",
                "round_id": round_id,
                "idm_digest": idm,
                "prompt_version": "v1",
                "decode": "{}",
                "action": f"move the block to {number}",
                "token_logprobs": logprobs,
                "scores": {
                    "mean_logprob": float(np.mean(logprobs)),
                    "min_logprob": float(np.min(logprobs)),
                    "sum_logprob": float(np.sum(logprobs)),
                },
            }
        )
    return pa.Table.from_pylist(rows, LABEL_SCHEMA)


def decide_all(labels: pa.Table) -> pa.Table:
    return decide(labels, FilterConfig())


def parents() -> dict[str, str]:
    return {"pool": "2" * 64, "idm": IDM, "config": "3" * 64, "prompt_version": "v1"}


def make_pairs(num_rows: int = 50) -> pa.Table:
    """TRANSITION_SCHEMA with recognition weights that float16 holds."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 60_000, (num_rows, 2, 6), dtype=np.uint16)
    rows = [
        {
            "pair_id": pair_id("a" * 64, number, number + 1),
            "clip_sha256": f"{number // 4:064x}",
            "clip_path": f"clip-{number // 4}.mp4",
            "clip_class": "",
            "frame0": number,
            "frame1": number + 1,
            "t0_s": number / 3,
            "t1_s": number / 3 + 1,
            "motion": 0.25,
            "source_codes": codes[number, 0],
            "target_codes": codes[number, 1],
            "recognition": rng.integers(0, 99, 6).astype(np.float32),
            "action": f"push {number}",
            "origin": "labelled",
        }
        for number in range(num_rows)
    ]
    return pa.Table.from_pylist(rows, TRANSITION_SCHEMA)
