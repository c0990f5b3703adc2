"""Labelling a pool: fixed shards of pairs in, rows of LABEL_SCHEMA out.

The pool is cut into shards by position. A shard is the unit of work and of resume: it is labelled
in the same batches by any worker and however often the run was killed, so that floating-point
noise of another batch composition can never change a committed byte.
"""

import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import chain, zip_longest

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.records import LABEL_SCHEMA, label_id
from dynamics.core.seeds import derive_seed
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import Caption, InverseDynamics
from dynamics.inference.sampling import SamplingParams
from dynamics.labelling.confidence import SCORES, Evidence, measured_scores
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.pairs import list_matrix
from dynamics.storage.shards import Shard, cut


def unlabelled(num_rows: int, attempted: Sequence[Shard], shard_rows: int) -> list[Shard]:
    """The shards of a pool of so many rows that hold a row which no attempt covers."""
    done_B = np.zeros(num_rows, dtype=bool)
    for shard in attempted:
        done_B[shard.start : shard.stop] = True
    return [
        shard for shard in cut(num_rows, shard_rows) if not done_B[shard.start : shard.stop].all()
    ]


class Labeller:
    """An IDM with the scores that the config asks for.

    Args:
        idm: Writes the action sentences.
        fdp: Needed when the configured score reads its likelihood, else None.
        cfg: Decoding, batch size, score and domain.
        images: Says which codes are valid.
    """

    def __init__(
        self,
        idm: InverseDynamics,
        fdp: ForwardDynamics | None,
        cfg: LoopConfig,
        images: ImageTokenizer,
    ) -> None:
        self._idm = idm
        self._fdp = fdp
        self._cfg = cfg
        self._images = images
        self._domain = load_domain(cfg)
        self._needs = SCORES[cfg.filter.score].needs
        self._decode = json.dumps(
            {
                "max_action_tokens": cfg.label.max_action_tokens,
                "candidates": cfg.label.candidates,
            }
        )

    def label(self, pairs: pa.Table, round_id: int) -> pa.Table:
        """One LABEL_SCHEMA row per pair, in order.

        A pair whose codes are not codes of this model, and one whose sentence came out empty or
        too long for a prompt, get an empty sentence and NaN scores: the filter rejects and counts
        them as ``empty_action``.
        """
        parts = [LABEL_SCHEMA.empty_table()]
        for start in range(0, pairs.num_rows, self._cfg.label.batch_size):
            batch = pairs.slice(start, self._cfg.label.batch_size)
            parts.append(self._label_batch(batch, round_id))
        return pa.concat_tables(parts)

    def _label_batch(self, batch: pa.Table, round_id: int) -> pa.Table:
        evidence = [Evidence(action="", token_logprobs=()) for _ in range(batch.num_rows)]
        valid, source_BL, target_BL = self._frames(batch)
        if len(valid):
            pair_ids = batch["pair_id"].take(pa.array(valid)).to_pylist()
            found = self._measure(source_BL, target_BL, pair_ids, round_id)
            for row, measured in zip(valid.tolist(), found, strict=True):
                evidence[row] = measured
        idm, pairs = self._idm, batch["pair_id"].to_pylist()
        ids = [label_id(pair, idm.digest, idm.prompt_version, self._decode) for pair in pairs]
        ends = np.cumsum([0, *(len(one.token_logprobs) for one in evidence)])
        logprobs = chain.from_iterable(one.token_logprobs for one in evidence)
        return pa.table(
            {
                "label_id": ids,
                "pair_id": batch["pair_id"],
                "clip_class": batch["clip_class"],
                "round_id": np.full(len(ids), round_id, np.int32),
                "idm_digest": pa.repeat(idm.digest, len(ids)),
                "prompt_version": pa.repeat(idm.prompt_version, len(ids)),
                "decode": pa.repeat(self._decode, len(ids)),
                "action": [one.action for one in evidence],
                "token_logprobs": pa.ListArray.from_arrays(
                    pa.array(ends, pa.int32()), np.fromiter(logprobs, np.float32)
                ),
                "scores": measured_scores(evidence),
            },
            schema=LABEL_SCHEMA,
        )

    def _frames(
        self, batch: pa.Table
    ) -> tuple[NDArray[np.intp], NDArray[np.int64], NDArray[np.int64]]:
        """The rows whose codes are codes of this model, and their codes [B, L]."""
        ends = "source_codes", "target_codes"
        sizes = [pc.list_value_length(batch[name]).to_numpy() for name in ends]
        rows = np.flatnonzero(np.all([size == self._images.num_tokens for size in sizes], axis=0))
        whole = batch.select(ends)
        if len(rows) < batch.num_rows:
            whole = whole.take(pa.array(rows))
        codes = [list_matrix(whole, name) for name in ends]
        largest = [codes_BL.max(axis=1, initial=0) for codes_BL in codes]
        known_B = np.max(largest, axis=0) < self._images.num_codes
        if not known_B.all():
            rows, codes = rows[known_B], [codes_BL[known_B] for codes_BL in codes]
        source_BL, target_BL = (codes_BL.astype(np.int64) for codes_BL in codes)
        return rows, source_BL, target_BL

    def _measure(
        self,
        source_BL: NDArray[np.int64],
        target_BL: NDArray[np.int64],
        pair_ids: Sequence[str],
        round_id: int,
    ) -> list[Evidence]:
        label = self._cfg.label
        if self._needs == "fdp_loglik" and self._fdp is not None:
            seeds = [derive_seed(self._cfg.seed, round_id, "candidates", p) for p in pair_ids]
            candidates = self._candidates(source_BL, target_BL, seeds)
            return self._likeliest(candidates, source_BL, target_BL, self._fdp)
        captions = self._idm.label(source_BL, target_BL, max_action_tokens=label.max_action_tokens)
        captions = [c if self._idm.fits_prompt(c.action) else Caption("", ()) for c in captions]
        evidence = [self._evidence(caption) for caption in captions]
        if self._needs == "samples":
            sampling = SamplingParams(
                num_samples=label.agreement_samples,
                temperature=1.0,
                max_tokens=label.max_action_tokens,
            )
            seeds = [derive_seed(self._cfg.seed, round_id, "agreement", p) for p in pair_ids]
            drawn = self._idm.sample(source_BL, target_BL, sampling, seeds=seeds)
            return [
                replace(one, samples=tuple(sample.action for sample in samples))
                for one, samples in zip(evidence, drawn, strict=True)
            ]
        return evidence

    def _candidates(
        self, source_BL: NDArray[np.int64], target_BL: NDArray[np.int64], seeds: Sequence[int]
    ) -> list[list[Caption]]:
        """Distinct usable sentences per pair, the greedy one first."""
        sampling = SamplingParams(
            num_samples=self._cfg.label.candidates,
            temperature=1.0,
            greedy_first=True,
            max_tokens=self._cfg.label.max_action_tokens,
        )
        found = []
        for captions in self._idm.sample(source_BL, target_BL, sampling, seeds=seeds):
            distinct: dict[str, Caption] = {}
            for caption in captions:
                if self._idm.fits_prompt(caption.action):
                    distinct.setdefault(caption.action, caption)
            found.append(list(distinct.values()))
        return found

    def _likeliest(
        self,
        candidates: Sequence[Sequence[Caption]],
        source_BL: NDArray[np.int64],
        target_BL: NDArray[np.int64],
        fdp: ForwardDynamics,
    ) -> list[Evidence]:
        """Per pair the sentence with the largest log p(action | frames) + log p(frame | action).

        The FDP, fitted apart from the IDM, vetoes sentences that do not lead to the target frame.
        No log p is above 0: a sentence whose own one is below the best sum so far is not scored.
        """
        best = [Evidence(action="", token_logprobs=()) for _ in candidates]
        score = [-np.inf] * len(candidates)
        ranked = [sorted(captions, key=_logprob, reverse=True) for captions in candidates]
        for rank in zip_longest(*ranked):
            tried = {
                row: caption
                for row, caption in enumerate(rank)
                if caption and _logprob(caption) > score[row]
            }
            rows, actions = list(tried), [caption.action for caption in tried.values()]
            logprobs = fdp.frame_logprobs(source_BL[rows], actions, target_BL[rows])
            for (row, caption), logprob in zip(tried.items(), logprobs, strict=True):
                total = logprob + _logprob(caption)
                if total > score[row]:
                    score[row] = total
                    best[row] = replace(self._evidence(caption), fdp_loglik=float(logprob))
        return best

    def _evidence(self, caption: Caption) -> Evidence:
        return Evidence(
            action=caption.action,
            token_logprobs=caption.token_logprobs,
            canonical=self._domain.meaning,
        )


def _logprob(caption: Caption) -> float:
    return sum(caption.token_logprobs)
