"""Interface of a model family: a module with the three functions of `Family`.

`Family.load` returns a `dynamics.models.vlm.UnifiedVLM`, which holds

- ``images``: an `ImageTokenizer`, frames to codes and back;
- ``tokens``: a `dynamics.models.tokens.Tokens`, texts and codes to rows of vocabulary ids, by the
  checkpoint's own vocabulary and prompts;
- ``hidden``, ``logits``, ``image_logits``: the language model, without any mask over image ids.

Everything else (adapters, decoding, training, labelling, serving) is written once, over these.

B rows, L codes a frame, H = W = frame pixels, D feature width, T tokens, V vocabulary.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from dynamics.models.image_tokenizer import ImageTokenizer
    from dynamics.models.tokens import Tokens
    from dynamics.models.vlm import UnifiedVLM


class Family(Protocol):
    """A module of `dynamics.models.FAMILIES`."""

    def load(self, base: Path, device: str) -> "UnifiedVLM":
        """The unified VLM of a checkpoint folder in the Hugging Face layout.

        Raises:
            UserError: the folder is missing, incomplete, or holds another model.
        """

    def load_image_tokenizer(self, base: Path, device: str) -> "ImageTokenizer":
        """The image tokenizer of a checkpoint folder, without its language model.

        Raises:
            UserError: as `load`.
        """

    def load_tokens(self, base: Path, images: "ImageTokenizer") -> "Tokens":
        """The token layouts of a checkpoint folder, without its language model.

        Raises:
            UserError: as `load`.
        """
