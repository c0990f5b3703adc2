"""Labelling a pool: fixed shards of pairs in, rows of LABEL_SCHEMA out.

The pool is cut into shards by position. A shard is the unit of work and of resume: it is labelled
in the same batches by any worker and however often the run was killed, so that floating-point
noise of another batch composition can never change a committed byte.
"""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
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
        source_codes = batch["source_codes"].to_pylist()
        target_codes = batch["target_codes"].to_pylist()
        valid = [
            row
            for row, codes in enumerate(zip(source_codes, target_codes, strict=True))
            if all(map(self._is_frame, codes))
        ]
        evidence = [Evidence(action="", token_logprobs=()) for _ in source_codes]
        if valid:
            source_BL = np.array([source_codes[row] for row in valid], dtype=np.int64)
            target_BL = np.array([target_codes[row] for row in valid], dtype=np.int64)
            pair_ids = [batch["pair_id"][row].as_py() for row in valid]
            for row, measured in zip(
                valid, self._measure(source_BL, target_BL, pair_ids, round_id), strict=True
            ):
                evidence[row] = measured
        rows = [
            self._row(pair, clip_class, round_id, measured)
            for pair, clip_class, measured in zip(
                batch["pair_id"].to_pylist(), batch["clip_class"].to_pylist(), evidence, strict=True
            )
        ]
        return pa.Table.from_pylist(rows, schema=LABEL_SCHEMA)

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
        """
        rows = [row for row, captions in enumerate(candidates) for _ in captions]
        flat = [caption for captions in candidates for caption in captions]
        actions = [caption.action for caption in flat]
        logprobs = fdp.frame_logprobs(source_BL[rows], actions, target_BL[rows])
        best = [Evidence(action="", token_logprobs=()) for _ in candidates]
        score = [-np.inf] * len(candidates)
        for row, caption, logprob in zip(rows, flat, logprobs, strict=True):
            total = logprob + sum(caption.token_logprobs)
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

    def _is_frame(self, codes: Sequence[int]) -> bool:
        return len(codes) == self._images.num_tokens and max(codes) < self._images.num_codes

    def _row(
        self, pair: str, clip_class: str, round_id: int, evidence: Evidence
    ) -> dict[str, object]:
        idm = self._idm
        return {
            "label_id": label_id(pair, idm.digest, idm.prompt_version, self._decode),
            "pair_id": pair,
            "clip_class": clip_class,
            "round_id": round_id,
            "idm_digest": idm.digest,
            "prompt_version": idm.prompt_version,
            "decode": self._decode,
            "action": evidence.action,
            "token_logprobs": list(evidence.token_logprobs),
            "scores": measured_scores(evidence),
        }
