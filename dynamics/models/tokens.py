"""Prompts, special ids and sequence layouts; nothing else in the code knows them.

A = action tokens, L = codes a frame. Rows of a task have one fixed length. With the prompts of the
tiny checkpoint short text is filled with the ordinary pad token, without a mask, so that under
rotary positions the step from a source code to its target code is the same in every row:

    FDP  [bos instruction | pad .. action (A) | boi source (L) eoi | boi target (L)]
    IDM  [bos instruction | boi source (L) eoi | boi target (L) eoi | action, eos, pad (A + 1)]

Other prompts place the parts themselves (`Prompts`), as published checkpoints know them:

    FDP  [pad .. bos boi source (L) eoi newline wording action boi | target (L)]

No token sees their fillers: engines mask what stands before bos (`lead`), and rows that are
scored whole begin with bos and have the fillers at their end, where causal attention never looks.
"""

import difflib
import json
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tokenizers.models import WordLevel
from torch import Tensor

from dynamics.core.errors import UserError
from dynamics.core.text_files import read_json_object

PROMPTS_FILE = "prompts.json"
IGNORE = -100
_KNOWN_TEXTS = 2**14
"""Texts whose ids are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    """Texts of the two tasks; saved with the checkpoint.

    A text is what stands between bos and the answer. ``{source}``, ``{target}`` and ``{action}``
    stand for the frames (with their boi and eoi) and the sentence, ``{<name>}`` for the control
    token of that name; all else is plain text, and becomes tokens together with the sentence. A
    text without ``{source}`` is an instruction that comes first: the layout of the tiny checkpoint.

    Several texts of a task are wordings of it: training draws among them, all else takes the first.
    """

    version: str
    """Part of every label's key."""
    fdp: str | tuple[str, ...]
    idm: str | tuple[str, ...]
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
        raw = read_json_object(path)
        if set(raw) != {field.name for field in fields(cls)}:
            names = ", ".join(field.name for field in fields(cls))
            raise UserError(f"{path} must have exactly the fields {names}")
        texts = {task: raw[task] for task in _SLOTS}
        return cls(**raw | {t: tuple(x) if isinstance(x, list) else x for t, x in texts.items()})

    def parts(self, task: Literal["fdp", "idm"]) -> list[list[str]]:
        """The parts of every wording of a task: ``{...}``, and the text between them.

        ``{action}`` stays within the text around it, save where the frames come last.

        Raises:
            UserError: a slot is missing, twice, unknown, or names what is to be predicted.
        """
        texts = self.fdp if task == "fdp" else self.idm
        return [_parts(task, text) for text in ([texts] if isinstance(texts, str) else texts)]


_SLOTS = {"fdp": ("{action}", "{source}"), "idm": ("{source}", "{target}")}
_ACTION = "{action}"
_SLOT = r"\{[^{}]*\}"


