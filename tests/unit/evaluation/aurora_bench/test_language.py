"""Sentence metrics against sacrebleu itself and by hand."""

import numpy as np
import pytest
from sacrebleu.metrics.bleu import BLEU

from dynamics.evaluation.aurora_bench.language import bleu_statistics, corpus_bleu, rouge_l
from dynamics.evaluation.aurora_bench.stemming import stem

SAID = [
    "move the red cube to the left",
    "the man opens the door slowly",
    "put it down",
    "",
    "nothing alike here at all, sir",
]
WANTED = [
    "Move the red cube to the right",
    "The man opens the door",
    "Put it down.",
    "close the box",
    "Flip the bottle upside down",
]


def ours(said, wanted) -> float:
    rows = [bleu_statistics(s, w) for s, w in zip(said, wanted, strict=True)]
    return float(corpus_bleu(np.mean(rows, axis=0)[None], len(rows))[0])


@pytest.mark.parametrize("part", [slice(0, 5), slice(0, 2), slice(2, 3), slice(3, 5), slice(4, 5)])
def test_bleu_of_a_corpus_is_sacrebleus(part):
    said, wanted = SAID[part], WANTED[part]
    theirs = BLEU(lowercase=True).corpus_score(said, [wanted]).score / 100
    assert ours(said, wanted) == pytest.approx(theirs, abs=1e-9)


def test_bleu_of_the_same_sentences_is_one_whatever_their_case():
    assert ours([w.upper() for w in WANTED], WANTED) == pytest.approx(1)


def test_bleu_of_nothing_said_is_zero():
    assert ours(["", ""], WANTED[:2]) == 0


def test_stems_are_those_of_rouge_score():
    words = "caresses flies dying agreed hopping sized falling generalizations radically geology"
    stems = "caress fli die agre hop size fall gener radic geolog"
    assert [stem(word) for word in words.split()] == stems.split()
    assert [stem(word) for word in ("put", "controlling", "enjoy", "happily")] == [
        "put", "control", "enjoy", "happili",
    ]  # fmt: skip


def test_rouge_l_of_stems_does_not_see_the_form_of_a_word():
    assert rouge_l("moving the boxes", "moved the box") == pytest.approx(1 / 3)
    assert rouge_l("moving the boxes", "moved the box", stemmed=True) == 1


def test_rouge_l_by_hand():
    # 4 words in common and in order; 5 said, 6 wanted.
    assert rouge_l("put a red cube down", "Put the red cube far down!") == pytest.approx(8 / 11)
    assert rouge_l("down put", "put down") == pytest.approx(0.5)
    assert rouge_l("same words", "Same, words.") == 1
    assert rouge_l("", "words") == rouge_l("words", "") == rouge_l("a", "b") == 0
