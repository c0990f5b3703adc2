import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.data.labelled.listing import MAX_ACTION_CHARS, Collector, plain_action
from dynamics.data.labelled.paths import Refused
from dynamics.models import load_image_tokenizer
from dynamics.models.chameleon import load_tokens


@pytest.mark.parametrize(
    ("said", "plain"),
    [
        ("open the door", "open the door"),
        ("  open\tthe\n\ndoor ", "open the door"),
        (["open the door", "let it be open"], "open the door"),
        ("open\u202e the\x00 door\u200b", "open the door"),
        ("öffne die Tür", "öffne die Tür"),
        ("a < b and b > a", "a < b and b > a"),
        ("\ud800 open", "? open"),
    ],
)
def test_a_sentence_becomes_plain_text_on_one_line(said, plain):
    assert plain_action(said) == plain


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ("", "no_action"),
        (" \n\u200b", "no_action"),
        (None, "no_action"),
        (17, "no_action"),
        ([], "no_action"),
        ([""], "no_action"),
        ([["open"]], "no_action"),
        ({"text": "open"}, "no_action"),
        ("open " * 2000, "long_action"),
        ("x" * (MAX_ACTION_CHARS + 1), "long_action"),
        ("<image> open", "special_token"),
        ("open <racm3:break> the door", "special_token"),
        ("<|endoftext|>", "special_token"),
        ("<boi>", "special_token"),
        ("say IMGIMGBCDZ", "special_token"),
    ],
)
def test_what_is_no_sentence_is_refused_with_a_reason(said, reason):
    with pytest.raises(Refused, match=f"^{reason}$"):
        plain_action(said)


@pytest.fixture(scope="module")
def tokens():
    cfg = LoopConfig()
    return load_tokens(cfg.base_path(), load_image_tokenizer(cfg.model.family, cfg.base_path()))


NAMES = st.sampled_from(["IMGIMGAZ", "<eoss>", "<racm3:break>", "<s>", "<pad>", "\x00", "open "])


@settings(max_examples=300, deadline=None)
@given(text=st.one_of(st.text(max_size=60), st.lists(NAMES, max_size=6).map("".join)))
def test_no_accepted_sentence_has_an_image_id(tokens, text):
    try:
        action = plain_action(text)
    except Refused:
        return
    assert "\n" not in action
    assert not set(tokens.text_ids(action)) & set(tokens.image_ids.tolist())


def test_the_summary_counts_every_reason_and_names_one_of_each():
    collector = Collector("set in /x", "https://example.org")
    collector.reject("a.png", "missing_image")
    collector.reject("b.png", "missing_image")
    collector.reject("row\n7", "no_action")
    with pytest.raises(UserError) as caught:
        collector.done()
    said = str(caught.value)
    assert "\n" not in said
    assert "0 of 3 rows can be used" in said
    assert "2 missing_image (e.g. a.png), 1 no_action (e.g. row?7)" in said
    assert "where to get what is missing: https://example.org" in said
