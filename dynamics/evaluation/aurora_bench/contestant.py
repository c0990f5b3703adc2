"""Contestants: a run's round, a checkpoint, the shipped tiny base, or a plain copy."""

from dataclasses import dataclass
from pathlib import Path

from dynamics.core.config import Device, LoopConfig, ModelConfig, VerifierName
from dynamics.core.errors import UserError
from dynamics.core.records import ModelRef, stable_hash
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics
from dynamics.inference.load import load_bare, load_pair, model_ref
from dynamics.models import FAMILIES
from dynamics.storage.files import checkpoint_digest
from dynamics.storage.run_folder import RunFolder

COPY = "copy"
"""The contestant that gives its source back: the baseline of every metric."""
TINY = "tiny"


@dataclass(frozen=True, slots=True, kw_only=True)
class Contestant:
    """A pair of models that can be loaded anywhere, or the copy."""

    name: str
    """For people, e.g. ``runs/tabletop, round 3``."""
    model: ModelConfig | None
    """None: the copy, which needs no model."""
    adapters: ModelRef | None
    """None: the checkpoint itself is asked, for both tasks."""
    verifier: VerifierName
    """Chooses among N candidates."""
    digest: str
    """Over all weights, tokenizer and prompts."""

    def load(self) -> tuple[InverseDynamics, ForwardDynamics]:
        """Both models; a bare checkpoint plays both parts.

        Raises:
            ValueError: the copy has no models.
        """
        if self.model is None:
            raise ValueError("the copy baseline has no models to load")
        if self.adapters is not None:
            return load_pair(self.adapters, self.model)
        return load_bare(self.model, self.digest)


def contestant(name: str, *, round_id: int | None, family: str, device: Device) -> Contestant:
    """Contestant by name: a run folder, a checkpoint folder, ``tiny`` or ``copy``.

    Args:
        name: the words win over folders of the same name; write ``./tiny`` for the folder.
        round_id: of a run; None takes the last promoted one.
        family: of a bare checkpoint; a run knows its own.
        device: where the models compute.

    Raises:
        UserError: nothing of that kind lies there, or the run has no such round.
    """
    default = LoopConfig()
    verifier = default.serve.verifier
    if name == COPY:
        return Contestant(name=COPY, model=None, adapters=None, verifier=verifier, digest=COPY)
    folder = default.base_path() if name == TINY else Path(name)
    run = RunFolder(folder.resolve())
    if run.record.is_file():
        return _of_run(run, name, round_id, device)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"--model {name} is no run folder (run.json) and no checkpoint folder (config.json); "
            f"name one of these, {TINY} or {COPY}"
        )
    if round_id is not None:
        raise UserError(f"--round is for a run folder, and --model {name} is a checkpoint")
    if family not in FAMILIES:
        raise UserError(f"--family {family} is unknown; known: {', '.join(FAMILIES)}")
    model = ModelConfig.model_validate(
        {**default.model.model_dump(), "family": family, "base": folder.resolve(), "device": device}
    )
    digest = checkpoint_digest(folder)
    return Contestant(name=name, model=model, adapters=None, verifier=verifier, digest=digest)


def _of_run(folder: RunFolder, name: str, round_id: int | None, device: Device) -> Contestant:
    cfg = folder.config()
    promoted = [report for report in folder.reports(cfg.rounds) if report.promoted]
    wanted = [r for r in promoted if round_id is None or r.round_id == round_id]
    if not wanted:
        which = "finished round" if round_id is None else f"promoted round {round_id}"
        raise UserError(f"{folder.root} has no {which} yet; dynamics bootstrap continues it")
    report = wanted[-1]
    base = cfg.base_path()
    if not base.is_dir():
        raise UserError(f"{folder.root} was made with {base}, which is gone; restore it")
    fitted = (folder.root / report.models[task] for task in ("idm", "fdp"))
    adapters = model_ref(base, *fitted)
    return Contestant(
        name=f"{name}, round {report.round_id}",
        model=cfg.model.model_copy(update={"base": base, "device": device}),
        adapters=adapters,
        verifier=cfg.serve.verifier,
        digest=stable_hash(adapters.idm_digest, adapters.fdp_digest),
    )
