"""Porter's stemmer (Program 14, 1980) in the variant of NLTK, on which rouge_score stands.

The shape of a text has v for each of its vowels and c for each of its consonants; its measure is
the number of times that a consonant follows a vowel.
"""

from functools import lru_cache

_IRREGULAR = {
    "skies": "sky", "sky": "sky", "dying": "die", "lying": "lie", "tying": "tie", "news": "news",
    "innings": "inning", "inning": "inning", "outings": "outing", "outing": "outing",
    "cannings": "canning", "canning": "canning", "howe": "howe", "proceed": "proceed",
    "exceed": "exceed", "succeed": "succeed",
}  # fmt: skip
_DOUBLE_SUFFIXES = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble",
    "alli": "al", "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate",
    "ator": "ate", "alism": "al", "iveness": "ive", "fulness": "ful", "ousness": "ous",
    "aliti": "al", "iviti": "ive", "biliti": "ble", "fulli": "ful",
}  # fmt: skip
_SUFFIXES = {
    "icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": "",
}  # fmt: skip
_ENDS = ("al", "ance", "ence", "er", "ic", "able", "ible", "ant", "ement", "ment", "ent", "ion",
         "ou", "ism", "ate", "iti", "ous", "ive", "ize")  # fmt: skip


@lru_cache(maxsize=10_000)
def stem(word: str) -> str:
    """The stem of a lower-case word; words of up to three letters stay whole, as in rouge_score."""
    if len(word) <= 3:
        return word
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    word = _without_participle(_without_plural(word))
    if word.endswith("y") and len(word) > 2 and _shape(word)[-2] == "c":
        word = word[:-1] + "i"
    word = _without_end(_replaced(_simplified(word), _SUFFIXES))
    if word.endswith("e"):
        rest = word[:-1]
        measure = _measure(rest)
        if measure > 1 or (measure == 1 and not _is_short(rest)):
            word = rest
    return word[:-1] if word.endswith("ll") and _measure(word[:-1]) > 1 else word


def _shape(text: str) -> str:
    shape = ""
    for letter in text:
        is_vowel = letter in "aeiou" or (letter == "y" and shape.endswith("c"))
        shape += "v" if is_vowel else "c"
    return shape


def _measure(text: str) -> int:
    return _shape(text).count("vc")


def _is_short(text: str) -> bool:
    """True for what ends like "hop" or is like "at": an e belongs to it."""
    shape = _shape(text)
    return shape == "vc" or (shape.endswith("cvc") and text[-1] not in "wxy")


def _without_plural(word: str) -> str:
    if word.endswith("ies"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("sses"):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_participle(word: str) -> str:
    if word.endswith("ied"):
        return word[:-1] if len(word) == 4 else word[:-2]
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    rest = next((word[: -len(end)] for end in ("ed", "ing") if word.endswith(end)), "")
    if "v" not in _shape(rest):
        return word
    if rest.endswith(("at", "bl", "iz")) or (_measure(rest) == 1 and _is_short(rest)):
        return rest + "e"
    doubled = len(rest) > 1 and rest[-1] == rest[-2] and rest[-1] not in "aeioulsz"
    return rest[:-1] if doubled else rest


def _simplified(word: str) -> str:
    if word.endswith("alli") and _measure(word[:-4]):
        return _simplified(word[:-2])
    if word.endswith("logi"):
        return word[:-1] if _measure(word[:-3]) else word
    return _replaced(word, _DOUBLE_SUFFIXES)


def _replaced(word: str, rules: dict[str, str]) -> str:
    """The word by the first rule whose suffix it has, where something is left before it."""
    for suffix, end in rules.items():
        if word.endswith(suffix):
            rest = word.removesuffix(suffix)
            return rest + end if _measure(rest) else word
    return word


def _without_end(word: str) -> str:
    for end in _ENDS:
        if word.endswith(end):
            rest = word.removesuffix(end)
            goes = _measure(rest) > 1 and (end != "ion" or rest[-1] in "st")
            return rest if goes else word
    return word
