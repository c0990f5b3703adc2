"""Tasks that unlabelled frames ask by themselves: rows of ids made of codes alone.

Nothing here knows a world: a task sees codes, which clip a frame is of, and the order of a clip's
frames. Answers are codes and the words of `task_words`, which stand in brackets so that no action
sentence shares one.

B rows, N frames, L codes a frame, A action tokens.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from dynamics.core.seeds import numpy_rng
from dynamics.models.tokens import IGNORE, Rows, Tokens

Codes = NDArray[np.int64]

QUESTION_TOKENS = 40
"""Room for the questions about a pair of frames, with their answers."""
FAR = (1, 2, 4, 8)
"""Distances in time, in frames, that have a word; a larger one has the last one's."""
ROWS_PER_TASK = {"next": 8, "hinted": 10, "changes": 12, "compare": 10}
"""Rows of every task in a step."""
QUESTIONS = "[from]", "[at]", "[moved]", "[order]", "[far]"
WORDS = (
    *QUESTIONS, "[forth]", "[back]", "[apart]", "[none]",
    "[up]", "[down]", "[left]", "[right]", *(f"[{distance}]" for distance in FAR),
)  # fmt: skip


def cell_word(cell: int) -> str:
    """Name of a place in a frame, the place of one code."""
    return f"[c{cell}]"


def task_words(num_tokens: int) -> list[str]:
    """Every word that tasks need where a frame has so many codes; each must be one token."""
    return [*WORDS, *map(cell_word, range(num_tokens))]


@dataclass(frozen=True, slots=True)
class Frames:
    """Frames of unlabelled clips; those of a clip stand together, in the order of time."""

    codes: Codes
    """[N, L]."""
    clips: Codes
    """[N]: the number of every frame's clip."""


