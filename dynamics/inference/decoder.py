"""The interface of a decoding engine, and the engines that ``model.decoder`` may name.

B prompts of T tokens, N samples a prompt, L codes a frame.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from dynamics.inference.sampling import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

    from dynamics.models.image_tokenizer import ImageTokenizer
    from dynamics.models.tokens import Tokens

DECODERS: dict[str, str] = {
    "dynamic_cache": "dynamics.inference.decode:DynamicCacheDecoder",
    "shared_prefix": "dynamics.inference.shared_prefix:SharedPrefixDecoder",
    "captured": "dynamics.inference.captured:CapturedDecoder",
    "steady": "dynamics.inference.steady:steady",
}
"""Engine name to its class, as import strings so that configuration loads without torch. It is
called with a `UnifiedVLM` and the name of the adapter to decode with."""


@dataclass(frozen=True, slots=True)
class DecodedText:
    """Generated ids and their natural-log probabilities, end token included when it came."""

    ids: list[int]
    logprobs: list[float]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Sampled frames."""

    codes: NDArray[np.int64]
    """[B, N, L]."""
    logprobs: NDArray[np.float64]
    """[B, N]: sum of log p(codes | prompt), at temperature 1 and without guidance."""
    drawn_logprobs: NDArray[np.float64]
    """[B, N]: sum of log q(codes), where q is the distribution that they were drawn from, at the
    temperature, guided, and cut by top k and the like; 0 for greedy ones."""

    def __getitem__(self, index: Any) -> "Candidates":
        """Those at an index of [B, N]."""
        return Candidates(self.codes[index], self.logprobs[index], self.drawn_logprobs[index])


class Decoder(Protocol):
    """One adapter of a model, ready to sample and to score.

    Batches of any size are welcome: an engine splits them itself, and a row's sample depends on
    its own prompt and seed only. ``seeds`` holds one number per prompt; greedy needs none.
    Log-probabilities are natural, at temperature 1, text over the vocabulary without image codes,
    codes over the codes alone.
    """

    tokens: "Tokens"
    """Layouts of the prompts."""
    images: "ImageTokenizer"
    """Frames to codes and back."""

    def sample_text(
        self, prompt_BT: "Tensor", sampling: SamplingParams, seeds: Sequence[int]
    ) -> list[list[DecodedText]]:
        """N texts per prompt."""

    def sample_codes(
        self,
        prompt_BT: "Tensor",
        sampling: SamplingParams,
        seeds: Sequence[int],
        plain_BT: "Tensor | None" = None,
    ) -> Candidates:
        """N frames per prompt; ``plain_BT``, the prompts without actions, where guidance acts."""

    def score_text(
        self, prompt_BT: "Tensor", texts: Sequence[Sequence[int]]
    ) -> NDArray[np.float64]:
        """Sum of log p over the ids of each prompt's text, [B]."""

    def score_codes(self, prompt_BT: "Tensor", codes_BL: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of log p over the codes of each prompt's frame, [B]."""


class Prompted(NamedTuple):
    """Prompts that come together, as `Decoder.sample_codes` takes them."""

    prompts: "Tensor"
    """[B, T]."""
    seeds: Sequence[int]
    plain: "Tensor | None"
    """[B, T]."""


@runtime_checkable
class JoiningDecoder(Decoder, Protocol):
    """Engine in which prompts join others between two steps, with the results they have alone."""

    def sample_codes_of(
        self, more: Callable[[], Prompted | None], sampling: SamplingParams
    ) -> Iterator[Candidates]:
        """N frames per prompt, for what ``more`` returns, in that order, until nothing is left.

        ``more`` is asked between steps, not before each; None means that nothing waits.
        """
