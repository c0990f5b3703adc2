"""From a `ModelRef` to the two models on one base."""

import hashlib
from pathlib import Path

from dynamics.generation.fdp import ForwardDynamics
from dynamics.labelling.idm import InverseDynamics
from dynamics.models import load_model
from dynamics.models.chameleon import checkpoint_digest
from dynamics.records import ModelRef


def adapter_digest(base: Path, adapter: Path) -> str:
    """sha256 over base and adapter files: what decides the model's output."""
    return hashlib.sha256(
        (checkpoint_digest(base) + checkpoint_digest(adapter)).encode()
    ).hexdigest()


def model_ref(base: Path, idm: Path, fdp: Path) -> ModelRef:
    """Reference to a round's two adapters, with digests."""
    return ModelRef(
        base=base,
        idm=idm,
        fdp=fdp,
        idm_digest=adapter_digest(base, idm),
        fdp_digest=adapter_digest(base, fdp),
    )


def load_idm(ref: ModelRef, family: str, device: str = "cpu") -> InverseDynamics:
    """The IDM alone."""
    model = load_model(family, ref.base, device)
    model.load_adapter("idm", ref.idm)
    return InverseDynamics(model, ref.idm_digest)


def load_fdp(ref: ModelRef, family: str, device: str = "cpu") -> ForwardDynamics:
    """The FDP alone."""
    model = load_model(family, ref.base, device)
    model.load_adapter("fdp", ref.fdp)
    return ForwardDynamics(model, ref.fdp_digest)


def load_pair(
    ref: ModelRef, family: str, device: str = "cpu"
) -> tuple[InverseDynamics, ForwardDynamics]:
    """Both adapters on one base in memory."""
    model = load_model(family, ref.base, device)
    model.load_adapter("idm", ref.idm)
    model.load_adapter("fdp", ref.fdp)
    return InverseDynamics(model, ref.idm_digest), ForwardDynamics(model, ref.fdp_digest)
