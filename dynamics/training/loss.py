"""Cross-entropy of the two tasks, projected only where a token is scored.

B rows, T positions, L codes a frame, S scored positions.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from dynamics.models.tokens import IGNORE
from dynamics.models.vlm import UnifiedVLM

Task = Literal["idm", "fdp"]


def recognition_weights(recognition_BL: Tensor, share: float) -> Tensor:
    """Weight per target code, mean 1 over a frame, [B, L].

    The paper weighs the loss of a code by the squared distance of the pre-quantisation features of
    source and target there, and states no normalisation (arXiv 2506.06006, section 3.3). Ours
    divides by the frame's mean, so that the learning rate keeps its meaning, and mixes with the
    uniform weight: ``share`` 1 is the paper's loss, 0 the plain one.
    """
    mean = recognition_BL.mean(-1, keepdim=True).clamp(min=1e-8)
    return (1 - share) + share * recognition_BL / mean


class RowLoss(nn.Module):
    """Sum of weighted cross-entropies over the scored positions of token rows.

    A module, so that DDP and DeepSpeed can wrap it.
    """

    def __init__(self, model: UnifiedVLM) -> None:
        super().__init__()
        self.network = model.network
        self._model = model
        self.some_unused = model.heads_apart
        """Whether a task may leave trained weights without a gradient."""
        vocabulary = model.logits(model.hidden(torch.tensor([[model.tokens.bos]]))).shape[-1]
        code_of = torch.full((vocabulary,), IGNORE, device=model.device)
        code_of[model.image_ids] = torch.arange(len(model.image_ids), device=model.device)
        self.register_buffer("_code_of", code_of, persistent=False)

    def forward(
        self, ids_BT: Tensor, labels_BT: Tensor, weights_S: Tensor | None, task: Task
    ) -> Tensor:
        """The summed loss; ``weights_S`` follows the scored positions in row order."""
        scored = labels_BT != IGNORE
        hidden_S1D = self._model.hidden(ids_BT)[scored][:, None]
        labels_S = labels_BT[scored]
        if task == "fdp":
            # Softmax over codes only: the distribution that generation samples from.
            logits = self._model.image_logits(hidden_S1D)[:, 0]
            labels_S = self._code_of[labels_S]  # type: ignore[index]
        else:
            logits = self._model.logits(hidden_S1D)[:, 0]
            logits = logits.index_fill(-1, self._model.image_ids, -torch.inf)
        losses = cross_entropy(logits.float(), labels_S, reduction="none")
        return (losses if weights_S is None else losses * weights_S).sum()