class FrameTasks:
    """Draws the rows of every step.

    Args:
        frames: of two clips or more, at least one of which has two frames.
        tokens: layouts of a vocabulary that has `task_words`; the instruction comes first.
        seed: with the step's number it decides what is drawn.
        rows_per_task: rows a step of every task.
    """

    def __init__(
        self,
        frames: Frames,
        tokens: Tokens,
        seed: int,
        rows_per_task: Mapping[str, int] = ROWS_PER_TASK,
    ) -> None:
        self._frames, self._tokens, self._seed = frames, tokens, seed
        self._rows_per_task = rows_per_task
        self._ids = {word: tokens.text_ids(word)[0] for word in task_words(tokens.num_image_tokens)}
        self._cells = [self._ids[cell_word(cell)] for cell in range(tokens.num_image_tokens)]
        self._codes = tokens.image_ids.tolist()
        self._side = round(tokens.num_image_tokens**0.5)
        clips = frames.clips
        self._before = np.flatnonzero(clips[1:] == clips[:-1])
        bounds = np.array([0, *np.flatnonzero(clips[1:] != clips[:-1]) + 1, len(clips)])
        self._start, self._stop = (
            np.repeat(ends, np.diff(bounds)) for ends in (bounds[:-1], bounds[1:])
        )

    def batches(self, start: int) -> Iterator[dict[str, Rows]]:
        """The rows of every step from ``start`` on, by task."""
        tasks: dict[str, Callable[[int, np.random.Generator], Rows]] = {
            "next": self.next_frames,
            "hinted": self.hinted_frames,
            "changes": self.changes,
            "compare": self.comparisons,
        }
        for step in count(start):
            rng = numpy_rng(self._seed, "base-batch", step)
            yield {name: tasks[name](rows, rng) for name, rows in self._rows_per_task.items()}

    def next_frames(self, num: int, rng: np.random.Generator) -> Rows:
        """Frame to next frame, with no sentence."""
        source, target = self._steps(num, rng)
        return self._tokens.code_rows(self._tokens.fdp_prompt(source, [None] * num), target)

    def hinted_frames(self, num: int, rng: np.random.Generator) -> Rows:
        """Frame to next frame; where the sentence would be, some changed cells with new codes."""
        tokens = self._tokens
        source, target = self._steps(num, rng)
        prompt = tokens.fdp_prompt(source, [None] * num)
        stop = prompt.shape[1] - (tokens.num_image_tokens + 3)  # boi source eoi boi
        for row, (old, new) in enumerate(zip(source, target, strict=True)):
            changed = np.flatnonzero(old != new)
            most = min(len(changed), tokens.prompts.action_tokens // 2)
            cells = rng.permutation(changed)[: rng.integers(1, most + 1)] if most else changed
            hint = [i for c in sorted(cells) for i in (self._cells[c], self._codes[new[c]])]
            prompt[row, stop - len(hint) : stop] = torch.tensor(hint)
        return tokens.code_rows(prompt, target)

    def changes(self, num: int, rng: np.random.Generator) -> Rows:
        """Two frames in a row to their first changed cells, each with its two codes.

        The answer stands where the IDM's sentence does.
        """
        tokens = self._tokens
        source, target = self._steps(num, rng)
        most = tokens.prompts.action_tokens // 3
        texts = [
            [i for c in np.flatnonzero(old != new)[:most] for i in self._change(old, new, c)]
            for old, new in zip(source, target, strict=True)
        ]
        texts = [[*text, tokens.eos] for text in texts]
        return tokens.text_rows(tokens.idm_prompt(source, target), texts)

    def comparisons(self, num: int, rng: np.random.Generator) -> Rows:
        """Questions about two frames: near, far apart in a clip, in either order, or unrelated."""
        first = rng.integers(len(self._frames.codes), size=num)
        within = rng.integers(self._start[first], self._stop[first])
        near = np.clip(first + rng.choice([-1, 1], num), self._start[first], self._stop[first] - 1)
        other = rng.integers(len(self._frames.codes), size=num)
        kind = rng.integers(4, size=num)
        second = np.select([kind == 0, kind == 1], [other, near], within)
        pairs = list(zip(first.tolist(), second.tolist(), strict=True))
        texts = [[self._ask(a, b, rng) for _ in range(QUESTION_TOKENS // 4)] for a, b in pairs]
        codes = self._frames.codes
        return self._answered(self._tokens.idm_prompt(codes[first], codes[second]), texts)

    def _steps(self, num: int, rng: np.random.Generator) -> tuple[Codes, Codes]:
        """Codes of random frames that have a next one, and of these, [B, L]."""
        chosen = rng.choice(self._before, num)
        return self._frames.codes[chosen], self._frames.codes[chosen + 1]

    def _change(self, old: Codes, new: Codes, cell: int) -> list[int]:
        return [self._cells[cell], self._codes[old[cell]], self._codes[new[cell]]]

    def _ask(self, a: int, b: int, rng: np.random.Generator) -> tuple[list[int], list[int]]:
        """A question about frames a and b, and its answer."""
        ids, old, new = self._ids, self._frames.codes[a], self._frames.codes[b]
        changed = np.flatnonzero(old != new)
        cell = int(rng.integers(len(old)))
        if len(changed) and rng.random() < 0.5:
            cell = int(rng.choice(changed))
        match QUESTIONS[int(rng.integers(len(QUESTIONS)))]:
            case "[from]":
                later = changed[changed >= cell]
                answer = self._change(old, new, later[0]) if len(later) else [ids["[none]"]]
                return [ids["[from]"], self._cells[cell]], answer
            case "[at]":
                codes = [self._codes[old[cell]], self._codes[new[cell]]]
                return [ids["[at]"], self._cells[cell]], codes
            case "[moved]":
                return [ids["[moved]"], self._cells[cell]], self._moved(old, new, cell)
            case "[order]":
                return [ids["[order]"]], [ids[self._order(a, b)]]
            case _:
                return [ids["[far]"]], [ids[self._far(a, b)]]

    def _moved(self, old: Codes, new: Codes, cell: int) -> list[int]:
        """The one cell where a code that has left its cell is new, and the way there."""
        there = np.flatnonzero((new == old[cell]) & (old != new))
        if old[cell] == new[cell] or len(there) != 1:
            return [self._ids["[none]"]]
        down, right = np.subtract(divmod(int(there[0]), self._side), divmod(cell, self._side))
        across = ["[right]" if right > 0 else "[left]"] * min(abs(right), 2)
        along = ["[down]" if down > 0 else "[up]"] * min(abs(down), 2)
        return [self._cells[there[0]], *(self._ids[word] for word in across + along)]

    def _order(self, a: int, b: int) -> str:
        if self._frames.clips[a] != self._frames.clips[b]:
            return "[apart]"
        return "[none]" if a == b else "[forth]" if a < b else "[back]"

    def _far(self, a: int, b: int) -> str:
        if self._frames.clips[a] != self._frames.clips[b]:
            return "[apart]"
        return "[none]" if a == b else f"[{max(d for d in FAR if d <= abs(a - b))}]"

    def _answered(
        self, prompt_BT: Tensor, texts: Sequence[Sequence[tuple[list[int], list[int]]]]
    ) -> Rows:
        """[prompt question answer eos question ..]: loss on the answers and their eos."""
        tokens = self._tokens
        ids = torch.full((len(texts), QUESTION_TOKENS), tokens.pad)
        labels = torch.full_like(ids, IGNORE)
        for row, asked in enumerate(texts):
            at = 0
            for question, answer in asked:
                text = torch.tensor([*question, *answer, tokens.eos])
                if at + len(text) > QUESTION_TOKENS:
                    break
                ids[row, at : at + len(text)] = text
                labels[row, at + len(question) : at + len(text)] = text[len(question) :]
                at += len(text)
        full = torch.cat([prompt_BT, ids], dim=1)
        scored = torch.cat([torch.full_like(prompt_BT, IGNORE), labels], dim=1)
        return Rows(full[:, :-1], scored[:, 1:])
