"""The part of a model that a fit trains."""

import re
from collections.abc import Sequence

import torch
from peft import LoraConfig as PeftLoraConfig
from peft import PeftModel, get_peft_model
from torch import nn

from dynamics.core.config import LoraConfig
from dynamics.core.seeds import derive_seed
from dynamics.models import load_model
from dynamics.models.checkpoint import check_adapter
from dynamics.models.stack import Stack, has_stack
from dynamics.models.vlm import UnifiedVLM
from dynamics.storage.files import local_copy
from dynamics.training.batches import FitJob

_IMAGE_TOKENIZER = re.compile(r"\bvqmodel\.")
LINEAR_LAYERS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def trainable_model(job: FitJob) -> UnifiedVLM:
    """The base, with a LoRA adapter (fresh or from an earlier fit) or every weight trainable."""
    if job.train.method == "full":
        model = load_model(job.family, job.init_from or job.base, job.device)
        train_all(model.network)
    else:
        model = load_model(job.family, job.base, job.device)
        _attach_adapter(model, job)
    model.network.train()
    if job.train.gradient_checkpointing:
        model.network.gradient_checkpointing_enable({"use_reentrant": False})
    return model


def train_all(network: nn.Module) -> None:
    """Make every weight trainable but those of the image tokenizer."""
    for name, parameter in network.named_parameters():
        parameter.requires_grad_(not _IMAGE_TOKENIZER.search(name))


def adapter_config(
    lora: LoraConfig, vocabulary_layers: Sequence[str] = UnifiedVLM.vocabulary_layers
) -> PeftLoraConfig:
    """A fresh adapter: on every linear layer of the decoder, embeddings and heads where asked."""
    return PeftLoraConfig(
        r=lora.r,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=LINEAR_LAYERS,
        modules_to_save=list(vocabulary_layers) if lora.train_embeddings else None,
    )


def _attach_adapter(model: UnifiedVLM, job: FitJob) -> None:
    torch.manual_seed(derive_seed(job.seed, "init"))
    if job.init_from is not None:
        adapter = local_copy(job.init_from)
        check_adapter(adapter)
        network = PeftModel.from_pretrained(model.network, str(adapter), is_trainable=True)
    else:
        config = adapter_config(job.train.lora, model.vocabulary_layers)
        network = get_peft_model(model.network, config)
    # A name, not a path: an adapter's files must not depend on where the run lies.
    network.peft_config["default"].base_model_name_or_path = job.base.name
    model.network = network


def stack_of(job: FitJob, model: UnifiedVLM) -> Stack | None:
    """The decoder with merged LoRA products; None where its own layers have to run.

    These are a fit of every weight, weights that are whole only while their layer runs (FSDP2,
    DeepSpeed), recomputed activations, mixed precision, and what `has_stack` refuses.
    """
    train = job.train
    whole = train.strategy == "ddp" and not train.gradient_checkpointing
    if train.method == "lora" and whole and train.precision == "float32":
        return Stack(model.decoder, "default") if has_stack(model.decoder) else None
    return None


def trainable_parameters(network: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that a fit trains, by name, in the network's order."""
    return {name: p for name, p in network.named_parameters() if p.requires_grad}
