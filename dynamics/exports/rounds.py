"""The round that is exported, and its origin."""

from dataclasses import dataclass
from typing import Any

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.records import RoundReport
from dynamics.storage.run_folder import RunFolder, base_digest


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportedRound:
    """A finished round of a run."""

    run: RunFolder
    cfg: LoopConfig
    report: RoundReport

    @property
    def round_id(self) -> int:
        """Number of the round."""
        return self.report.round_id

    def parents(self) -> dict[str, Any]:
        """Origin in every export; the same on every machine."""
        return {
            "run": self.cfg.name,
            "seed": self.cfg.seed,
            "round": self.round_id,
            "promoted": self.report.promoted,
            "config_digest": self.run.digest,
            "base": self.cfg.base_path().name,
            "base_digest": self.run.base_digest,
        }


def finished_round(run: RunFolder, round_id: int | None, *, first: int) -> ExportedRound:
    """The round ``round_id``, or the last promoted one from ``first`` on.

    Raises:
        UserError: there is none, or the base checkpoint is not the one that the run was made with.
    """
    cfg = run.config()
    if round_id is None:
        promoted = [one for one in run.reports(cfg.rounds) if one.promoted]
        report = promoted[-1] if promoted and promoted[-1].round_id >= first else None
        if report is None:
            raise UserError(
                f"{run.root} has no promoted round from round {first} on; bootstrap continues it, "
                "or name a round with --round"
            )
    else:
        if round_id < first:
            raise UserError(f"round {round_id} has no labels: they begin with round {first}")
        report = run.report(round_id)
        if report is None:
            raise UserError(f"{run.root} has not finished round {round_id}; name one that it has")
    if base_digest(cfg) != run.base_digest:
        raise UserError(
            f"the checkpoint {cfg.base_path()} is missing or not the one that {run.root} was made "
            "with; restore it, frames and digests depend on it"
        )
    return ExportedRound(run=run, cfg=cfg, report=report)


def inside(root: Place, name: str, what: str) -> Place:
    """The file or folder ``name`` below ``root``.

    Raises:
        UserError: it lies elsewhere: absolute, through ``..`` or through a link.
    """
    path = (root / name).resolve()
    above = root.resolve().parts
    if path.parts[: len(above)] != above:
        raise UserError(f"{what} names {name!r}, which lies outside {root}; nothing is exported")
    return path
