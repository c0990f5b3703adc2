"""Cross-entropy (negative log-likelihood), the codes of a frame by the paper's recognition weights.

B rows, T positions, L codes a frame, S scored positions, V answers that the task allows.
"""

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from dynamics.core.config import TrainConfig
from dynamics.models.tokens import IGNORE, Rows
from dynamics.training.batches import Batch
from dynamics.training.loss import Task


def weights(batch: Batch, rows: Rows, task: Task, train: TrainConfig) -> Tensor | None:
    """See `Objective.weights`; None for action sentences and without recognition weights."""
    share = train.recognition_weight
    if task == "idm" or not share:
        return None
    recognition_BL = torch.from_numpy(batch.recognition)
    weights_BT = torch.zeros(rows.labels.shape)
    weights_BT[rows.labels != IGNORE] = recognition_weights(recognition_BL, share).flatten()
    return weights_BT


def losses(logits_SV: Tensor, labels_S: Tensor) -> Tensor:
    """See `Objective.losses`."""
    return cross_entropy(logits_SV.float(), labels_S, reduction="none")


def recognition_weights(recognition_BL: Tensor, share: float) -> Tensor:
    """Weight per target code, mean 1 over a frame, [B, L].

    The paper weighs the loss of a code by the squared distance of the pre-quantisation features of
    source and target there, and states no normalisation (arXiv 2506.06006, section 3.3). Ours
    divides by the frame's mean, so that the learning rate keeps its meaning, and mixes with the
    uniform weight: ``share`` 1 is the paper's loss, 0 the plain one.
    """
    mean = recognition_BL.mean(-1, keepdim=True).clamp(min=1e-8)
    return (1 - share) + share * recognition_BL / mean
