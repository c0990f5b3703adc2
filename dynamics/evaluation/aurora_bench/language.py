"""Closeness of an action sentence to the reference: BLEU, ROUGE-L.

Both ignore case: an IDM's vocabulary may be lower case only. R resamples.
"""

import re
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics.bleu import BLEU

from dynamics.evaluation.aurora_bench.stemming import stem

ORDER = 4
"""Longest n-gram of BLEU."""

_WORD = re.compile(r"[a-z0-9]+")


@lru_cache(maxsize=1)
def _bleu() -> BLEU:
    return BLEU(lowercase=True, effective_order=True)


def bleu_statistics(said: str, reference: str) -> list[float]:
    """Statistics of a sentence for corpus BLEU: ORDER matches, ORDER n-grams, both lengths.

    sacrebleu's tokenizer "13a". Corpus BLEU is a function of the mean of these, so that its
    interval can be bootstrapped over items.
    """
    score = _bleu().sentence_score(said, [reference])
    return [*map(float, score.counts), *map(float, score.totals), score.sys_len, score.ref_len]


def corpus_bleu(means_RK: NDArray[np.float64], num_items: int) -> NDArray[np.float64]:
    """BLEU-4 in 0..1 of corpora given by the means of their sentences' statistics.

    Equals sacrebleu's corpus BLEU (lower case, its default "exp" smoothing of orders without a
    match) for a corpus of ``num_items`` sentences.
    """
    sums_RK = means_RK * num_items
    matches, totals = sums_RK[:, :ORDER], sums_RK[:, ORDER : 2 * ORDER]
    said, wanted = sums_RK[:, 2 * ORDER], sums_RK[:, 2 * ORDER + 1]
    # The k-th order without a match counts as 1 / 2^k matches.
    halvings = 0.5 ** np.cumsum(matches == 0, axis=1)
    smoothed = np.where(matches > 0, matches, halvings)
    with np.errstate(divide="ignore", invalid="ignore"):
        log_precision = np.log(smoothed / totals).mean(axis=1)
        brevity = np.minimum(0.0, 1 - wanted / said)
        scores = np.exp(log_precision + brevity)
    # Nothing said, nothing matched, or no sentence of four words: sacrebleu's 0, too.
    worthless = (matches == 0).all(axis=1) | (totals == 0).any(axis=1) | (said == 0)
    found: NDArray[np.float64] = np.where(worthless, 0.0, scores)
    return found


def rouge_l(said: str, reference: str, *, stemmed: bool = False) -> float:
    """ROUGE-L F1 (Lin 2004) over lower-case words and numbers, or over their stems; 0..1."""
    one, other = _WORD.findall(said.lower()), _WORD.findall(reference.lower())
    if stemmed:
        one, other = [stem(word) for word in one], [stem(word) for word in other]
    common = _longest_common(one, other)
    return 2 * common / (len(one) + len(other)) if common else 0.0


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    row = [0] * (len(other) + 1)
    for word in one:
        previous = row
        row = [0]
        for position, candidate in enumerate(other):
            row.append(
                previous[position] + 1
                if word == candidate
                else max(previous[position + 1], row[position])
            )
    return row[-1]
