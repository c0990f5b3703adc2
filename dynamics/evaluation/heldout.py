"""Held-out results: one row per pair, with the answers of the round's two models.

Success is exact: the decoded frame must show the true next state in every cell. A row depends on
its pair, the models and the seed, not on the rows around it, so the table can be cut anywhere.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Domain, load_domain, same_action
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.candidates import (
    LabelledPairs,
    best_of_columns,
    candidates_table,
    labelled_pairs,
    scores_of,
)
from dynamics.evaluation.metrics import HEADLINE_VERIFIER, best_of_prefix, choosers
from dynamics.evaluation.state_reader import StateReader, states_by_pair
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics
from dynamics.inference.sampling import SamplingParams
from dynamics.inference.verifiers import Codes, choose

Columns = dict[str, list[Any]]


def results_schema(best_of: Sequence[int]) -> pa.Schema:
    """Columns of the held-out results for the N of ``cfg.evaluate.best_of``.

    Success columns are null where the truth is unknown; the best-of ones, one per N and verifier,
    also where best of N was not evaluated.

    Example: ``fb5eab9b..., shove the yellow cross one step left, move, nudge the yellow cross left,
    -0.045, [436, 436, 112, ...], [436, 436, 112, ...], true, true, true, true, false, true, ...``.
    """
    curves = [best_of_prefix(chooser) for chooser in choosers()]
    return pa.schema(
        [
            pa.field("pair_id", pa.string(), nullable=False),
            pa.field("action", pa.string(), nullable=False),  # the true sentence, the prompt
            pa.field("action_kind", pa.string(), nullable=False),  # "move", ..., "" when unparsed
            pa.field("idm_action", pa.string(), nullable=False),  # the sentence the IDM wrote
            # Natural log, mean over its tokens, end of action included: exp() is the confidence.
            pa.field("idm_mean_logprob", pa.float32(), nullable=False),
            pa.field("greedy_codes", pa.list_(pa.uint16()), nullable=False),
            pa.field("best_codes", pa.list_(pa.uint16())),  # headline verifier, largest N
            pa.field("idm_exact", pa.bool_(), nullable=False),  # the same action, in any wording
            pa.field("idm_correct", pa.bool_()),  # an action with the same effect on this scene
            pa.field("fdp_greedy_success", pa.bool_()),
            pa.field("fdp_sample_success", pa.bool_()),  # one sample at evaluate.temperature
            pa.field("fdp_copy", pa.bool_()),  # greedy frame shows the source state
            pa.field("tokenizer_ceiling", pa.bool_()),  # the true codes decode to the true state
            # Share of the codes that are right: the greedy frame's, and the source's own.
            pa.field("code_accuracy", pa.float32()),
            pa.field("code_copy_accuracy", pa.float32()),
            # The same of the codes that change, null where none does; copying gets 0 of them.
            pa.field("code_changed_accuracy", pa.float32()),
            # What `evaluation.probes` asks: null beyond the first pairs. The changed codes that
            # come back when the true frame is decoded and encoded again; per other sentence of the
            # labelled set, how much likelier (log) the true one makes the true frame.
            pa.field("code_ceiling", pa.float32()),
            pa.field("action_margins", pa.list_(pa.float32())),
            pa.field("majority_exact", pa.bool_()),  # the labelled set's commonest one is right
            # What `evaluation.foresight` asks some sources: of two other sentences, whether the
            # greedy frame shows what each leads to, or the source; of roll-outs of 1, 2, ... steps,
            # whether all frames are right; of two-step plans, the share that misses the goal, of
            # those that the FDP chooses and of all.
            pa.field("counterfactual_success", pa.list_(pa.bool_())),
            pa.field("counterfactual_copy", pa.list_(pa.bool_())),
            pa.field("rollout_success", pa.list_(pa.bool_())),
            pa.field("beam_rollout_success", pa.list_(pa.bool_())),
            pa.field("plan_regret", pa.float32()),
            pa.field("random_plan_regret", pa.float32()),
            *(pa.field(f"{curve}_{n}", pa.bool_()) for curve in curves for n in best_of),
        ]
    )


def evaluate_heldout(
    heldout: pa.Table,
    truth: pa.Table | None,
    idm: InverseDynamics,
    fdp: ForwardDynamics,
    cfg: LoopConfig,
    round_id: int,
    with_best_of: int | Sequence[bool],
) -> pa.Table:
    """Evaluate both adapters on held-out pairs (TRANSITION_SCHEMA, whose action is the true one).

    Args:
        heldout: the pairs, or a part of them.
        truth: TRUTH_SCHEMA; a pair that it lacks gets null successes.
        idm: with its adapter loaded.
        fdp: with its adapter loaded; brings the image tokenizer.
        cfg: batch size, best-of-N settings, seed and domain.
        round_id: part of every pair's sampling seed.
        with_best_of: how many of the first rows get best of N, or one flag per row (for a part
            of a table whose first rows lie elsewhere).

    Returns:
        A table with `results_schema(cfg.evaluate.best_of)`, rows in the order of ``heldout``.
    """
    flags = (
        np.arange(heldout.num_rows) < with_best_of
        if isinstance(with_best_of, int)
        else np.asarray(with_best_of, dtype=bool)
    )
    schema = results_schema(cfg.evaluate.best_of)
    states = {} if truth is None else states_by_pair(truth)
    domain = load_domain(cfg)
    reader = StateReader(fdp.images, domain)
    parts, order = [schema.empty_table()], [np.zeros(0, dtype=np.intp)]
    for rows, best_of in _batches(flags, cfg):
        pairs = labelled_pairs(heldout.take(rows), states)
        seeds = [derive_seed(cfg.seed, round_id, pair) for pair in pairs.pair_ids]
        columns = idm_columns(pairs, idm, cfg, domain)
        columns |= _fdp_columns(pairs, seeds, idm, fdp, reader, cfg, best_of)
        nothing = [None] * len(rows)
        parts.append(
            pa.table({name: columns.get(name, nothing) for name in schema.names}, schema=schema)
        )
        order.append(rows)
    return pa.concat_tables(parts).take(np.argsort(np.concatenate(order)))


def _batches(
    flags: NDArray[np.bool_], cfg: LoopConfig
) -> Iterator[tuple[NDArray[np.intp], tuple[int, ...]]]:
    """Row numbers with the N to evaluate on them; a batch draws equally many samples a row."""
    for wanted, best_of in ((True, cfg.evaluate.best_of), (False, ())):
        rows = np.flatnonzero(flags == wanted)
        for start in range(0, len(rows), cfg.evaluate.batch_size):
            yield rows[start : start + cfg.evaluate.batch_size], best_of


def idm_columns(
    pairs: LabelledPairs, idm: InverseDynamics, cfg: LoopConfig, domain: Domain
) -> Columns:
    """Columns of the IDM's answers about pairs, of `results_schema`."""
    captions = idm.label(pairs.source, pairs.target, max_action_tokens=cfg.label.max_action_tokens)
    said = [caption.action for caption in captions]
    states = zip(said, pairs.source_states, pairs.target_states, strict=True)
    return {
        "pair_id": pairs.pair_ids,
        "action": pairs.actions,
        "action_kind": [domain.kind(action) for action in pairs.actions],
        "idm_action": said,
        "idm_mean_logprob": [float(np.mean(caption.token_logprobs)) for caption in captions],
        "idm_exact": [same_action(domain, a, b) for a, b in zip(said, pairs.actions, strict=True)],
        "idm_correct": [
            None if source is None else domain.outcome(action, source) == target
            for action, source, target in states
        ],
    }


