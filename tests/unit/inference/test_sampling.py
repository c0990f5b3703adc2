import pytest

from dynamics.core.errors import UserError
from dynamics.inference.sampling import GREEDY, SamplingParams


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples must be at least 1"),
        ({"temperature": -0.1}, "temperature must be 0 or above"),
        ({"temperature": float("inf")}, "temperature must be 0 or above and finite"),
        ({"temperature": float("nan")}, "temperature must be 0 or above and finite"),
        ({"num_samples": 4}, "4 samples need a temperature above 0"),
        ({"max_tokens": 0}, "max_tokens must be at least 1"),
        ({"temperature": 1.0, "top_k": 0}, "top_k must be at least 1"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p must be above 0 and at most 1"),
        ({"top_p": 0.9}, "top_k, top_p and min_p need a temperature above 0"),
        ({"temperature": 1.0, "min_p": 1.5}, "min_p must be from 0 to 1"),
        ({"guidance": -1.0}, "guidance must be 0 or above"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        SamplingParams(**options)


def test_the_default_is_greedy_and_has_nothing_changed():
    assert SamplingParams() == GREEDY
    assert GREEDY.changed() == {}
    assert SamplingParams(num_samples=2, temperature=0.5).changed() == {
        "num_samples": 2,
        "temperature": 0.5,
    }
