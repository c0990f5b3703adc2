"""Hostile texts of a model, a data set or a file name: markup, controls, formulas, tokens."""

import random
from collections.abc import Iterator

_PARTS = (
    "<script>alert(1)</script>", "</td></table>", "<img src=x onerror=alert(1)>", "&lt;", "&#x3c;",
    "\"'`", "{{ 7 * 7 }}", "{% raw %}", '=HYPERLINK("http://x")', "+1", "@SUM(A1)", "[red]",
    "[link=http://x]", "\x1b[31m", "\x1b]8;;http://x\x07", "\n", "\r", "\x00", "\x85", "\u2028",
    "\u202e", "\u200f", "\ufeff", "\U0001f600", "<image>", "<bos>", "<eoss>", "<racm3:break>",
    "IMGIMGAAAZ", "<s>", "</s>", "<pad>", "<reserved08706>", "%s", "${HOME}", "$(id)", "../../",
    "push the ring", "\\u003cb\\u003e", "]]>", "<!--",
)  # fmt: skip


def hostile_texts(number: int, seed: int = 0) -> Iterator[str]:
    """Random sequences of such parts and of single letters of any plane."""
    rng = random.Random(seed)
    for _ in range(number):
        letters = [chr(rng.choice((rng.randrange(256), rng.randrange(0xD800)))) for _ in range(3)]
        yield "".join(rng.choices([*_PARTS, *letters], k=rng.randint(1, 8)))
