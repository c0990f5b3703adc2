"""Instructions cut to what a model knows and its prompt holds; what is left out is counted."""

from dataclasses import dataclass

from dynamics.models.tokens import Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """The part of an instruction that fits a model's prompt."""

    text: str
    """"" when the tokenizer makes nothing of the instruction; it is then counted unanswered."""
    num_tokens: int
    num_unknown: int
    """Words that the model does not know, which are left out, and tokens that stand for no text:
    strings that look like special tokens."""
    truncated: bool


def fit_instruction(tokens: Tokens, instruction: str) -> Told:
    """The longest beginning of an instruction that the model's prompt has room for.

    Whole words from the start, without those that the model does not know; a first word that alone
    is too long is halved until it fits.
    """
    limit = tokens.prompts.action_tokens
    # No more words than tokens: an endless instruction costs no more than a long one.
    said = instruction.split()[:limit]
    unknown = tokens.unknown_words(" ".join(said))
    known = [word for word in said if word not in unknown]
    words, text = list(known), " ".join(known)
    while len(words) > 1 and len(tokens.text_ids(text)) > limit:
        words.pop()
        text = " ".join(words)
    while len(text) > 1 and len(tokens.text_ids(text)) > limit:
        text = text[: len(text) // 2]
    ids = tokens.text_ids(text)
    num_unknown = len(said) - len(known)
    if not 1 <= len(ids) <= limit:
        return Told(text="", num_tokens=0, num_unknown=num_unknown, truncated=True)
    return Told(
        text=text,
        num_tokens=len(ids),
        num_unknown=num_unknown + sum(not tokens.text([token]) for token in ids),
        truncated=text != " ".join(known) or len(said) < len(instruction.split()),
    )
