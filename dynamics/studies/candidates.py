"""Experiments on candidate frames: what every verifier makes of them, and the best weight."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.state_reader import StateReader
from dynamics.inference.best_of_n import gather_evidence
from dynamics.inference.load import load_pair
from dynamics.inference.sampling import GREEDY, SamplingParams
from dynamics.models import load_image_tokenizer
from dynamics.storage.run_folder import write_json
from dynamics.storage.tables import codes_matrix, read_table, write_table
from dynamics.studies.study import ENDS, Study, data_refs, labelled_set, true_states

VERIFIED_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("temperature", pa.float64(), nullable=False),
        pa.field("greedy_right", pa.bool_(), nullable=False),
        pa.field("right", pa.list_(pa.bool_()), nullable=False),  # [N]
        pa.field("copy", pa.list_(pa.bool_()), nullable=False),  # [N]
        pa.field("action_logprob", pa.list_(pa.float64()), nullable=False),  # [N], IDM
        pa.field("copy_logprob", pa.float64(), nullable=False),  # IDM, of the unchanged frame
        pa.field("frame_logprob", pa.list_(pa.float64()), nullable=False),  # [N], FDP
    ]
)
"""N candidates a scene with what every verifier needs; any N up to it is a subset."""


WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the IDM's log-likelihood beside the FDP's, tried when a weight is fitted."""


NUM_CALIBRATION_PAIRS = 600


def verify(study: Study, arm: str, folder: Path) -> None:
    """Candidates of a round's FDP on held-out scenes, with both models' likelihoods."""
    round_id = int(arm)
    heldout = read_table(data_refs(study).heldout, TRANSITION_SCHEMA)
    heldout = heldout.slice(0, study.plan.num_verified)
    states = true_states(study)
    targets = [states[pair] for pair in heldout["pair_id"].to_pylist()]
    table = pa.concat_tables(
        [
            _candidates(study, round_id, heldout, targets, max(study.plan.best_of), temperature)
            for temperature in study.plan.temperatures
        ]
    )
    write_table(folder / "verified.parquet", table, VERIFIED_SCHEMA)


def calibrate(study: Study, arm: str, folder: Path) -> None:
    """Fit the IDM's weight beside the FDP on pairs of the labelled seed.

    Right is what decodes to the state that the true next frame's codes decode to, so that it needs
    no more than labelled pairs.
    """
    seed = labelled_set(study).slice(0, NUM_CALIBRATION_PAIRS)
    images = load_image_tokenizer(study.cfg.model.family, study.cfg.base_path())
    reader = StateReader(images, study.domain)
    sources, targets = (reader.read(codes_matrix(seed, f"{end}_codes")) for end in ENDS)
    states = list(zip(sources, targets, strict=True))
    verified = _candidates(study, study.cfg.rounds, seed, states, 8, 1.0)
    right_BN, action_BN, frame_BN = (
        np.array(verified[name].to_pylist())
        for name in ("right", "action_logprob", "frame_logprob")
    )
    rows = np.arange(len(right_BN))
    success = {
        weight: float(right_BN[rows, (frame_BN + weight * action_BN).argmax(1)].mean())
        for weight in WEIGHTS
    }
    best = max(success.values())
    # Of equal ones the weight nearest to plain addition.
    weight = min((w for w in WEIGHTS if success[w] == best), key=lambda w: abs(np.log2(w or 1e-3)))
    payload = {"weight": weight, "success": {str(key): value for key, value in success.items()}}
    write_json(folder / "weight.json", payload)


def _candidates(
    study: Study,
    round_id: int,
    pairs: pa.Table,
    states: Sequence[tuple[str | None, str | None]],
    num_samples: int,
    temperature: float,
) -> pa.Table:
    """VERIFIED_SCHEMA: candidates of a round's models on TRANSITION_SCHEMA rows."""
    cfg = study.cfg
    idm, fdp = load_pair(study.models(round_id), cfg.model)
    reader = StateReader(fdp.images, study.domain)
    pair_ids, actions = pairs["pair_id"].to_pylist(), pairs["action"].to_pylist()
    source_BL = codes_matrix(pairs, "source_codes")
    greedy = fdp.generate(source_BL, actions, GREEDY)
    seeds = [derive_seed(cfg.seed, "verify", round_id, str(temperature), p) for p in pair_ids]
    sampling = SamplingParams(num_samples=num_samples, temperature=temperature)
    drawn = fdp.generate(source_BL, actions, sampling, seeds=seeds)
    evidence = gather_evidence(source_BL, actions, drawn, idm)
    flat = reader.read(drawn.codes.reshape(-1, drawn.codes.shape[-1]))
    shown = [flat[i : i + num_samples] for i in range(0, len(flat), num_samples)]
    columns = {
        "pair_id": pair_ids,
        "temperature": [temperature] * len(pair_ids),
        "greedy_right": [
            state == target
            for state, (_, target) in zip(reader.read(greedy.codes[:, 0]), states, strict=True)
        ],
        "right": [
            [s == target for s in row] for row, (_, target) in zip(shown, states, strict=True)
        ],
        "copy": [
            [s == source for s in row] for row, (source, _) in zip(shown, states, strict=True)
        ],
        "action_logprob": evidence.action.tolist(),
        "copy_logprob": evidence.action_of_copy.tolist(),
        "frame_logprob": evidence.frame.tolist(),
    }
    return pa.table(columns, schema=VERIFIED_SCHEMA)
