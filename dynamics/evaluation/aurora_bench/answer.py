"""Answers of a contestant: a picture, a sentence and its preferences per item; DiscEdit.

Everything that needs the models happens here, once; scoring reads the stored answers. A part is a
fixed piece of the items, answered in one batch by any worker, so that no float depends on how
the work was spread.

B items, N samples, L codes a frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from PIL import Image

from dynamics.core.images import encode_png, read_picture
from dynamics.core.places import Place
from dynamics.core.records import stable_hash
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.aurora_bench.contestant import Contestant
from dynamics.evaluation.aurora_bench.dataset import BenchData, DiscItem, Item
from dynamics.evaluation.aurora_bench.instructions import Told, fit_instruction
from dynamics.evaluation.aurora_bench.metrics import nearer_target, squared_distance
from dynamics.evaluation.aurora_bench.pictures import Pixels, placed
from dynamics.evaluation.aurora_bench.probe import (
    NEGATIVES,
    ProbeItems,
    fdp_preferences,
    idm_preferences,
)
from dynamics.inference.best_of_n import best_of_n
from dynamics.inference.sampling import GREEDY, SamplingParams

ANSWER_VERSION = "3"
"""Part of every answer's key; raise it when an answer would come out differently."""

PREFERENCES = tuple(
    f"{task}_prefers_{negative}" for task in ("fdp", "idm") for negative in NEGATIVES
)

