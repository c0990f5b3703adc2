"""The loss of a batch, projected only where a token is scored.

B rows, T positions, D width, S scored positions.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from dynamics.models.tokens import IGNORE
from dynamics.models.vlm import UnifiedVLM, active_weight
from dynamics.training.objectives import Objective

Task = Literal["idm", "fdp"]


class RowLoss(nn.Module):
    """Sum of an objective's weighted losses over the scored positions of token rows.

    A module, so that DDP and DeepSpeed can wrap it.
    """

    def __init__(self, model: UnifiedVLM, objective: Objective) -> None:
        super().__init__()
        self._objective = objective
        self.network = model.network
        self._model = model
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
        hidden_S1D = self._model.hidden(ids_BT)[scored][:, None]
        labels_S = labels_BT[scored]
        if task == "fdp":
            # Softmax over codes only: the distribution that generation samples from.
            logits = self._model.image_logits(hidden_S1D)[:, 0]
            labels_S = self._code_of[labels_S]  # type: ignore[index]
        else:
            logits = self._model.logits(hidden_S1D)[:, 0]
            logits = logits.index_fill(-1, self._model.image_ids, -torch.inf)
        losses = self._objective.losses(logits, labels_S)
        return (losses if weights_BT is None else losses * weights_BT[scored]).sum()
