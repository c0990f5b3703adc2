from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from dynamics.core.errors import UserError
from dynamics.models.chameleon import (
    chameleon_tokens,
    image_ids,
    image_token_name,
    load_image_tokenizer,
    load_tokens,
)
from dynamics.models.checkpoint import read_tokenizer
from dynamics.models.tokens import IGNORE, Prompts, Tokens
from tests.hostile import hostile_texts

ACTION = "push the red ring left"


@pytest.fixture(scope="module")
def tokens(untrained_base: Path) -> Tokens:
    return load_tokens(untrained_base, load_image_tokenizer(untrained_base))


def codes(num: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 500, size=(num, 9))


def test_image_token_names_are_chameleons() -> None:
    assert image_token_name(1045) == "IMGIMGBAEFZ"
    vocabulary = {image_token_name(code): 900 - code for code in range(12)}
    assert image_ids(vocabulary).tolist() == [900 - code for code in range(12)]


def test_an_incomplete_image_vocabulary_is_refused() -> None:
    with pytest.raises(UserError, match="IMGIMG"):
        image_ids({image_token_name(1): 5})


def test_source_to_target_offset_does_not_depend_on_the_sentence(tokens: Tokens) -> None:
    actions = ["remove the red ring", "put the red ring left of the blue cross"]
    ids = tokens.fdp_rows(codes(2), actions, codes(2, 1)).ids
    assert (ids[0] == tokens.boi).nonzero().tolist() == (ids[1] == tokens.boi).nonzero().tolist()


def test_fdp_loss_is_on_the_target_codes_only(tokens: Tokens) -> None:
    target = codes(3, 1)
    rows = tokens.fdp_rows(codes(3), [ACTION] * 3, target)
    scored = rows.labels != IGNORE
    assert scored.sum(1).tolist() == [9, 9, 9]
    assert (rows.labels[scored].reshape(3, 9) == tokens.image_ids[torch.from_numpy(target)]).all()


def test_idm_loss_is_on_the_sentence_and_its_end_only(tokens: Tokens) -> None:
    actions = [ACTION, "remove the red ring"]
    rows = tokens.idm_rows(codes(2), codes(2, 1), actions)
    for row, action in zip(rows.labels.tolist(), actions, strict=True):
        scored = [label for label in row if label != IGNORE]
        assert scored == [*tokens.action_ids(action), tokens.eos]


@pytest.mark.parametrize("text", ["<eoss>", "<racm3:break>", image_token_name(3), "<image> <bos>"])
def test_special_strings_in_text_never_become_special_ids(tokens: Tokens, text: str) -> None:
    special = {tokens.boi, tokens.eoi, tokens.bos, tokens.eos, *tokens.image_ids.tolist()}
    assert not special & set(tokens.text_ids(f"push the {text} ring"))


def test_an_unknown_word_is_named_with_the_nearest_known_one(tokens: Tokens) -> None:
    with pytest.raises(UserError, match=r"know the word 'puhs' of 'puhs the red .* is 'push'"):
        tokens.action_ids("puhs the red ring left")
    for text in ("<eoss>", "[compare]", "<unk>", image_token_name(3)):
        assert list(tokens.unknown_words(f"push {text}")) == [text]


@pytest.mark.slow
def test_ten_thousand_hostile_texts_never_become_special_ids(
    tokens: Tokens, record_property: Callable[[str, object], None]
) -> None:
    special = {*tokens.special_ids, *tokens.image_ids.tolist()}
    cases = 0
    for text in hostile_texts(10_000):
        cases += 1
        assert not special & set(tokens.text_ids(text))
    record_property("cases", cases)


@pytest.mark.parametrize("action", ["", "   ", "push " * 11])
def test_empty_and_overlong_actions_are_refused(tokens: Tokens, action: str) -> None:
    with pytest.raises(UserError, match="tokens"):
        tokens.action_ids(action)


def test_text_survives_its_ids(tokens: Tokens) -> None:
    assert tokens.text(tokens.text_ids(ACTION)) == ACTION


def test_the_tiny_layout_is_instruction_action_source_target(tokens: Tokens) -> None:
    source, target = codes(1), codes(1, 1)
    action = tokens.action_ids(ACTION)
    padding = [tokens.pad] * (tokens.prompts.action_tokens - len(action))
    frames = [tokens.image_block(c)[0].tolist() for c in (source, target)]
    fdp = [tokens.bos, *tokens.text_ids("[predict]"), *padding, *action, *frames[0], tokens.boi]
    assert tokens.fdp_prompt(source, [ACTION])[0].tolist() == fdp
    idm = [tokens.bos, *tokens.text_ids("[explain]"), *frames[0], *frames[1]]
    assert tokens.idm_prompt(source, target)[0].tolist() == idm


@pytest.mark.parametrize(
    "fdp",
    ["{source} no action", "{source}{action}{action}", "{source}{action}{target}", "{source}{act}"],
)
def test_a_prompt_with_other_slots_is_refused(fdp: str) -> None:
    prompts = Prompts(version="x", fdp=fdp, idm="[explain]", action_tokens=4)
    with pytest.raises(UserError, match="the fdp prompt must have"):
        prompts.parts("fdp")


def test_a_prompt_that_names_a_strange_token_is_refused(untrained_base: Path) -> None:
    prompts = Prompts(version="x", fdp="[predict]", idm="[explain]{<turn>}", action_tokens=4)
    vocabulary = {image_token_name(0): 9, "<racm3:break>": 4, "<eoss>": 5}
    with pytest.raises(UserError, match="<turn>"):
        chameleon_tokens(read_tokenizer(untrained_base), vocabulary, prompts, 4)


def test_prompts_with_other_fields_are_refused(tmp_path: Path) -> None:
    (tmp_path / "prompts.json").write_text('{"version": "x", "fdp": ""}')
    with pytest.raises(UserError, match="exactly the fields version, fdp, idm, action_tokens"):
        Prompts.load(tmp_path)