ANSWER_SCHEMA = pa.schema(
    [
        pa.field("item_id", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        pa.field("told", pa.string(), nullable=False),  # the instruction as the model got it
        pa.field("num_tokens", pa.int32(), nullable=False),
        pa.field("num_unknown", pa.int32(), nullable=False),  # tokens without meaning
        pa.field("truncated", pa.bool_(), nullable=False),
        # The rest is null for an instruction of which nothing could be told.
        pa.field("prediction", pa.binary(), nullable=True),  # PNG, placed in the source
        # The source as the model's image tokenizer draws it, placed: what its own copy looks like.
        pa.field("drawn_source", pa.binary(), nullable=True),
        pa.field("copied", pa.bool_(), nullable=True),  # every code is the source's
        pa.field("nearer_target_vq", pa.bool_(), nullable=True),
        pa.field("sentence", pa.string(), nullable=True),  # of the IDM; "" when it did not end it
        pa.field("sentence_of_copy", pa.string(), nullable=True),  # given the source twice
        *(pa.field(name, pa.float64(), nullable=True) for name in PREFERENCES),  # 1, 0.5, 0
    ]
)

DISC_SCHEMA = pa.schema(
    [
        pa.field("digest", pa.string(), nullable=False),
        pa.field("subset", pa.string(), nullable=False),
        # Share of the samples in which the fulfilled prompt changes less than the wanted one.
        pa.field("success", pa.float64(), nullable=True),
    ]
)

_DISC_SAMPLING = SamplingParams(num_samples=4, temperature=1.0)
"""Samples per DiscEdit prompt, as AURORA draws them."""

_UNTOLD = {field.name: None for field in ANSWER_SCHEMA if field.nullable}


@dataclass(frozen=True, slots=True, kw_only=True)
class Decode:
    """Options of drawing next frames."""

    sampling: SamplingParams = GREEDY
    """The verifier chooses the best of several samples."""
    seed: int = 0

    def text(self) -> str:
        """Canonical, for keys and reports."""
        best_of, temperature = self.sampling.num_samples, self.sampling.temperature
        how = "greedy" if temperature == 0 else f"temperature {temperature:g}"
        how += "".join(
            f", {name.replace('_', ' ')} {value:g}"
            for name, value in self.sampling.changed().items()
            if name in ("top_k", "top_p", "min_p", "guidance")
        )
        many = f"best of {best_of}, " if best_of > 1 else ""
        return f"{many}{how}, seed {self.seed}"


class Answerer:
    """A contestant's models over the items of a benchmark folder.

    Args:
        contestant: not the copy.
        decode: how frames are drawn.
        data: the benchmark; an item's random negatives come from its other items.
    """

    def __init__(self, contestant: Contestant, decode: Decode, data: BenchData) -> None:
        self._idm, self._fdp = contestant.load()
        self._verifier = contestant.verifier
        self._decode = decode
        self._data = data
        self._images = self._fdp.images
        self._tokens = self._fdp.tokens

    def answer(self, start: int, stop: int) -> pa.Table:
        """ANSWER_SCHEMA rows of the items ``start`` to ``stop`` (exclusive)."""
        items = self._data.items[start:stop]
        told = [fit_instruction(self._tokens, item.instruction) for item in items]
        heard = [row for row, part in enumerate(told) if part.text]
        rows: list[dict[str, Any]] = [
            {"item_id": item.item_id, "subset": item.subset, **_told_columns(part), **_UNTOLD}
            for item, part in zip(items, told, strict=True)
        ]
        if heard:
            positions = [start + row for row in heard]
            answers = self._answer(positions, [told[row].text for row in heard])
            for row, columns in zip(heard, answers, strict=True):
                rows[row].update(columns)
        return pa.Table.from_pylist(rows, schema=ANSWER_SCHEMA)

    def _answer(self, positions: Sequence[int], actions: Sequence[str]) -> list[dict[str, Any]]:
        items = [self._data.items[position] for position in positions]
        pictures = [self._read(item.source) for item in items]
        source_BL = self._images.encode(np.stack([self._images.fit(one) for one in pictures]))
        target_BL = self._images.encode(self._frames([item.target for item in items]))
        predicted_BL = self._draw(source_BL, actions, [item.digest for item in items])
        drawn, predicted = self._images.decode(source_BL), self._images.decode(predicted_BL)
        nearer = self._nearer(predicted, drawn, self._images.decode(target_BL))
        limit = self._tokens.prompts.action_tokens + 1
        said = self._idm.label(source_BL, target_BL, max_action_tokens=limit)
        said_of_copy = self._idm.label(source_BL, source_BL, max_action_tokens=limit)
        preferences = self._preferences(positions, source_BL, target_BL, actions)
        return [
            {
                "prediction": self._placed(predicted[row], pictures[row]),
                "drawn_source": self._placed(drawn[row], pictures[row]),
                "copied": bool((predicted_BL[row] == source_BL[row]).all()),
                "nearer_target_vq": nearer[row],
                "sentence": said[row].action,
                "sentence_of_copy": said_of_copy[row].action,
                **preferences[row],
            }
            for row in range(len(items))
        ]

    def _placed(self, frame: Pixels, picture: Image.Image) -> bytes:
        return encode_png(placed(frame, picture, self._images.bars))

    def disc_edit(self, start: int, stop: int) -> pa.Table:
        """DISC_SCHEMA rows of the DiscEdit items ``start`` to ``stop`` (exclusive).

        AURORA's discriminative test, in the model's own feature space: drawing what is so already
        must move the picture less than drawing what is not.
        """
        rows = [
            {"digest": item.digest, "subset": item.subset, "success": self._disc_edit(item)}
            for item in self._data.disc_items[start:stop]
        ]
        return pa.Table.from_pylist(rows, schema=DISC_SCHEMA)

    def _disc_edit(self, item: DiscItem) -> float | None:
        prompts = [
            fit_instruction(self._tokens, text).text for text in (item.fulfilled, item.wanted)
        ]
        if not all(prompts):
            return None
        source_BL = self._images.encode(self._frames([item.source]))
        drawn = self._fdp.generate(
            np.repeat(source_BL, 2, axis=0),
            prompts,
            _DISC_SAMPLING,
            # As AURORA's code: sample i of both prompts has the same noise.
            seeds=[derive_seed(self._decode.seed, "disc", item.digest)] * 2,
        ).codes
        origin = self._features(source_BL)[0]
        moved = [
            [squared_distance(features, origin) for features in self._features(codes_NL)]
            for codes_NL in drawn
        ]
        return float(np.mean([less < more for less, more in zip(*moved, strict=True)]))

    def _features(self, codes_NL: NDArray[np.int64]) -> NDArray[np.float32]:
        return self._images.encode_with_features(self._images.decode(codes_NL))[1]

    def _frames(self, paths: Sequence[Place]) -> Pixels:
        return np.stack([self._images.fit(self._read(path)) for path in paths])

    def _read(self, path: Place) -> Image.Image:
        return read_picture(path, drop_alpha=self._images.bars is not None)

    def _draw(
        self, source_BL: NDArray[np.int64], actions: Sequence[str], digests: Sequence[str]
    ) -> NDArray[np.int64]:
        decode = self._decode
        seeds = [derive_seed(decode.seed, "aurora-bench", digest) for digest in digests]
        if decode.sampling.num_samples == 1:
            drawn = self._fdp.generate(source_BL, actions, decode.sampling, seeds=seeds)
            codes_BL: NDArray[np.int64] = drawn.codes[:, 0]
            return codes_BL
        return best_of_n(
            source_BL,
            actions,
            self._idm,
            self._fdp,
            decode.sampling,
            verifier=self._verifier,
            seeds=seeds,
        ).best

    def _nearer(self, predicted: Pixels, source: Pixels, target: Pixels) -> list[bool]:
        """Like with like: all three frames are as the tokenizer draws them."""
        features = (
            self._images.encode_with_features(frames)[1] for frames in (predicted, source, target)
        )
        return [nearer_target(*row) for row in zip(*features, strict=True)]

    def _preferences(
        self,
        positions: Sequence[int],
        source_BL: NDArray[np.int64],
        target_BL: NDArray[np.int64],
        actions: Sequence[str],
    ) -> list[dict[str, float | None]]:
        others: list[Item] = []
        other_actions: list[str] = []
        rows: list[int] = []
        for row, position in enumerate(positions):
            other = partner_of(self._data, position)
            told = fit_instruction(self._tokens, other.instruction).text if other else ""
            if other and told:
                rows.append(row)
                others.append(other)
                other_actions.append(told)
        results: list[dict[str, float | None]] = [dict.fromkeys(PREFERENCES) for _ in positions]
        if not rows:
            return results
        probe = ProbeItems(
            source=source_BL[rows],
            target=target_BL[rows],
            actions=[actions[row] for row in rows],
            other_target=self._images.encode(self._frames([other.target for other in others])),
            other_actions=other_actions,
        )
        by_task = {
            "fdp": fdp_preferences(probe, self._fdp),
            "idm": idm_preferences(probe, self._idm, self._fdp),
        }
        for task, preferences in by_task.items():
            for negative, values in preferences.items():
                for row, value in zip(rows, values.tolist(), strict=True):
                    results[row][f"{task}_prefers_{negative}"] = value
        return results


def partner_of(data: BenchData, position: int) -> Item | None:
    """The item that lends its action and target as random negatives; None when alone."""
    number = derive_seed("aurora-bench", "partner", data.items[position].digest)
    return data.partner(position, number)


def answer_key(
    contestant: Contestant, decode: Decode, data: BenchData, start: int, stop: int
) -> str:
    """Names the answers to a piece of the items: changes with anything that they depend on."""
    parts = [ANSWER_VERSION, contestant.digest, contestant.verifier, _canonical(decode)]
    for position in range(start, stop):
        partner = partner_of(data, position)
        parts += [data.items[position].digest, partner.digest if partner else ""]
        parts.append(data.items[position].item_id)
    return stable_hash(*parts)


def disc_key(contestant: Contestant, decode: Decode, items: Sequence[DiscItem]) -> str:
    """Names the answers to a piece of the DiscEdit items."""
    parts = [ANSWER_VERSION, "disc", contestant.digest, str(decode.seed)]
    for item in items:
        parts += [item.subset, item.digest]
    return stable_hash(*parts)


def _canonical(decode: Decode) -> str:
    return repr((decode.seed, sorted(decode.sampling.changed().items())))


def _told_columns(told: Told) -> dict[str, Any]:
    return {
        "told": told.text,
        "num_tokens": told.num_tokens,
        "num_unknown": told.num_unknown,
        "truncated": told.truncated,
    }
