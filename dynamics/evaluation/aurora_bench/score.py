"""Scoring pictures and sentences that are there already; needs no model but the encoders."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from dynamics.core.images import read_picture
from dynamics.core.records import stable_hash
from dynamics.evaluation.aurora_bench.dataset import Item
from dynamics.evaluation.aurora_bench.encoders import Encoders
from dynamics.evaluation.aurora_bench.language import bleu_statistics, rouge_l
from dynamics.evaluation.aurora_bench.metrics import (
    change_mask,
    l1,
    mask_iou,
    nearer_target,
    ssim,
)
from dynamics.evaluation.aurora_bench.pictures import fitted

SCORE_VERSION = "2"
"""Part of every score's key; raise it when a score would come out differently."""

PICTURE_SCORES = (
    "l1",
    "ssim",
    "change_iou",
    "clip_i",
    "clip_t",
    "dino",
    "nearer_target_clip",
)
SENTENCE_SCORES = ("rouge_l", "rouge_l_stemmed", "bert_score")

SCORE_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        # Null: not measured, for want of an encoder or because it is undefined for the item.
        *(pa.field(name, pa.float64(), nullable=True) for name in PICTURE_SCORES),
        *(pa.field(name, pa.float64(), nullable=True) for name in SENTENCE_SCORES),
        pa.field("bleu_statistics", pa.list_(pa.float64()), nullable=True),
    ]
)


class Scorer:
    """Scores with the encoders that are there.

    Args:
        encoders: CLIP, DINO and BERTScore; those that are None leave nulls.
    """

    def __init__(self, encoders: Encoders) -> None:
        self._encoders = encoders

    def copies(self, items: Sequence[Item]) -> pa.Table:
        """SCORE_SCHEMA rows of the copy baseline: the source picture itself, no sentence."""
        rows = []
        for item in items:
            source = read_picture(item.source)
            scores = self._pictures(item, source, source, source)
            rows.append(_row(item, scores, {}))
        return pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)

    def answers(self, items: Sequence[Item], answers: pa.Table) -> pa.Table:
        """SCORE_SCHEMA rows of a contestant's answers (ANSWER_SCHEMA), one per item, in order."""
        rows = []
        for item, answer in zip(items, answers.to_pylist(), strict=True):
            scores: dict[str, float | None] = {}
            if answer["prediction"] is not None:
                predicted = read_picture(answer["prediction"])
                drawn = read_picture(answer["drawn_source"])
                scores = self._pictures(item, read_picture(item.source), drawn, predicted)
            rows.append(_row(item, scores, self.sentence(item, answer["sentence"])))
        return pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)

    def sentences_of_copies(self, items: Sequence[Item], answers: pa.Table) -> pa.Table:
        """SCORE_SCHEMA rows, sentences only: what the IDM says when nothing has changed."""
        said = answers["sentence_of_copy"].to_pylist()
        rows = [_row(i, {}, self.sentence(i, s)) for i, s in zip(items, said, strict=True)]
        return pa.Table.from_pylist(rows, schema=SCORE_SCHEMA)

    def sentence(self, item: Item, said: str | None) -> dict[str, Any]:
        """The sentence columns; empty when there is no sentence at all."""
        if said is None:
            return {}
        bert = self._encoders.bert
        return {
            "rouge_l": rouge_l(said, item.instruction),
            "rouge_l_stemmed": rouge_l(said, item.instruction, stemmed=True),
            "bert_score": bert.score(said, item.instruction) if bert else None,
            "bleu_statistics": bleu_statistics(said, item.instruction),
        }

    def _pictures(
        self, item: Item, source: Image.Image, drawn: Image.Image, predicted: Image.Image
    ) -> dict[str, float | None]:
        """The picture columns.

        ``drawn`` is the source as the contestant draws it: what its image tokenizer cannot show
        must not count as a change that it made.
        """
        target = read_picture(item.target)
        shown = fitted(predicted, target.size)
        shown_pixels, target_pixels = np.asarray(shown), np.asarray(target)
        try:
            similar: float | None = ssim(shown_pixels, target_pixels)
        except ValueError:  # narrower than the window
            similar = None
        true_change = change_mask(fitted(source, target.size), target)
        return {
            "l1": l1(shown_pixels, target_pixels),
            "ssim": similar,
            "change_iou": mask_iou(change_mask(drawn, predicted), true_change),
            **self._encoded(item, source, target, shown),
        }

    def _encoded(
        self, item: Item, source: Image.Image, target: Image.Image, shown: Image.Image
    ) -> dict[str, float | None]:
        scores: dict[str, float | None] = {}
        if clip := self._encoders.clip:
            features = clip.pictures([shown, source, target])
            # WhatsUp says what its targets show; elsewhere the instruction has to stand for it.
            text = clip.text(item.caption or item.instruction)
            scores["clip_i"] = float(features[0] @ features[2])
            scores["clip_t"] = float(features[0] @ text)
            scores["nearer_target_clip"] = float(nearer_target(*features))
        if dino := self._encoders.dino:
            features = dino.pictures([shown, target])
            scores["dino"] = float(features[0] @ features[1])
        return scores


def score_key(who: str, encoders_digest: str, items: Sequence[Item]) -> str:
    """Names the scores of a piece of the items; ``who`` says whose they are."""
    parts = [SCORE_VERSION, who, encoders_digest]
    for item in items:
        parts += [item.item_id, item.digest]
    return stable_hash(*parts)


def _row(item: Item, scores: Mapping[str, Any], sentence: Mapping[str, Any]) -> dict[str, Any]:
    blank = {field.name: None for field in SCORE_SCHEMA if field.nullable}
    return {**blank, "item_id": item.item_id, "subset": item.subset, **scores, **sentence}
