"""Experiments on candidate frames: drawing them, and fitting the weight between both models."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.candidates import (
    CANDIDATE_SCHEMA,
    LabelledPairs,
    candidates_table,
    evidence_of,
    labelled_pairs,
)
from dynamics.evaluation.state_reader import StateReader
from dynamics.inference.load import load_pair
from dynamics.inference.sampling import GREEDY, SamplingParams
from dynamics.inference.verifiers import choose, weighted
from dynamics.models import load_image_tokenizer
from dynamics.storage.run_folder import write_json
from dynamics.storage.tables import codes_matrix, read_table, write_table
from dynamics.studies.experiments import Experiment
from dynamics.studies.study import ENDS, Study, data_refs, labelled_set, true_states

CANDIDATES_FILE = "candidates.parquet"
WEIGHT_FILE = "weight.json"

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Weights of the IDM's log-likelihood beside the FDP's that are tried."""

NUM_CALIBRATION_PAIRS = 600


def draw_candidates(study: Study, experiment: Experiment) -> None:
    """Candidates of a round's FDP on held-out scenes, with both models' likelihoods."""
    heldout = read_table(data_refs(study).heldout, TRANSITION_SCHEMA)
    pairs = labelled_pairs(heldout.slice(0, study.plan.num_verified), true_states(study))
    most = max(study.plan.best_of)
    drawn = [SamplingParams(num_samples=most, temperature=t) for t in study.plan.temperatures]
    table = _candidates(study, int(experiment.arm), pairs, [GREEDY, *drawn])
    write_table(study.folder(experiment) / CANDIDATES_FILE, table, CANDIDATE_SCHEMA)


def fit_weight(study: Study, experiment: Experiment) -> None:
    """Fit the IDM's weight beside the FDP on pairs of the labelled set.

    A candidate is correct when it decodes to the state that the true next frame's codes decode to,
    so that labelled pairs are enough.
    """
    labelled = labelled_set(study).slice(0, NUM_CALIBRATION_PAIRS)
    images = load_image_tokenizer(study.cfg.model.family, study.cfg.base_path())
    reader = StateReader(images, study.domain)
    source, target = (reader.read(codes_matrix(labelled, f"{end}_codes")) for end in ENDS)
    states = zip(labelled["pair_id"].to_pylist(), zip(source, target, strict=True), strict=True)
    pairs = labelled_pairs(labelled, dict(states))
    sampling = SamplingParams(num_samples=8, temperature=1.0)
    candidates = _candidates(study, study.cfg.rounds, pairs, [sampling])
    correct_BN, evidence = np.array(candidates["correct"].to_pylist()), evidence_of(candidates)
    rows = np.arange(len(correct_BN))
    success = {
        weight: float(correct_BN[rows, choose(weighted(weight)(evidence))].mean())
        for weight in WEIGHTS
    }
    best = max(success.values())
    # Ties go to the weight nearest to plain addition.
    weight = min((w for w in WEIGHTS if success[w] == best), key=lambda w: abs(np.log2(w or 1e-3)))
    payload = {"weight": weight, "success": {str(key): value for key, value in success.items()}}
    write_json(study.folder(experiment) / WEIGHT_FILE, payload)


def _candidates(
    study: Study, round_id: int, pairs: LabelledPairs, samplings: Sequence[SamplingParams]
) -> pa.Table:
    """CANDIDATE_SCHEMA: candidates of a round's models, drawn in several ways."""
    cfg = study.cfg
    idm, fdp = load_pair(study.models(round_id), cfg.model)
    reader = StateReader(fdp.images, study.domain)
    tables = []
    for sampling in samplings:
        temperature = sampling.temperature
        parts = (cfg.seed, "verify", round_id, str(temperature))
        seeds = [derive_seed(*parts, pair) for pair in pairs.pair_ids]
        drawn = fdp.generate(pairs.source, pairs.actions, sampling, seeds=seeds)
        tables.append(candidates_table(pairs, drawn, temperature, idm, reader))
    return pa.concat_tables(tables)
