"""Instructions cut to what a model's prompt holds, with their unknown words counted."""

from dataclasses import dataclass

from dynamics.models.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The part of an instruction that fits a model's prompt."""

    text: str
    """"" when the tokenizer makes nothing of the instruction; it is then counted unanswered."""
    num_tokens: int
    num_unknown: int
    """Tokens that stand for no text: unknown words, and strings that look like special tokens,
    which stay text and so mean nothing."""
    truncated: bool


def fit_instruction(tokens: Tokens, instruction: str) -> Told:
    """The longest beginning of an instruction that the model's prompt has room for.

    Whole words from the start; a first word that alone is too long is halved until it fits.
    """
    limit = tokens.prompts.action_tokens
    # No more words than tokens: an endless instruction costs no more than a long one.
    words = instruction.split()[:limit]
    text = " ".join(words)
    while len(words) > 1 and len(tokens.text_ids(text)) > limit:
        words.pop()
        text = " ".join(words)
    while len(text) > 1 and len(tokens.text_ids(text)) > limit:
        text = text[: len(text) // 2]
    ids = tokens.text_ids(text)
    if not 1 <= len(ids) <= limit:
        return Told(text="", num_tokens=0, num_unknown=0, truncated=True)
    return Told(
        text=text,
        num_tokens=len(ids),
        num_unknown=sum(not tokens.text([token]) for token in ids),
        truncated=text != " ".join(instruction.split()),
    )
