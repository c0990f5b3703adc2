"""Judging of cases: each reply is paid for once and stored by content; every case is counted."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Literal, Protocol

from PIL import Image

from dynamics.core.progress import Progress
from dynamics.core.records import stable_hash
from dynamics.evaluation.judge.client import BudgetSpentError, FailedError, RefusedError
from dynamics.evaluation.judge.protocol import (
    PROMPT_VERSION,
    UnparsableReplyError,
    Verdict,
    messages,
    parse_reply,
    prompt_text,
    shown,
)
from dynamics.storage.run_folder import read_json, write_json

Outcome = Literal["judged", "unparsable", "refused", "failed", "over_budget"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """An edit to be judged."""

    item_id: str
    subset: str
    instruction: str
    pictures: Callable[[], tuple[Image.Image, Image.Image]]
    """Source and edited picture, opened when they are needed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """The outcome of a case."""

    item_id: str
    subset: str
    outcome: Outcome
    verdict: Verdict | None
    """None unless the outcome is "judged"."""


class Asks(Protocol):
    """A client of the judge."""

    def ask(self, messages: list[dict[str, object]]) -> str:
        """The reply to a chat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CostEstimate:
    """Upper bound of the cost of judging when every first attempt is answered."""

    num_cases: int
    num_cached: int
    num_calls: int
    """Within the budget."""
    num_pictures: int
    input_tokens: int
    """Rough: four characters a token; pictures in tiles of 512 px as common vision models bill."""
    output_tokens: int

    def text(self) -> str:
        """One line for people."""
        return (
            f"judge: {self.num_cases} cases, {self.num_cached} known already, {self.num_calls} "
            f"calls with {self.num_pictures} pictures, roughly {self.input_tokens:,} tokens in and "
            f"{self.output_tokens:,} out"
        )


_OUTPUT_TOKENS = 80
_TILE_PX, _TILE_TOKENS, _PICTURE_TOKENS = 512, 170, 85


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplyStore:
    """Replies by content: both pictures, instruction, prompt version and model."""

    folder: Path
    model: str

    def path(self, case: Case) -> Path:
        """File of the reply to a case."""
        digests = [_digest(picture) for picture in case.pictures()]
        key = stable_hash(PROMPT_VERSION, self.model, case.instruction, *digests)
        return self.folder / f"{key}.json"

    def read(self, path: Path) -> str | None:
        """A stored reply, None when there is none."""
        return str(read_json(path)["reply"]) if path.exists() else None

    def write(self, path: Path, reply: str) -> None:
        """Store a reply, also one that cannot be parsed: it was paid for."""
        today = datetime.now(UTC).date().isoformat()
        record = {"model": self.model, "prompt": PROMPT_VERSION, "day": today, "reply": reply}
        write_json(path, record)


def estimate(cases: Sequence[Case], store: ReplyStore, budget: int | None) -> CostEstimate:
    """The cost of what is not stored yet."""
    open_cases = [case for case in cases if not store.path(case).exists()]
    asked = open_cases if budget is None else open_cases[:budget]
    tokens = 0
    for case in asked:
        tokens += ceil(len(prompt_text(case.instruction)) / 4)
        tokens += sum(map(_picture_tokens, case.pictures()))
    return CostEstimate(
        num_cases=len(cases),
        num_cached=len(cases) - len(open_cases),
        num_calls=len(asked),
        num_pictures=2 * len(asked),
        input_tokens=tokens,
        output_tokens=_OUTPUT_TOKENS * len(asked),
    )


def judge(
    cases: Sequence[Case],
    client: Asks,
    store: ReplyStore,
    progress: Progress,
) -> list[Judgement]:
    """One judgement per case, in order, failed ones included.

    Raises:
        UserError: the endpoint's settings are wrong.
    """
    judgements = []
    for number, case in enumerate(cases):
        progress(number, len(cases), "judge")
        outcome, verdict = _judge_one(case, client, store)
        judgements.append(
            Judgement(item_id=case.item_id, subset=case.subset, outcome=outcome, verdict=verdict)
        )
    progress(len(cases), len(cases), "judge")
    return judgements


def outcomes(judgements: Sequence[Judgement]) -> dict[str, int]:
    """Cases per outcome."""
    return dict(sorted(Counter(judgement.outcome for judgement in judgements).items()))


def _judge_one(case: Case, client: Asks, store: ReplyStore) -> tuple[Outcome, Verdict | None]:
    path = store.path(case)
    reply = store.read(path)
    if reply is None:
        try:
            reply = client.ask(messages(*case.pictures(), case.instruction))
        except RefusedError:
            return "refused", None
        except FailedError:
            return "failed", None
        except BudgetSpentError:
            return "over_budget", None
        store.write(path, reply)
    try:
        return "judged", parse_reply(reply)
    except UnparsableReplyError:
        return "unparsable", None


def _digest(picture: Image.Image) -> str:
    sent = shown(picture)
    return hashlib.sha256(f"{sent.size}".encode() + sent.tobytes()).hexdigest()


def _picture_tokens(picture: Image.Image) -> int:
    width, height = shown(picture).size
    tiles = ceil(width / _TILE_PX) * ceil(height / _TILE_PX)
    return _PICTURE_TOKENS + tiles * _TILE_TOKENS
