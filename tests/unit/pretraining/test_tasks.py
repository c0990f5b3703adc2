from itertools import islice
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from dynamics.models.tokens import IGNORE, Prompts, Rows, Tokens
from dynamics.pretraining.tasks import ROWS_PER_TASK, Frames, FrameTasks, task_words

CODES, CELLS = 20, 9
PROMPTS = Prompts(version="test", fdp="[predict]", idm="[explain]", action_tokens=6)


@pytest.fixture(scope="module")
def tokens() -> Tokens:
    specials = ("<pad>", "<bos>", "<eos>", "<unk>", "<boi>", "<eoi>")
    words = (*specials, "[predict]", "[explain]", *task_words(CELLS))
    backend = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    names = {f"{name}_token": f"<{name}>" for name in ("pad", "bos", "eos", "unk")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)  # type: ignore[no-untyped-call]
    return Tokens(
        tokenizer,
        PROMPTS,
        image_ids=torch.arange(len(words), len(words) + CODES),
        boi=4,
        eoi=5,
        num_image_tokens=CELLS,
    )


def moving_codes() -> Frames:
    """Three clips of four frames: in each code 1 steps through a 3x3 frame of zeros."""
    codes = np.zeros((12, CELLS), dtype=np.int64)
    for frame in range(12):
        codes[frame, frame // 4 + frame % 4] = 1
    return Frames(codes, np.repeat([0, 1, 2], 4))


@pytest.fixture
def tasks(tokens: Tokens) -> FrameTasks:
    return FrameTasks(moving_codes(), tokens, seed=0)


def read(tokens: Tokens, ids: Any) -> str:
    """Words and codes of ids, without what fills."""
    first = int(tokens.image_ids[0])
    words = [
        str(int(i) - first) if i >= first else tokens.text([int(i)]) or "." for i in ids if i != 0
    ]
    return " ".join(words)


def answers(tokens: Tokens, rows: Rows) -> list[str]:
    return [read(tokens, labels[labels != IGNORE]) for labels in rows.labels]


def test_a_step_is_the_same_whoever_asks_and_others_differ(tokens: Tokens) -> None:
    first = list(islice(FrameTasks(moving_codes(), tokens, seed=0).batches(0), 4))
    again = list(islice(FrameTasks(moving_codes(), tokens, seed=0).batches(3), 1))
    other = next(FrameTasks(moving_codes(), tokens, seed=1).batches(3))
    assert set(first[0]) == set(ROWS_PER_TASK)
    for name, number in ROWS_PER_TASK.items():
        assert len(first[3][name].ids) == number
        assert torch.equal(first[3][name].ids, again[0][name].ids)
        assert not torch.equal(first[2][name].ids, first[3][name].ids)
        assert not torch.equal(other[name].ids, first[3][name].ids)


def test_the_next_frame_is_asked_for_in_the_layout_of_the_fdp(
    tokens: Tokens, tasks: FrameTasks
) -> None:
    rows = tasks.next_frames(8, np.random.default_rng(0))
    for ids, answer in zip(rows.ids, answers(tokens, rows), strict=True):
        words = read(tokens, ids).split()
        assert words[:3] == [".", "[predict]", "<boi>"]  # bos is read as a dot
        source = words[3 : 3 + CELLS]
        assert answer.split().index("1") == source.index("1") + 1


def test_hints_name_changed_cells_with_their_new_codes(tokens: Tokens, tasks: FrameTasks) -> None:
    rows = tasks.hinted_frames(8, np.random.default_rng(0))
    for ids, answer in zip(rows.ids, answers(tokens, rows), strict=True):
        words = read(tokens, ids).split()
        hint = words[2 : words.index("<boi>")]
        for cell, code in zip(hint[::2], hint[1::2], strict=True):
            assert answer.split()[int(cell[2:-1])] == code
        assert 1 <= len(hint) // 2 <= 2


def test_changes_are_the_changed_cells_with_both_codes(tokens: Tokens, tasks: FrameTasks) -> None:
    answer = answers(tokens, tasks.changes(8, np.random.default_rng(0)))[0].split()
    assert answer[1:3] + answer[4:] == ["1", "0", "0", "1", "."]
    assert int(answer[3][2:-1]) == int(answer[0][2:-1]) + 1


def test_questions_about_two_frames_are_answered_from_their_codes(tasks: FrameTasks) -> None:
    words = {index: word for word, index in tasks._ids.items()}
    words |= {index: str(code) for code, index in enumerate(tasks._codes)}

    def asked(a: int, b: int) -> dict[str, str]:
        rng, found = np.random.default_rng(0), {}
        for _ in range(400):
            question, answer = tasks._ask(a, b, rng)
            found[" ".join(words[i] for i in question)] = " ".join(words[i] for i in answer)
        return found

    near, far, other, same = asked(4, 5), asked(3, 0), asked(0, 5), asked(2, 2)
    assert (near["[order]"], near["[far]"]) == ("[forth]", "[1]")
    assert (far["[order]"], far["[far]"]) == ("[back]", "[2]")
    assert (other["[order]"], other["[far]"]) == ("[apart]", "[apart]")
    assert (same["[order]"], same["[far]"]) == ("[none]", "[none]")
    assert near["[from] [c0]"] == near["[from] [c1]"] == "[c1] 1 0"
    assert near["[from] [c2]"] == "[c2] 0 1"
    assert near["[from] [c3]"] == "[none]"
    assert near["[at] [c1]"] == "1 0"
    assert near["[moved] [c1]"] == "[c2] [right]"
    assert far["[moved] [c3]"] == "[c0] [up]"
    assert near["[moved] [c5]"] == "[none]"
