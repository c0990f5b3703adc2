"""THE place for prompts, special ids and sequence layouts.

A = action tokens, L = codes a frame. Both tasks use rows of one fixed length without padding
masks; short text is filled with the ordinary pad token, so that under rotary positions the step
from a source code to its target code is the same in every row:

    FDP  [bos instruction | pad .. action (A) | boi source (L) eoi | boi target (L)]
    IDM  [bos instruction | boi source (L) eoi | boi target (L) eoi | action, eos, pad .. (A + 1)]
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from dynamics.errors import UserError

PROMPTS_FILE = "prompts.json"
IGNORE = -100


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Instruction texts of the two tasks; saved with the checkpoint."""

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
    def load(cls, folder: Path) -> "Prompts":
        """Read ``prompts.json``.

        Raises:
            UserError: it is missing.
        """
        if not (folder / PROMPTS_FILE).is_file():
            raise UserError(f"{folder} has no {PROMPTS_FILE}: not a checkpoint of this project")
        return cls(**json.loads((folder / PROMPTS_FILE).read_text()))


@dataclass(frozen=True, slots=True)
class Rows:
    """Token rows and what to predict."""

    ids: Tensor
    """int64 [B, T]."""
    labels: Tensor
    """int64 [B, T]: the id to predict *at* each position, IGNORE where there is no loss."""


class Tokens:
    """Text and codes to token rows and back, for one checkpoint."""

    def __init__(
        self, tokenizer: Any, vocabulary: Mapping[str, int], prompts: Prompts, num_image_tokens: int
    ) -> None:
        self.prompts = prompts
        self.num_image_tokens = num_image_tokens
        self._tokenizer = tokenizer
        self.bos = int(tokenizer.bos_token_id)
        self.eos = int(tokenizer.eos_token_id)
        self.pad = int(tokenizer.pad_token_id)
        self.boi = vocabulary["<racm3:break>"]
        self.eoi = vocabulary["<eoss>"]
        self.image_ids = image_ids(vocabulary)
        """int64 [num_codes]: the vocabulary id of every code."""
        self._forbidden = frozenset(self.image_ids.tolist()) | frozenset(tokenizer.all_special_ids)
        self._unknown = int(
            tokenizer.unk_token_id if tokenizer.unk_token_id is not None else self.pad
        )
        self._fdp_prefix = [self.bos, *self.text_ids(prompts.fdp)]
        self._idm_prefix = [self.bos, *self.text_ids(prompts.idm)]

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text. Strings that look like special or image tokens stay unknown words."""
        ids = self._tokenizer(text, add_special_tokens=False)["input_ids"]
        return [self._unknown if token in self._forbidden else int(token) for token in ids]

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
        prefix = torch.tensor(self._fdp_prefix).expand(len(rows), -1)
        boi = torch.full((len(rows), 1), self.boi)
        return torch.cat([prefix, padded, self.image_block(source_codes_BL), boi], dim=1)

    def idm_prompt(self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray) -> Tensor:
        """Ids up to and including the second eoi, [B, T]: the action sentence follows."""
        prefix = torch.tensor(self._idm_prefix).expand(len(source_codes_BL), -1)
        return torch.cat(
            [prefix, self.image_block(source_codes_BL), self.image_block(target_codes_BL)], dim=1
        )

    def fdp_rows(
        self, source_codes_BL: np.ndarray, actions: Sequence[str], target_codes_BL: np.ndarray
    ) -> Rows:
        """Teacher-forced FDP rows: loss on the L target codes only."""
        prompt = self.fdp_prompt(source_codes_BL, actions)
        target = self.image_ids[torch.as_tensor(target_codes_BL, dtype=torch.int64)]
        return self._supervised(prompt, target)

    def idm_rows(
        self, source_codes_BL: np.ndarray, target_codes_BL: np.ndarray, actions: Sequence[str]
    ) -> Rows:
        """Teacher-forced IDM rows: loss on the action tokens and the end token."""
        limit = self.prompts.action_tokens + 1
        rows = [[*self.action_ids(action), self.eos] for action in actions]
        answer = torch.tensor([row + [self.pad] * (limit - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        supervised = self._supervised(self.idm_prompt(source_codes_BL, target_codes_BL), answer)
        beyond = torch.arange(limit) >= lengths[:, None]
        supervised.labels[:, -limit:][beyond] = IGNORE
        return supervised

    @staticmethod
    def _supervised(prompt_BT: Tensor, answer_BT: Tensor) -> Rows:
        ids = torch.cat([prompt_BT, answer_BT[:, :-1]], dim=1)
        labels = torch.full_like(ids, IGNORE)
        labels[:, prompt_BT.shape[1] - 1 :] = answer_BT
        return Rows(ids, labels)


def image_ids(vocabulary: Mapping[str, int]) -> Tensor:
    """Vocabulary id per code, from Chameleon's names: ``IMGIMG`` + digits as letters A-J + ``Z``.

    The ids are *not* code + constant in the published checkpoints, so the map is the only way.
    """
    digits = str.maketrans("ABCDEFGHIJ", "0123456789")
    by_code = {
        int(name.removeprefix("IMGIMG")[:-1].translate(digits)): token
        for name, token in vocabulary.items()
        if name.startswith("IMGIMG")
    }
    if sorted(by_code) != list(range(len(by_code))) or not by_code:
        raise UserError("the checkpoint's vocabulary_map has no complete set of IMGIMG tokens")
    return torch.tensor([by_code[code] for code in range(len(by_code))])


def image_token_name(code: int) -> str:
    """Chameleon's name of a code; inverse of what `image_ids` reads."""
    return "IMGIMG" + str(code).translate(str.maketrans("0123456789", "ABCDEFGHIJ")) + "Z"
