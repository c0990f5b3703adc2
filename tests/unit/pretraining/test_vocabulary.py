import pytest

from dynamics.core.errors import UserError
from dynamics.pretraining.vocabulary import SPARE_WORDS, build_tokenizer, prompts, words_of


def test_every_word_of_a_label_is_a_token_and_an_unsaid_one_is_none() -> None:
    words = words_of(["nudge the peg, gently", "nudge it"])
    tokenizer = build_tokenizer(["[order]"], [*words, *SPARE_WORDS.split()])
    assert words == ["gently", "it", "nudge", "peg,", "the"]
    assert tokenizer.unk_token_id not in tokenizer("nudge the peg, gently").input_ids
    assert tokenizer("[order] [predict] left").input_ids.count(tokenizer.unk_token_id) == 0
    assert tokenizer("peg").input_ids == [tokenizer.unk_token_id]


def test_a_word_that_looks_like_a_task_is_refused() -> None:
    with pytest.raises(UserError, match="begins with a bracket"):
        words_of(["push [order] left"])


def test_prompts_have_room_for_the_longest_sentence() -> None:
    assert prompts(["a " * 14]).action_tokens == 16
    assert prompts(["go"]).action_tokens == 10
