"""Loading of the IDM and the FDP that a `ModelRef` names."""

from dynamics.core.config import ModelConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.records import ModelRef
from dynamics.core.registry import imported
from dynamics.inference.decoder import DECODERS, Decoder
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics
from dynamics.models import load_model
from dynamics.models.checkpoint import is_checkpoint
from dynamics.models.stack import has_stack
from dynamics.models.vlm import AdapterName, UnifiedVLM
from dynamics.storage.files import adapter_digest, local_copy


def model_ref(base: Place, idm: Place, fdp: Place) -> ModelRef:
    """Reference to a round's two adapters, with digests."""
    return ModelRef(
        base=base,
        idm=idm,
        fdp=fdp,
        idm_digest=adapter_digest(base, idm),
        fdp_digest=adapter_digest(base, fdp),
    )


def check_bytes(ref: ModelRef) -> None:
    """Compare adapters and base with the digests that were recorded when they were made.

    Raises:
        UserError: they differ from those that were evaluated.
    """
    _check(ref.base, ref.idm, ref.idm_digest)
    _check(ref.base, ref.fdp, ref.fdp_digest)


def _check(base: Place, fitted: Place, digest: str) -> None:
    if not fitted.is_dir() or adapter_digest(base, fitted) != digest:
        shown = f"{fitted.parent.name}/{fitted.name}"
        raise UserError(
            f"{shown} is not what its report names: it or {base} is damaged or replaced; "
            "restore it from a copy"
        )


def load_idm(ref: ModelRef, model: ModelConfig) -> InverseDynamics:
    """The IDM alone; raises UserError as `check_bytes`."""
    _check(ref.base, ref.idm, ref.idm_digest)
    return InverseDynamics(_load(ref.base, ref.idm, "idm", model), ref.idm_digest)


def load_fdp(ref: ModelRef, model: ModelConfig) -> ForwardDynamics:
    """The FDP alone; raises UserError as `check_bytes`."""
    _check(ref.base, ref.fdp, ref.fdp_digest)
    return ForwardDynamics(_load(ref.base, ref.fdp, "fdp", model), ref.fdp_digest)


def load_pair(ref: ModelRef, model: ModelConfig) -> tuple[InverseDynamics, ForwardDynamics]:
    """Both models: each merged into a base of its own, or two adapters on one base in memory."""
    if model.merge_adapters or is_checkpoint(ref.idm) or is_checkpoint(ref.fdp):
        return load_idm(ref, model), load_fdp(ref, model)
    check_bytes(ref)
    shared = load_model(model.family, ref.base, model.device)
    shared.load_adapter("idm", local_copy(ref.idm))
    shared.load_adapter("fdp", local_copy(ref.fdp))
    return _pair(shared, model, ref.idm_digest, ref.fdp_digest)


def load_bare(model: ModelConfig, digest: str) -> tuple[InverseDynamics, ForwardDynamics]:
    """The base of ``model`` without adapters, as both models; ``digest`` is the checkpoint's."""
    return _pair(load_model(model.family, model.base, model.device), model, digest, digest)


def _load(base: Place, fitted: Place, name: AdapterName, model: ModelConfig) -> Decoder:
    if is_checkpoint(fitted):
        return _decoder(load_model(model.family, fitted, model.device), name, model)
    loaded = load_model(model.family, base, model.device)
    loaded.load_adapter(name, local_copy(fitted))
    if model.merge_adapters:
        loaded.merge_adapter()
    return _decoder(loaded, name, model)


def _pair(
    shared: UnifiedVLM, model: ModelConfig, idm_digest: str, fdp_digest: str
) -> tuple[InverseDynamics, ForwardDynamics]:
    idm, fdp = _decoder(shared, "idm", model), _decoder(shared, "fdp", model)
    return InverseDynamics(idm, idm_digest), ForwardDynamics(fdp, fdp_digest)


def _decoder(loaded: UnifiedVLM, name: AdapterName, model: ModelConfig) -> Decoder:
    engine = model.decoder or ("shared_prefix" if has_stack(loaded.decoder) else "dynamic_cache")
    decoder: Decoder = imported(DECODERS[engine])(loaded, name)
    return decoder
