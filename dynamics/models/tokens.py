"""Prompts, special ids and sequence layouts; nothing else in the code knows them.

A = action tokens, L = codes a frame. Both tasks use rows of one fixed length without padding
masks; short text is filled with the ordinary pad token, so that under rotary positions the step
from a source code to its target code is the same in every row. With the prompts of the tiny
checkpoint:

    FDP  [bos instruction | pad .. action (A) | boi source (L) eoi | boi target (L)]
    IDM  [bos instruction | boi source (L) eoi | boi target (L) eoi | action, eos, pad (A + 1)]

Other prompts place the parts themselves (`Prompts`); first bos, and last the target or the action,
are the same in all.
"""

import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from dynamics.core.errors import UserError

PROMPTS_FILE = "prompts.json"
IGNORE = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Texts of the two tasks; saved with the checkpoint.

    A text is what stands between bos and the answer. ``{source}``, ``{target}`` and ``{action}``
    stand for the frames (with their boi and eoi) and the sentence, ``{<name>}`` for the control
    token of that name; all else is plain text. A text without ``{source}`` is an instruction that
    comes first: the layout of the tiny checkpoint.
    """

    version: str
    """Part of every label's key."""
    fdp: str
    idm: str
    action_tokens: int
    """A: the longest action sentence, in tokens."""

    def save(self, folder: Path) -> None:
        """Write ``prompts.json``."""
        (folder / PROMPTS_FILE).write_text(json.dumps(asdict(self), indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, default: "Prompts | None" = None) -> "Prompts":
        """Read ``prompts.json``, or take ``default`` (a published checkpoint has no such file).

        Raises:
            UserError: it is missing and there is no default, or it has other fields.
        """
        path = folder / PROMPTS_FILE
        if not path.is_file():
            if default is None:
                raise UserError(f"{folder} has no {PROMPTS_FILE}: not a checkpoint of this project")
            return default
        raw = json.loads(path.read_text())
        if set(raw) != {field.name for field in fields(cls)}:
            names = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{path} must have exactly the fields {names}")
        return cls(**raw)

    def parts(self, task: Literal["fdp", "idm"]) -> list[str]:
        """A task's text cut at its ``{...}``, which stay whole.

        Raises:
            UserError: a slot is missing, twice, unknown, or names what is to be predicted.
        """
        text = self.fdp if task == "fdp" else self.idm
        slots = _SLOTS[task]
        if "{source}" not in text:
            text += "".join(slots)
        parts = [part for part in re.split(r"(\{[^{}]*\})", text) if part]
        found = [part for part in parts if _is_slot(part) and not _control_name(part)]
        if sorted(found) != sorted(slots):
            raise UserError(
                f"the {task} prompt must have {' and '.join(sorted(slots))} once each, "
                f"and has {', '.join(found) or 'none'}: {text!r}"
            )
        return parts


_SLOTS = {"fdp": ("{action}", "{source}"), "idm": ("{source}", "{target}")}


def _is_slot(part: str) -> bool:
    return part.startswith("{") and part.endswith("}")


def _control_name(part: str) -> str | None:
    """The ``<name>`` within a ``{<name>}``, None for any other part."""
    name = part[1:-1]
    return name if _is_slot(part) and name.startswith("<") and name.endswith(">") else None


@dataclass(frozen=True, slots=True)
class Rows:
    """Token rows and the ids to predict."""

    ids: Tensor
    """int64 [B, T]."""
    labels: Tensor
    """int64 [B, T]: the id to predict *at* each position, IGNORE where there is no loss."""


class Tokens:
    """Text and codes to token rows and back, for one checkpoint."""

    def __init__(
        self,
        tokenizer: Any,
        prompts: Prompts,
        *,
        image_ids: Tensor,
        boi: int,
        eoi: int,
        num_image_tokens: int,
        controls: Collection[int] = (),
    ) -> None:
        self.prompts = prompts
        self.num_image_tokens = num_image_tokens
        self._tokenizer = tokenizer
        self.bos = int(tokenizer.bos_token_id)
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id)
        self.boi = boi
        """Begin of image."""
        self.eoi = eoi
        """End of image."""
        self.image_ids = image_ids
        """int64 [num_codes]: the vocabulary id of every code."""
        self._unknown = int(
            tokenizer.unk_token_id if tokenizer.unk_token_id is not None else self.pad
        )
        fdp, idm = prompts.parts("fdp"), prompts.parts("idm")
        names = [name for part in (*fdp, *idm) if (name := _control_name(part))]
        ids = {name: self._control_id(name) for name in names}
        self.special_ids = frozenset(
            (boi, eoi, *controls, *ids.values(), *tokenizer.all_special_ids)
        ) - {self._unknown}
        """Ids that no text may become, besides the image ids."""
        self._forbidden = self.special_ids | frozenset(image_ids.tolist())
        self._fdp, self._idm = self._pieces(fdp, ids), self._pieces(idm, ids)

    def _control_id(self, name: str) -> int:
        found = self._tokenizer.get_vocab().get(name)
        if found is None:
            raise UserError(f"the prompts name the token {name}, which the tokenizer does not have")
        return int(found)

    def _pieces(self, parts: Sequence[str], ids: Mapping[str, int]) -> list[str | Tensor]:
        """Bos and a prompt's parts: slots by name, all else as ids [1, T]."""
        pieces: list[str | Tensor] = [torch.tensor([[self.bos]])]
        for part in parts:
            name = _control_name(part)
            if name is None and _is_slot(part):
                pieces.append(part)
            else:
                pieces.append(torch.tensor([self.text_ids(part) if name is None else [ids[name]]]))
        return pieces

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text.

        Strings that look like special tokens are read as the letters they consist of; where the
        tokenizer knows no other way than one special or image id, it becomes the unknown word.
        """
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return [
            self._unknown if token in self._forbidden else int(token) for token in ids["input_ids"]
        ]

    def action_ids(self, action: str) -> list[int]:
        """Ids of an action sentence.

        Raises:
            UserError: it is empty or longer than A tokens.
        """
        ids = self.text_ids(action)
        limit = self.prompts.action_tokens
        if not 1 <= len(ids) <= limit:
            raise UserError(
                f"action {action[:60]!r} has {len(ids)} tokens; 1 to {limit} are allowed"
            )
        return ids

    def sentence_ids(self, action: str) -> list[int]:
        """Ids of an action sentence as the IDM writes it, end token included."""
        return [*self.action_ids(action), self.eos]

    def text(self, ids: Sequence[int]) -> str:
        """Plain text of ids, special tokens left out."""
        decoded: str = self._tokenizer.decode(list(ids), skip_special_tokens=True)
        return decoded.strip()

    def image_block(self, codes_BL: np.ndarray | Tensor) -> Tensor:
        """``boi codes eoi`` as ids [B, L + 2]."""
        codes = torch.as_tensor(codes_BL, dtype=torch.int64)
        ends = torch.tensor([self.boi, self.eoi]).expand(len(codes), 2)
        return torch.cat([ends[:, :1], self.image_ids[codes], ends[:, 1:]], dim=1)

    def fdp_prompt(self, source_codes_BL: np.ndarray, actions: Sequence[str]) -> Tensor:
        """Ids up to and including the second boi, [B, T]: the next L tokens are the target."""
        limit = self.prompts.action_tokens
        rows = [self.action_ids(action) for action in actions]
        padded = torch.tensor([[self.pad] * (limit - len(row)) + row for row in rows])
        padded = padded.reshape(len(rows), limit)  # also without rows
        blocks = {"{action}": padded, "{source}": self.image_block(source_codes_BL)}
        boi = torch.full((len(rows), 1), self.boi)
        return torch.cat([self._compose(self._fdp, blocks, len(rows)), boi], dim=1)

    def idm_prompt(self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray) -> Tensor:
        """Ids up to the place where the action sentence follows, [B, T]."""
        blocks = {
            "{source}": self.image_block(source_codes_BL),
            "{target}": self.image_block(target_codes_BL),
        }
        return self._compose(self._idm, blocks, len(source_codes_BL))

    @staticmethod
    def _compose(
        pieces: Sequence[str | Tensor], blocks: Mapping[str, Tensor], num_rows: int
    ) -> Tensor:
        rows = [blocks[p] if isinstance(p, str) else p.expand(num_rows, -1) for p in pieces]
        return torch.cat(rows, dim=1)

    def fdp_rows(
        self, source_codes_BL: np.ndarray, actions: Sequence[str], target_codes_BL: np.ndarray
    ) -> Rows:
        """Teacher-forced FDP rows: loss on the L target codes only."""
        return self.code_rows(self.fdp_prompt(source_codes_BL, actions), target_codes_BL)

    def idm_rows(
        self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray, actions: Sequence[str]
    ) -> Rows:
        """Teacher-forced IDM rows: loss on the action tokens and the end token."""
        prompt = self.idm_prompt(source_codes_BL, target_codes_BL)
        return self.text_rows(prompt, [self.sentence_ids(action) for action in actions])

    def code_rows(self, prompt_BT: Tensor, codes_BL: np.ndarray | Tensor) -> Rows:
        """Prompts with the frames that follow them: loss on the L codes only."""
        codes = torch.as_tensor(codes_BL, dtype=torch.int64)
        return self._supervised(prompt_BT, self.image_ids[codes])

    def text_rows(self, prompt_BT: Tensor, texts: Sequence[Sequence[int]]) -> Rows:
        """Prompts with the texts that follow them, of at most A + 1 ids: loss on these only."""
        limit = self.prompts.action_tokens + 1
        answer = torch.tensor([[*ids, *[self.pad] * (limit - len(ids))] for ids in texts])
        supervised = self._supervised(prompt_BT, answer)
        beyond = torch.arange(limit) >= torch.tensor([len(ids) for ids in texts])[:, None]
        supervised.labels[:, -limit:][beyond] = IGNORE
        return supervised

    @staticmethod
    def _supervised(prompt_BT: Tensor, answer_BT: Tensor) -> Rows:
        ids = torch.cat([prompt_BT, answer_BT[:, :-1]], dim=1)
        labels = torch.full_like(ids, IGNORE)
        labels[:, prompt_BT.shape[1] - 1 :] = answer_BT
        return Rows(ids, labels)