def _fdp_columns(
    pairs: LabelledPairs,
    seeds: Sequence[int],
    idm: InverseDynamics,
    fdp: ForwardDynamics,
    reader: StateReader,
    cfg: LoopConfig,
    best_of: tuple[int, ...],
) -> Columns:
    # The greedy frame, then as many samples as the largest N: the first is the plain sample, the
    # first n are the candidates of best of n.
    sampling = SamplingParams(
        num_samples=1 + max(best_of, default=1),
        temperature=cfg.evaluate.temperature,
        guidance=cfg.evaluate.guidance,
        greedy_first=True,
    )
    found = fdp.generate(pairs.source, pairs.actions, sampling, seeds=seeds)
    greedy_BL = found.codes[:, 0]
    drawn = found[:, 1:]
    columns: Columns = {
        "greedy_codes": list(greedy_BL),
        "fdp_greedy_success": reader.shows(greedy_BL, pairs.target_states),
        "fdp_copy": reader.shows(greedy_BL, pairs.source_states),
        "tokenizer_ceiling": reader.shows(pairs.target, pairs.target_states),
        "fdp_sample_success": reader.shows(drawn.codes[:, 0], pairs.target_states),
        **code_columns(pairs, greedy_BL),
    }
    if not best_of:
        return columns
    candidates = candidates_table(pairs, drawn, sampling.temperature, idm, reader)
    best_B = choose(scores_of(candidates)[HEADLINE_VERIFIER])
    best_codes = list(drawn.codes[np.arange(len(best_B)), best_B])
    return columns | best_of_columns(candidates, best_of) | {"best_codes": best_codes}


def code_columns(pairs: LabelledPairs, greedy_BL: Codes) -> Columns:
    """Shares of right codes, which need no oracle."""
    right_BL, kept_BL = greedy_BL == pairs.target, pairs.source == pairs.target
    changed = zip(right_BL, ~kept_BL, strict=True)
    return {
        "code_accuracy": list(right_BL.mean(axis=1)),
        "code_copy_accuracy": list(kept_BL.mean(axis=1)),
        "code_changed_accuracy": [
            float(right[moved].mean()) if moved.any() else None for right, moved in changed
        ],
    }
