"""The candidates table: N frames drawn for each pair, with what every verifier needs.

B pairs, N candidates a pair, L codes a frame.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.evaluation.metrics import ORACLE, best_of_prefix
from dynamics.evaluation.state_reader import StateReader
from dynamics.inference.best_of_n import gather_evidence
from dynamics.inference.decoder import Candidates
from dynamics.inference.idm import InverseDynamics
from dynamics.inference.verifiers import VERIFIERS, Codes, Evidence, Scores, choose
from dynamics.storage.tables import codes_matrix

CANDIDATE_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("temperature", pa.float64(), nullable=False),  # 0: the greedy frame alone
        pa.field("correct", pa.list_(pa.bool_()), nullable=False),  # shows the true next state
        pa.field("copied", pa.list_(pa.bool_()), nullable=False),  # shows the source state
        pa.field("idm_logprob", pa.list_(pa.float64()), nullable=False),  # log p(action)
        pa.field("idm_copy_logprob", pa.float64(), nullable=False),  # the same, frame unchanged
        pa.field("fdp_logprob", pa.list_(pa.float64()), nullable=False),  # log p(frame)
    ]
)
"""One row per pair and temperature; lists hold a value per candidate, in the order of the draws,
so that the first n candidates are those of best of n. Null where a state is unknown. Example:
``{"pair_id": "9f2c", "temperature": 1.0, "correct": [false, true], "copied": [true, false],
"idm_logprob": [-6.1, -0.4], "idm_copy_logprob": -6.1, "fdp_logprob": [-3.2, -2.9]}``.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelledPairs:
    """B pairs with their true actions and what is known about their states."""

    pair_ids: list[str]
    actions: list[str]
    source: Codes
    """[B, L]"""
    target: Codes
    """[B, L]"""
    source_states: list[str | None]
    target_states: list[str | None]


def labelled_pairs(
    rows: pa.Table, states: Mapping[str, tuple[str | None, str | None]]
) -> LabelledPairs:
    """Rows of TRANSITION_SCHEMA; ``states`` maps a pair to its source and its target state."""
    pair_ids = rows["pair_id"].to_pylist()
    known = [states.get(pair, (None, None)) for pair in pair_ids]
    return LabelledPairs(
        pair_ids=pair_ids,
        actions=rows["action"].to_pylist(),
        source=codes_matrix(rows, "source_codes"),
        target=codes_matrix(rows, "target_codes"),
        source_states=[source for source, _ in known],
        target_states=[target for _, target in known],
    )


def candidates_table(
    pairs: LabelledPairs,
    drawn: Candidates,
    temperature: float,
    idm: InverseDynamics,
    reader: StateReader,
) -> pa.Table:
    """CANDIDATE_SCHEMA: the frames drawn for the pairs, scored by the IDM and read."""
    evidence = gather_evidence(pairs.source, pairs.actions, drawn, idm)
    columns = {
        "pair_id": pairs.pair_ids,
        "temperature": [temperature] * len(pairs.pair_ids),
        "correct": _shows(drawn.codes, pairs.target_states, reader),
        "copied": _shows(drawn.codes, pairs.source_states, reader),
        "idm_logprob": evidence.action.tolist(),
        "idm_copy_logprob": evidence.action_of_copy.tolist(),
        "fdp_logprob": evidence.frame.tolist(),
    }
    return pa.table(columns, schema=CANDIDATE_SCHEMA)


def _shows(
    codes_BNL: Codes, states: Sequence[str | None], reader: StateReader
) -> list[list[bool | None]]:
    """[B][N]: all frames are read at once, in one call to the image tokenizer."""
    num_samples, length = codes_BNL.shape[1:]
    repeated = [state for state in states for _ in range(num_samples)]
    flat = reader.shows(codes_BNL.reshape(-1, length), repeated)
    return [flat[start : start + num_samples] for start in range(0, len(flat), num_samples)]


def evidence_of(candidates: pa.Table) -> Evidence:
    """Evidence of the rows of a candidates table, equally many candidates each."""
    action_BN, copy_B, frame_BN = (
        np.array(candidates[name].to_pylist(), dtype=np.float64)
        for name in ("idm_logprob", "idm_copy_logprob", "fdp_logprob")
    )
    return Evidence(action=action_BN, action_of_copy=copy_B, frame=frame_BN)


def scores_of(candidates: pa.Table) -> dict[str, Scores]:
    """Scores [B, N] of every registered verifier."""
    evidence = evidence_of(candidates)
    return {name: verifier(evidence) for name, verifier in VERIFIERS.items()}


def best_of_columns(candidates: pa.Table, sizes: Sequence[int]) -> dict[str, list[Any]]:
    """Success of the best of n by every verifier and by the oracle, columns of the results."""
    correct_BN = candidates["correct"].to_pylist()
    columns: dict[str, list[Any]] = {}
    for verifier, scores_BN in scores_of(candidates).items():
        for n in sizes:
            columns[f"{best_of_prefix(verifier)}_{n}"] = _at(correct_BN, choose(scores_BN[:, :n]))
    for n in sizes:
        columns[f"{best_of_prefix(ORACLE)}_{n}"] = [
            None if correct_N[0] is None else any(correct_N[:n]) for correct_N in correct_BN
        ]
    return columns


def _at(values_BN: Sequence[Sequence[bool | None]], chosen_B: NDArray[np.int64]) -> list[Any]:
    return [values_N[chosen] for values_N, chosen in zip(values_BN, chosen_B, strict=True)]
