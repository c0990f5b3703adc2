"""The small Chameleon network of a base, its optimisers and its training loop.

A base learns tasks: rows of ids with the ids to predict, drawn anew for every step. What the tasks
are is the caller's, see `dynamics.pretraining.tasks`.

B rows, T positions.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import ChameleonConfig, ChameleonForConditionalGeneration

from dynamics.core.places import Place
from dynamics.core.progress import Losses
from dynamics.core.seeds import derive_seed
from dynamics.models.chameleon import image_token_name
from dynamics.models.tokens import IGNORE, Rows
from dynamics.training.checkpoints import Checkpoints, Part, Saved, load_weights
from dynamics.training.trainable import trainable_parameters

Batches = Callable[[int], Iterator[Mapping[str, Rows]]]
"""The batches from a step on (0 = the first): of every task its rows, by the task's name."""

SNAPSHOT_EVERY = 250
"""Steps between two snapshots."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseRecipe:
    """Sizes of the network and lengths of its training; saved with the checkpoint."""

    width: int = 96
    layers: int = 4
    heads: int = 3
    feed_forward: int = 256
    steps: int = 7_000
    muon_lr: float = 3e-3
    adamw_lr: float = 2e-3
    seed: int = 0


def build_network(
    recipe: BaseRecipe, tokenizer: Any, num_codes: int
) -> ChameleonForConditionalGeneration:
    """The Chameleon class of transformers with a small language model.

    Its own VQGAN must exist, so it gets the smallest one; the checkpoint's FSQ tokenizer makes
    the codes.
    """
    vocabulary = dict(tokenizer.get_vocab())
    first = len(vocabulary)
    vocabulary |= {image_token_name(code): first + code for code in range(num_codes)}
    vq = {
        "embed_dim": 4, "num_embeddings": num_codes, "latent_channels": 4, "resolution": 32,
        "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "attn_type": "none",
    }  # fmt: skip
    config = ChameleonConfig(
        vocab_size=len(vocabulary),
        hidden_size=recipe.width,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=512,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        vq_config=vq,
        vocabulary_map=vocabulary,
    )
    torch.manual_seed(derive_seed(recipe.seed, "base-init"))
    return ChameleonForConditionalGeneration(config)


def row_loss(network: Any, rows: Rows) -> Tensor:
    """Mean cross-entropy over the scored positions, projected there only."""
    hidden = network.model(input_ids=rows.ids, use_cache=False).last_hidden_state
    scored = rows.labels != IGNORE
    return cross_entropy(network.lm_head(hidden[scored]), rows.labels[scored])


def heldout_losses(network: Any, batches: Iterable[Mapping[str, Rows]]) -> dict[str, float]:
    """Mean of `row_loss` over batches that are not trained on, by task."""
    found: dict[str, list[float]] = {}
    with torch.inference_mode():
        for batch in batches:
            for task, rows in batch.items():
                found.setdefault(task, []).append(float(row_loss(network, rows)))
    return {task: sum(losses) / len(losses) for task, losses in found.items()}


def build_optimizers(network: nn.Module, recipe: BaseRecipe) -> list[torch.optim.Optimizer]:
    """Muon for the matrices of the blocks, AdamW for the rest; the unused VQGAN is frozen."""
    matrices, rest = [], []
    for name, parameter in network.named_parameters():
        if ".vqmodel." in name:
            parameter.requires_grad_(False)
        elif parameter.ndim == 2 and ".layers." in name and "_norm" not in name:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    return [
        torch.optim.Muon(
            matrices, lr=recipe.muon_lr, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"
        ),
        torch.optim.AdamW(rest, lr=recipe.adamw_lr, weight_decay=0.0),
    ]


def train_base(
    network: Any, batches: Batches, recipe: BaseRecipe, snapshots: Place | None = None
) -> Iterator[tuple[int, Losses]]:
    """Take the steps up to ``recipe.steps``; yields each step's number and its loss by task.

    A step is over one batch of every task. Two threads compute gradients, each of some of the
    tasks, and their sum does not depend on which thread is first. With a folder for ``snapshots``
    a stopped training goes on from the newest one, and takes the same steps as one that was never
    stopped.
    """
    optimizers = build_optimizers(network, recipe)
    rates = [optimizer.defaults["lr"] for optimizer in optimizers]
    trained = list(trainable_parameters(network).values())
    kept = None if snapshots is None else Checkpoints(snapshots)
    start = 0
    if kept is not None:
        with kept.newest() as saved:
            start = _resume(network, optimizers, saved) if saved else 0
    network.train()

    def gradients(half: Mapping[str, Rows]) -> tuple[Sequence[Tensor], dict[str, float]]:
        torch.set_num_threads(1)
        losses = torch.stack([row_loss(network, rows) for rows in half.values()])
        found = torch.autograd.grad(losses.sum(), trained)
        return found, dict(zip(half, losses.tolist(), strict=True))

    with ThreadPoolExecutor(2) as pool:
        for step, batch in enumerate(islice(batches(start), recipe.steps - start), start):
            parts, losses = zip(*pool.map(gradients, _halves(batch)), strict=True)
            for parameter, *grads in zip(trained, *parts, strict=True):
                parameter.grad = torch.stack(grads).sum(0)
            nn.utils.clip_grad_norm_(trained, 1.0)
            for optimizer, rate in zip(optimizers, rates, strict=True):
                for group in optimizer.param_groups:
                    group["lr"] = rate * _trapezoid(step, recipe.steps)
                optimizer.step()
            done = step + 1
            if kept is not None and (done % SNAPSHOT_EVERY == 0 or done == recipe.steps):
                kept.save(_parts(network, optimizers), done, {"step": done})
            yield done, {task: loss for half in losses for task, loss in half.items()}


def _halves(batch: Mapping[str, Rows]) -> list[dict[str, Rows]]:
    """The tasks in at most two groups of about equally many tokens, the largest task first."""
    groups: list[set[str]] = [set(), set()]
    tokens = [0, 0]
    for task in sorted(batch, key=lambda task: batch[task].ids.numel(), reverse=True):
        lighter = tokens.index(min(tokens))
        groups[lighter].add(task)
        tokens[lighter] += batch[task].ids.numel()
    return [{t: rows for t, rows in batch.items() if t in group} for group in groups if group]


def _trapezoid(step: int, steps: int) -> float:
    """2 % warm-up, constant, then linear to zero over the last 30 %."""
    return min(1.0, (step + 1) / (0.02 * steps + 1), max(0.0, (steps - step) / (0.3 * steps)))


def _parts(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> dict[str, Part]:
    """The trained weights and the optimisers' state, by name."""
    states = {p: state for optimizer in optimizers for p, state in optimizer.state.items()}
    found: dict[str, Part] = {}
    for name, parameter in trainable_parameters(network).items():
        found[f"parameter/{name}"] = Part(parameter.detach())
        for key, value in states[parameter].items():
            found[f"optimizer/{name}/{key}"] = Part(value)
    return found


def _resume(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer], saved: Saved) -> int:
    """Set what `_parts` gave; returns the steps that were taken."""
    load_weights(network, saved)
    names = {parameter: name for name, parameter in trainable_parameters(network).items()}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                prefix = f"optimizer/{names[parameter]}/"
                keys = saved.below(prefix)
                optimizer.state[parameter] = {key: saved.read(prefix + key) for key in keys}
    return int(saved.progress["step"])
