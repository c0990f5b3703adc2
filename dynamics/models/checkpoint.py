"""Readers of checkpoint folders: only safetensors and JSON, so nothing in them is executed."""

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import PreTrainedModel, TokenizersBackend

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.pointers import HEAD_BYTES
from dynamics.core.text_files import check_no_pointers, check_pointer, read_json_object

CONFIG_FILE = "config.json"
LOAD_ERRORS = (
    OSError, RuntimeError, ValueError, KeyError, TypeError, AttributeError, SafetensorError,
)  # fmt: skip
"""What libraries raise for damaged files of a checkpoint."""
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"


def check_model_type(base: Path, expected: str) -> None:
    """Refuse a folder without a config, or with another model's.

    Raises:
        UserError: with the model that is there.
    """
    if not (base / CONFIG_FILE).is_file():
        raise UserError(
            f"{base} is not a checkpoint folder ({CONFIG_FILE} is missing); dynamics pretrain "
            "CONFIG makes one from your own clips"
        )
    found = read_json_object(base / CONFIG_FILE).get("model_type")
    if found != expected:
        raise UserError(
            f"{base} holds a {found} model, expected {expected}; set model.family or model.base "
            "(of ingest: --family, --base)"
        )


def read_network(
    base: Path, network_class: type[PreTrainedModel], may_lack: tuple[str, ...] = ()
) -> Any:
    """The network of a checkpoint folder with every weight from its files, in their own precision.

    ``may_lack`` names parts (prefixes) that the caller does not use.

    Raises:
        UserError: weights are missing, damaged, or of other shapes than the config says.
    """
    check_index(base)
    check_no_pointers(base)
    try:
        loader: Any = network_class  # its types do not know output_loading_info
        network, info = loader.from_pretrained(
            base, use_safetensors=True, dtype="auto", output_loading_info=True
        )
    except LOAD_ERRORS as error:
        raise UserError(f"{base} cannot be loaded: {first_line(error)}") from error
    lacking = sorted(name for name in info["missing_keys"] if not name.startswith(may_lack))
    if lacking:
        raise UserError(f"{base} lacks {lacking[0]} and {len(lacking) - 1} more weights")
    return network


def first_line(error: Exception) -> str:
    """The first line of what an error says, or its class."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def read_weights(base: Path, prefix: str) -> dict[str, Tensor]:
    """The tensors whose names start with ``prefix``, by the rest of their names, as float32.

    Reads only these, from one file or from shards; empty when there are none.

    Raises:
        UserError: a file is missing or damaged, or the index points out of the folder.
    """
    tensors: dict[str, Tensor] = {}
    for shard in _shards(base, prefix):
        tensors |= read_tensors(base / shard, prefix)
    return tensors


def read_tensors(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """As `read_weights`, from one safetensors file."""
    try:
        with path.open("rb") as stream:
            check_pointer(path, stream.read(HEAD_BYTES))
        with safe_open(path, "pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
            return {name.removeprefix(prefix): file.get_tensor(name).float() for name in names}
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} cannot be read: {first_line(error)}") from error


def _shards(base: Path, prefix: str) -> list[str]:
    # The order of transformers, which leaves an old index beside a new single file.
    weight_map = check_index(base)
    if (base / _SINGLE).is_file() or not weight_map:
        return [_SINGLE]
    return sorted({file for name, file in weight_map.items() if name.startswith(prefix)})


def check_index(base: Path) -> dict[str, str]:
    """The file of every weight, by the folder's index; empty without one.

    Raises:
        UserError: it is no index, or names what is no safetensors file of the folder: anything else
            would be read as a pickle. Or the folder is an adapter as well: transformers would
            follow its config to another base.
    """
    if (base / "adapter_config.json").exists():
        raise UserError(f"{base} holds adapter_config.json, so its weights are another folder's")
    path = base / _INDEX
    if not path.is_file():
        return {}
    try:
        weight_map: dict[str, str] = dict(read_json_object(path)["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is no index of weights ({first_line(error)})") from error
    for file in weight_map.values():
        if not isinstance(file, str) or Path(file).name != file:
            raise UserError(f"{path} points out of its folder: {file!r}")
        if Path(file).suffix != ".safetensors":
            raise UserError(f"{path} names {file!r}; only safetensors are read, convert it")
    return weight_map


def check_adapter(folder: Path) -> None:
    """Refuse an adapter that peft would read as a pickle, or with more than LoRA's own code.

    Raises:
        UserError: with what is wrong.
    """
    path = folder / "adapter_config.json"
    if not path.is_file():
        raise UserError(f"{folder} holds no peft adapter ({path.name} is missing)")
    if not (folder / "adapter_model.safetensors").is_file():
        raise UserError(
            f"{folder} lacks adapter_model.safetensors; other files (.bin, .pt) are not read, "
            "since loading a pickle runs code"
        )
    check_no_pointers(folder)
    config = read_json_object(path)
    kind, module = config.get("peft_type"), config.get("megatron_config")
    if kind != "LORA" or module:
        raise UserError(f"{path} is no plain LoRA adapter (peft_type {kind})")


def check_shapes(source: Path, found: dict[str, Tensor], expected: torch.nn.Module) -> None:
    """Refuse tensors that are not exactly the parameters of a module.

    Raises:
        UserError: one line with the first difference: another shape, a missing or a strange name.
    """
    wanted = {name: tensor.shape for name, tensor in expected.state_dict().items()}
    for name in sorted(wanted.keys() & found.keys(), key=lambda name: "quantize" not in name):
        if found[name].shape != wanted[name]:
            raise UserError(
                f"{source} is another VQGAN: {name} is {_times(found[name].shape)}, "
                f"expected {_times(wanted[name])}"
            )
    for verb, names in (
        ("lacks", wanted.keys() - found.keys()),
        ("has unknown", found.keys() - wanted.keys()),
    ):
        if names:
            raise UserError(
                f"{source} is another VQGAN: {verb} {min(names)} and {len(names) - 1} more weights"
            )


def _times(shape: torch.Size) -> str:
    return " x ".join(map(str, shape))


def read_tokenizer(base: Path) -> Any:
    """The text tokenizer exactly as ``tokenizer.json`` describes it.

    Not through `AutoTokenizer`: for some published folders it rebuilds the text processing of the
    class that they name (Llama's), and Chameleon's differs from it.

    Raises:
        UserError: there is no tokenizer.json, or it lacks an end or padding token.
    """
    if not (base / "tokenizer.json").is_file():
        raise UserError(f"{base} has no tokenizer.json")
    check_no_pointers(base)
    try:
        tokenizer: Any = TokenizersBackend.from_pretrained(base)
    except Exception as error:  # what tokenizers raises has no class of its own
        raise UserError(f"the tokenizer of {base} cannot be read: {first_line(error)}") from error
    for role in ("bos_token", "eos_token", "pad_token"):
        if getattr(tokenizer, role) is None:
            raise UserError(f"{base}/tokenizer_config.json names no {role}")
    return tokenizer


def token_id(base: Path, tokenizer: Any, name: str) -> int:
    """The id of a control token.

    Raises:
        UserError: the tokenizer does not have it.
    """
    found = tokenizer.get_vocab().get(name)
    if found is None:
        raise UserError(f"the tokenizer of {base} has no token {name}; is it another model's?")
    return int(found)


def is_checkpoint(folder: Place) -> bool:
    """True for a whole checkpoint (``train.method`` full), False for an adapter."""
    return (folder / CONFIG_FILE).is_file()
