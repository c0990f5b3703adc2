"""Small label and decision tables for the ledger's tests."""

import numpy as np
import pyarrow as pa

from dynamics.core.config import FilterConfig
from dynamics.core.records import LABEL_SCHEMA, label_id, stable_hash
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
