"""Janus and Janus-Pro: transformers' `JanusForConditionalGeneration` (deepseek-community/Janus-*).

A Llama that draws with parts of its own: image codes have an embedding, an aligner and a head
beside those of the words. To the rest of the system they follow the words in one vocabulary, code c
with the id (text rows + c), in the order in which `JanusVLM.logits` puts the two heads together.

Both tasks see frames as codes, so the SigLIP branch with which Janus looks at pictures for
questions is left out: the IDM learns about pictures in fine-tuning.

B rows, T positions, L codes a frame, D feature width.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import JanusConfig, JanusForConditionalGeneration, JanusVQVAE

from dynamics.models.checkpoint import (
    check_model_type,
    check_shapes,
    read_network,
    read_tokenizer,
    read_weights,
    token_id,
)
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.models.image_tokenizers.vq import VqTokenizer
from dynamics.models.tokens import Prompts, Tokens
from dynamics.models.vlm import Head, UnifiedVLM
from dynamics.models.wordings import FDP_WORDINGS, IDM_WORDINGS

PROMPTS = Prompts(
    version="janus-2",
    fdp=tuple(
        f"{{<|User|>}}: {{source}}\n{wording} {{action}}\n\n{{<|Assistant|>}}:"
        for wording in FDP_WORDINGS
    ),
    idm=tuple(
        f"{{<|User|>}}: {{source}}\n{{target}}\n{wording}\n\n{{<|Assistant|>}}:"
        for wording in IDM_WORDINGS
    ),
    action_tokens=40,
)
"""Turns of Janus' own chat template around the texts."""

BACKGROUND = (127, 127, 127)
"""RGB of the bars of Janus' image processor."""
_UNUSED = ("model.vision_model.", "model.aligner.")


def load(base: Path, device: str) -> UnifiedVLM:
    """The unified VLM of a folder; see `dynamics.models.family.Family`."""
    images = load_image_tokenizer(base, device)
    network = read_network(base, JanusForConditionalGeneration, may_lack=_UNUSED)
    # Removed, so that no adapter is put on layers that never run.
    del network.model.vision_model, network.model.aligner
    return JanusVLM(base, network, images, load_tokens(base, images), device)


class JanusVLM(UnifiedVLM):
    """A unified VLM whose image codes have an embedding and a head of their own."""

    vocabulary_layers = (
        *UnifiedVLM.vocabulary_layers,
        "generation_embeddings",
        "generation_aligner",
        "generation_head",
    )
    heads_apart = True

    def _vocabulary_size(self) -> int:
        return super()._vocabulary_size() + len(self.image_ids)

    @property
    def decoder(self) -> Any:
        """The decoder stack, without the vocabulary."""
        return self.causal_lm.model.language_model

    def embed(self, ids_BT: Tensor) -> Tensor:
        """Input vectors of token ids, [B, T, D]."""
        ids, network = ids_BT.to(self.device), self.causal_lm
        codes = ids - self.image_ids[0]
        is_code = codes >= 0
        words = network.get_input_embeddings()(ids.masked_fill(is_code, self.tokens.pad))
        drawn = network.prepare_embeddings_for_image_generation(codes.clamp(min=0))
        return torch.where(is_code[..., None], drawn, words)

    def logits(self, hidden_BTD: Tensor) -> Tensor:
        """Logits of the words, then of the image codes, [B, T, V]."""
        return torch.cat([super().logits(hidden_BTD), self.image_logits(hidden_BTD)], dim=-1)

    def image_head(self, *, packed: bool = False) -> Head:
        """Janus' own head of the codes, two layers, as it is."""
        head: Head = self.causal_lm.model.generation_head
        return head


class _JanusVq(nn.Module):
    """A `dynamics.models.image_tokenizers.vq.VqModel` over transformers' `JanusVQVAE`.

    Janus' codebook (LlamaGen's, with ``codebook_l2_norm``) is searched on the unit sphere.
    `JanusVQVAE.encode` searches without normalising and finds other codes than the model was
    trained on; its decoder does normalise.
    """

    def __init__(self, network: Any) -> None:
        super().__init__()
        self._network = network

    def features(self, pixels_B3HW: Tensor) -> Tensor:
        latents = self._network.quant_conv(self._network.encoder(pixels_B3HW))
        return normalize(latents.flatten(2).transpose(1, 2), dim=-1)

    def codes(self, features_BLD: Tensor) -> Tensor:
        codebook = normalize(self._network.quantize.embedding.weight, dim=-1)
        return (features_BLD @ codebook.T).argmax(-1)

    def pixels(self, codes_BL: Tensor) -> Tensor:
        pixels: Tensor = self._network.decode(codes_BL)
        return pixels


def load_image_tokenizer(base: Path, device: str) -> ImageTokenizer:
    """The VQ model within the checkpoint.

    Raises:
        UserError: another model's folder, or its VQ weights are missing or of other sizes.
    """
    check_model_type(base, "janus")
    config: Any = JanusConfig.from_pretrained(base)
    with torch.device("meta"):
        network: Any = JanusVQVAE(config.vq_config)
    weights = read_weights(base, "model.vqmodel.")
    check_shapes(base, weights, network)
    network.load_state_dict(weights, assign=True)
    side = config.vq_config.num_patches
    return VqTokenizer(
        _JanusVq(network.eval().requires_grad_(False).to(device)),
        frame_px=side * 2 ** (len(config.vq_config.channel_multiplier) - 1),
        num_tokens=side * side,
        num_codes=config.vq_config.num_embeddings,
        bars=BACKGROUND,
        device=device,
    )


def load_tokens(base: Path, images: ImageTokenizer) -> Tokens:
    """The checkpoint's token layouts."""
    tokenizer = read_tokenizer(base)
    config: Any = JanusConfig.from_pretrained(base)
    text_rows: int = config.text_config.vocab_size
    boi, eoi, placeholder = (
        token_id(base, tokenizer, name)
        for name in ("<begin_of_image>", "<end_of_image>", "<image_placeholder>")
    )
    return Tokens(
        tokenizer,
        Prompts.load(base, PROMPTS),
        image_ids=torch.arange(text_rows, text_rows + images.num_codes),
        boi=boi,
        eoi=eoi,
        num_image_tokens=images.num_tokens,
        controls=(placeholder,),
    )