def _parts(task: str, text: str) -> list[str]:
    slots, cuts = _SLOTS[task], _SLOT
    if "{source}" in text:
        cuts = rf"(?!\{_ACTION}){_SLOT}"
    else:
        text += "".join(slots)
    found = [slot for slot in re.findall(_SLOT, text) if not _control_name(slot)]
    if sorted(found) != sorted(slots):
        raise UserError(
            f"the {task} prompt must have {' and '.join(sorted(slots))} once each, "
            f"and has {', '.join(found) or 'none'}: {text!r}"
        )
    return [part for part in re.split(f"({cuts})", text) if part]


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
        no_action: Sequence[int] = (),
    ) -> None:
        self.prompts = prompts
        self.num_image_tokens = num_image_tokens
        self._tokenizer = tokenizer
        self._no_action = torch.tensor(no_action, dtype=torch.int64)
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
        names = [name for text in (*fdp, *idm) for part in text if (name := _control_name(part))]
        ids = {name: self._control_id(name) for name in names}
        self.special_ids = frozenset(
            (boi, eoi, *controls, *ids.values(), *tokenizer.all_special_ids)
        ) - {self._unknown}
        """Ids that no text may become, besides the image ids."""
        self._forbidden = self.special_ids | frozenset(image_ids.tolist())
        self._words = self._known_words()
        # Sentences come again and again, and a call of the tokenizer costs as much as a short row.
        self._known_ids = lru_cache(maxsize=_KNOWN_TEXTS)(self._ids)
        self._fdp = [self._pieces(parts, ids) for parts in fdp]
        self._idm = [self._pieces(parts, ids) for parts in idm]

    def _known_words(self) -> tuple[str, ...]:
        """Words of a tokenizer that knows no others, without tasks and spare slots (``[...]``)."""
        if not isinstance(self._tokenizer.backend_tokenizer.model, WordLevel):
            return ()
        known = self._tokenizer.get_vocab().items()
        unspoken = self._forbidden | {self._unknown}
        return tuple(word for word, token in known if token not in unspoken and word[0] != "[")

    def _control_id(self, name: str) -> int:
        found = self._tokenizer.get_vocab().get(name)
        if found is None:
            raise UserError(f"the prompts name the token {name}, which the tokenizer does not have")
        return int(found)

    def _pieces(self, parts: Sequence[str], ids: Mapping[str, int]) -> list[str | Tensor]:
        """Bos and a prompt's parts: what holds a slot by its text, all else as ids [T]."""
        pieces: list[str | Tensor] = [torch.tensor([self.bos])]
        for part in parts:
            name = _control_name(part)
            if name is not None:
                pieces.append(torch.tensor([ids[name]]))
            elif _is_slot(part) or _ACTION in part:
                pieces.append(part)
            else:
                pieces.append(torch.tensor(self.text_ids(part)))
        return pieces

    def text_ids(self, text: str) -> list[int]:
        """Ids of plain text.

        Strings that look like special tokens are read as the letters they consist of; where the
        tokenizer knows no other way than one special or image id, it becomes the unknown word.
        """
        return list(self._known_ids(text))

    def _ids(self, text: str) -> tuple[int, ...]:
        ids = self._tokenizer(text, add_special_tokens=False, split_special_tokens=True)
        return tuple(
            self._unknown if token in self._forbidden else int(token) for token in ids["input_ids"]
        )

    def unknown_words(self, text: str) -> dict[str, str]:
        """Words of a text that the checkpoint does not know, each with the nearest known one.

        A tokenizer that writes words in pieces knows all.
        """
        return {
            word: difflib.get_close_matches(word, self._words, n=1, cutoff=0.0)[0]
            for word in text.split()
            if self._words and word not in self._words
        }

    def action_ids(self, action: str) -> list[int]:
        """Ids of an action sentence.

        Raises:
            UserError: it has a word that the checkpoint does not know, none, or more than A tokens.
        """
        for word, nearest in self.unknown_words(action).items():
            raise UserError(
                f"the model does not know the word {word[:60]!r} of {action[:60]!r}; the nearest "
                f"word that it knows is {nearest!r}"
            )
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

    def num_wordings(self, task: Literal["fdp", "idm"]) -> int:
        """Ways in which the prompts say a task."""
        return len(self._fdp if task == "fdp" else self._idm)

    def fdp_prompt(
        self,
        source_codes_BL: np.ndarray,
        actions: Sequence[str | None],
        wordings: Sequence[int] | None = None,
    ) -> Tensor:
        """Ids up to and including the second boi, [B, T]: the next L tokens are the target.

        ``wordings`` names each row's; None = the first. A row's fillers stand before bos. An action
        of None leaves it out, with the text around it.
        """
        blocks = {"{source}": self.image_block(source_codes_BL)}
        layouts = [[*pieces, torch.tensor([self.boi])] for pieces in self._fdp]
        return self._compose(layouts, blocks, wordings, actions)

    def idm_prompt(
        self,
        source_codes_BL: np.ndarray,
        target_codes_BL: np.ndarray,
        wordings: Sequence[int] | None = None,
    ) -> Tensor:
        """Ids up to the place where the action sentence follows, [B, T], as in `fdp_prompt`."""
        blocks = {
            "{source}": self.image_block(source_codes_BL),
            "{target}": self.image_block(target_codes_BL),
        }
        return self._compose(self._idm, blocks, wordings)

    def _compose(
        self,
        layouts: Sequence[Sequence[str | Tensor]],
        blocks: Mapping[str, Tensor],
        wordings: Sequence[int] | None,
        actions: Sequence[str | None] = (),
    ) -> Tensor:
        num_rows = len(blocks["{source}"])
        if wordings is None:
            wordings, layouts = [0] * num_rows, layouts[:1]
        rows = []
        for row, wording in enumerate(wordings):
            parts = [
                piece
                if isinstance(piece, Tensor)
                else blocks[piece][row]
                if piece in blocks
                else self._with_action(piece, actions[row])
                for piece in layouts[wording]
            ]
            rows.append(torch.cat(parts))
        length = max(self._length(pieces) for pieces in layouts)
        filled = torch.full((num_rows, length), self.pad)
        for place, ids in zip(filled, rows, strict=True):
            place[length - len(ids) :] = ids
        return filled

    def _with_action(self, text: str, action: str | None) -> Tensor:
        """Ids of a part that holds the sentence; the sentence alone is filled up to A."""
        if action is None:
            fillers = self.prompts.action_tokens if text == _ACTION else 0
            return torch.cat([torch.full((fillers,), self.pad), self._no_action])
        ids = self.action_ids(action)
        if text == _ACTION:
            return torch.tensor([self.pad] * (self.prompts.action_tokens - len(ids)) + ids)
        return torch.tensor(self.text_ids(text.replace(_ACTION, action)))

    def _length(self, pieces: Sequence[str | Tensor]) -> int:
        """Tokens of a prompt with a sentence of A tokens."""
        length = 0
        for piece in pieces:
            if isinstance(piece, Tensor):
                length += len(piece)
            elif piece == _ACTION:
                length += self.prompts.action_tokens
            elif _ACTION in piece:
                # After a blank a sentence may have a token more than alone.
                around = len(self.text_ids(piece.replace(_ACTION, "")))
                length += around + self.prompts.action_tokens + 1
            else:
                length += self.num_image_tokens + 2
        return length

    def lead(self, ids_BT: Tensor) -> Tensor | None:
        """Fillers before each row's bos, [B], which no token may see; None where there are none."""
        lead_B = (ids_BT == self.bos).int().argmax(1)
        return lead_B if bool(lead_B.any()) else None

    @property
    def instruction_tokens(self) -> int:
        """Most tokens of a prompt besides its frames, with their boi and eoi, and its sentence."""
        frame = self.num_image_tokens + 2
        fdp = max(map(self._length, self._fdp)) - frame - self.prompts.action_tokens
        return max(fdp, max(map(self._length, self._idm)) - 2 * frame)

    def fdp_rows(
        self,
        source_codes_BL: np.ndarray,
        actions: Sequence[str | None],
        target_codes_BL: np.ndarray,
        wordings: Sequence[int] | None = None,
    ) -> Rows:
        """Teacher-forced FDP rows: loss on the L target codes only."""
        return self.code_rows(self.fdp_prompt(source_codes_BL, actions, wordings), target_codes_BL)

    def idm_rows(
        self,
        source_codes_BL: np.ndarray,
        target_codes_BL: np.ndarray,
        actions: Sequence[str],
        wordings: Sequence[int] | None = None,
    ) -> Rows:
        """Teacher-forced IDM rows: loss on the action tokens and the end token."""
        prompt = self.idm_prompt(source_codes_BL, target_codes_BL, wordings)
        return self.text_rows(prompt, [self.sentence_ids(action) for action in actions])

    def code_rows(self, prompt_BT: Tensor, codes_BL: np.ndarray | Tensor) -> Rows:
        """Prompts with the frames that follow them: loss on the L codes only."""
        answer = self.image_ids[torch.as_tensor(codes_BL, dtype=torch.int64)]
        return self._supervised(prompt_BT, answer, answer)

    def text_rows(self, prompt_BT: Tensor, texts: Sequence[Sequence[int]]) -> Rows:
        """Prompts with the texts that follow them, of at most A + 1 ids: loss on these only."""
        limit = self.prompts.action_tokens + 1
        answer = torch.tensor([[*ids, *[self.pad] * (limit - len(ids))] for ids in texts])
        beyond = torch.arange(limit) >= torch.tensor([len(ids) for ids in texts])[:, None]
        return self._supervised(prompt_BT, answer, answer.masked_fill(beyond, IGNORE))

    def _supervised(self, prompt_BT: Tensor, answer_BT: Tensor, scored_BT: Tensor) -> Rows:
        """Rows that begin with bos; fillers before it go to the end."""
        ids = torch.cat([prompt_BT, answer_BT[:, :-1]], dim=1)
        labels = torch.full_like(ids, IGNORE)
        labels[:, prompt_BT.shape[1] - 1 :] = scored_BT
        lead_B = self.lead(ids)
        if lead_B is not None:
            order = (torch.arange(ids.shape[1]) + lead_B[:, None]) % ids.shape[1]
            ids, labels = ids.gather(1, order), labels.gather(1, order)
        return Rows(ids, labels)
