"""The loss of a batch, projected only where a token is scored.

B rows, T positions, D width, S scored positions.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dynamics.models.stack import Stack
from dynamics.models.tokens import IGNORE
from dynamics.models.vlm import Head, UnifiedVLM, active_weight
from dynamics.training.objectives import Objective

Task = Literal["idm", "fdp"]


class RowLoss(nn.Module):
    """Sum of an objective's weighted losses over the scored positions of token rows.

    A module, so that DDP and DeepSpeed can wrap it.

    Args:
        model: the network to train.
        objective: gives the loss of a token.
        stack: computes the decoder in place of its own layers.
    """

    def __init__(self, model: UnifiedVLM, objective: Objective, stack: Stack | None = None) -> None:
        super().__init__()
        self._objective = objective
        self.network = model.network
        self._model, self._stack = model, stack
        self._frozen_head: Head | None = None
        self.some_unused = model.heads_apart
        """True when a task may leave trained weights without a gradient."""
        vocabulary = model.logits(model.hidden(torch.tensor([[model.tokens.bos]]))).shape[-1]
        code_of = torch.full((vocabulary,), IGNORE, device=model.device)
        code_of[model.image_ids] = torch.arange(len(model.image_ids), device=model.device)
        self.register_buffer("_code_of", code_of, persistent=False)

    @property
    def head(self) -> Tensor:
        """Weight that the loss may read without calling its layer."""
        return active_weight(self._model.causal_lm.lm_head)

    def forward(
        self, ids_BT: Tensor, labels_BT: Tensor, weights_BT: Tensor | None, task: Task
    ) -> Tensor:
        """The summed loss; None = every scored token counts alike."""
        scored = labels_BT != IGNORE
        hidden_S1D = self._hidden(ids_BT, scored)[:, None]
        labels_S = labels_BT[scored]
        if task == "fdp":
            # Softmax over codes only: the distribution that generation samples from.
            logits = self._image_head()(hidden_S1D)[:, 0]
            labels_S = self._code_of[labels_S]  # type: ignore[index]
        else:
            logits = self._model.logits(hidden_S1D)[:, 0]
            logits = logits.index_fill(-1, self._model.image_ids, -torch.inf)
        losses = self._objective.losses(logits, labels_S)
        return (losses if weights_BT is None else losses * weights_BT[scored]).sum()

    def _hidden(self, ids_BT: Tensor, scored_BT: Tensor) -> Tensor:
        if self._stack is None:
            return self._model.hidden(ids_BT)[scored_BT]
        return self._stack(self._model.embed(ids_BT), scored_BT.flatten().nonzero()[:, 0])

    def _image_head(self) -> Head:
        """Laid out anew at every step only where it is trained."""
        if self.head.requires_grad:
            return self._model.image_head()
        if self._frozen_head is None:
            self._frozen_head = self._model.image_head()
        return self._frozen_head
