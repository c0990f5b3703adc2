"""Rows of published families against the sequences on which SWIRL trains, in our own wordings."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.models import load_image_tokenizer, load_tokens
from dynamics.models.checkpoint import read_tokenizer
from dynamics.models.tokens import IGNORE, Tokens
from dynamics.models.wordings import FDP_WORDINGS, IDM_WORDINGS
from tests.contracts.checkpoints import CASES

ACTIONS = ["push the red ring left", "go"]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("liquid")
    CASES["liquid"].build(folder)
    return folder


@pytest.fixture(scope="module")
def tokens(base: Path) -> Tokens:
    return load_tokens("liquid", base, load_image_tokenizer("liquid", base))


def codes(tokens: Tokens, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 9, (2, tokens.num_image_tokens))


def test_a_row_of_the_fdp_is_image_newline_wording_sentence_image(
    tokens: Tokens, base: Path
) -> None:
    source, target = codes(tokens, 0), codes(tokens, 1)
    rows = tokens.fdp_rows(source, ACTIONS, target, [3, 7])
    blocks = tokens.image_block(source), tokens.image_block(target)
    for row, wording in enumerate((3, 7)):
        said = f"\n{FDP_WORDINGS[wording]} {ACTIONS[row]}"
        text = read_tokenizer(base)(said, add_special_tokens=False)["input_ids"]
        frames = blocks[0][row].tolist(), blocks[1][row].tolist()
        whole = [tokens.bos, *frames[0], *text, *frames[1]][:-1]  # without its end of image
        length = len(whole) - 1  # the last code is predicted, not read
        assert rows.ids[row, :length].tolist() == whole[:-1]
        assert (rows.ids[row, length:] == tokens.pad).all()
        labels = [IGNORE] * (length - tokens.num_image_tokens) + frames[1][1:-1]
        assert rows.labels[row].tolist() == labels + [IGNORE] * (rows.ids.shape[1] - length)


def test_wordings_do_not_change_the_length_of_rows_nor_the_answer(tokens: Tokens) -> None:
    source, target = codes(tokens, 0), codes(tokens, 1)
    for task, count in (("fdp", len(FDP_WORDINGS)), ("idm", len(IDM_WORDINGS))):
        assert tokens.num_wordings("fdp" if task == "fdp" else "idm") == count
        several = [
            tokens.fdp_rows(source, ACTIONS, target, [wording, 0])
            if task == "fdp"
            else tokens.idm_rows(source, target, ACTIONS, [wording, 0])
            for wording in range(count)
        ]
        assert len({rows.ids.shape for rows in several}) == 1
        assert len({tuple(rows.ids[0].tolist()) for rows in several}) == count
        answers = {tuple(rows.labels[rows.labels != IGNORE].tolist()) for rows in several}
        assert len(answers) == 1


def test_what_is_read_without_a_draw_is_the_first_wording(tokens: Tokens) -> None:
    source, target = codes(tokens, 0), codes(tokens, 1)
    plain, first = tokens.idm_prompt(source, target), tokens.idm_prompt(source, target, [0, 0])
    assert tokens.lead(plain) is None
    lead = tokens.lead(first)
    assert lead is not None
    for row, fillers in enumerate(lead):
        assert torch.equal(plain[row], first[row, fillers:])
