"""The run folder: its lock, the paths of its files, its JSON records.

run.json               the identity: digests of the config and the base at the start, the config
data/  ledger/         pairs and pseudo-labels
rounds/round-00/       what a round made; report.json is its last write
outbox/                what MLflow is told; mlflow.db  mlartifacts/  tracking.json
report.html
"""

import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import validate
from dynamics.core.errors import UserError
from dynamics.core.places import Place, StorePath
from dynamics.core.records import ModelRef, RoundReport
from dynamics.storage.claim import LOCKS, claimed
from dynamics.storage.files import (
    check_store,
    checkpoint_digest,
    local_state,
    make_folder,
    remove_tree,
    remove_unfinished,
    write_bytes,
)
from dynamics.storage.pairs import PARTS
from dynamics.storage.sealed import SEAL, seal, unsealed

FORMAT = 2
"""Version of run.json and study.json; version 1 is read as well: its tables are single files."""

Moved = Callable[[LoopConfig, LoopConfig], None]
"""Called as ``moved(stored, now)``; raises UserError when a path of ``now`` that differs from the
stored one leads to other files than those that the tables were made from."""

Record = TypeVar("Record")

TRAINING_SET, RESULTS, REPORT = "training_set.parts", "results.parquet", "report.json"
"""Files of a round, and of a control beside it."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    """Paths of one run; ``root`` is absolute, so that workers in other folders agree on it."""

    root: Place

    def __post_init__(self) -> None:
        if not self.root.is_absolute():
            raise ValueError(f"run folder {self.root} must be absolute")

    @property
    def data(self) -> Place:
        """Videos and the tables made from them."""
        return self.root / "data"

    @property
    def ledger(self) -> Place:
        """Pseudo-labels and decisions of all rounds."""
        return self.root / "ledger"

    def table(self, name: str) -> Place:
        """A table of pairs by its name, e.g. ``pool``, or ``pool/clips`` of one of its folders.

        In parts; in one file where an older version wrote it.
        """
        return _older_or_in_parts(self.data / f"{name}{PARTS}")

    @property
    def codes(self) -> Place:
        """The codes of all tables of pairs."""
        return self.data / "codes"

    @property
    def labelled(self) -> Place:
        """The labelled set (TRANSITION_SCHEMA)."""
        return self.table("labelled")

    @property
    def pool(self) -> Place:
        """The unlabelled pairs (PAIR_SCHEMA)."""
        return self.table("pool")

    @property
    def heldout(self) -> Place:
        """The held-out pairs (TRANSITION_SCHEMA)."""
        return self.table("heldout")

    @property
    def truth(self) -> Place:
        """Ground truth of filmed pairs (TRUTH_SCHEMA); absent on real video."""
        return self.data / "truth.parquet"

    @property
    def pictures(self) -> Place:
        """Real frames of the first held-out pairs (PICTURE_SCHEMA); absent where all are filmed."""
        return self.data / "pictures.parquet"

    @property
    def ingest(self) -> Place:
        """Counts from the making of the tables."""
        return self.data / "ingest.json"

    @property
    def leakage(self) -> Place:
        """Held-out pairs that the pool holds, as counted once for these tables."""
        return self.data / "leakage.json"

    @property
    def record(self) -> Place:
        """The digests that the run was started with, and its newest config."""
        return self.root / "run.json"

    @property
    def done(self) -> Place:
        """The marker of a command that ended, with its last round."""
        return self.root / "done.json"

    @property
    def origin(self) -> Place:
        """When, by which code and on which machine or cluster the run was last continued."""
        return self.root / "origin.json"

    @property
    def page(self) -> Place:
        """The report page."""
        return self.root / "report.html"

    @property
    def outbox(self) -> Place:
        """All that MLflow is told of the run, sent or not."""
        return self.root / "outbox"

    @property
    def tracking(self) -> Path:
        """Folder of MLflow's default database, on this machine also for a run in a store."""
        return local_state(self.root)

    @property
    def mlflow(self) -> Path:
        """MLflow's default database."""
        return self.tracking / "mlflow.db"

    def round(self, round_id: int) -> Place:
        """Folder of one round."""
        return self.root / "rounds" / f"round-{round_id:02d}"

    def labels(self, round_id: int) -> Place:
        """The list of the round's labels before they are decided on (`ledger.Merged`)."""
        return self.round(round_id) / "labels.json"

    def training_set(self, round_id: int) -> Place:
        """The labelled set and the accepted labels (TRANSITION_SCHEMA)."""
        return _older_or_in_parts(self.round(round_id) / TRAINING_SET)

    def adapter(self, round_id: int, task: str) -> Place:
        """The fitted adapter of ``task`` ("idm" or "fdp")."""
        return self.round(round_id) / task

    def fit_summary(self, round_id: int) -> Place:
        """Losses and steps of the round's fits; the last write of the training."""
        return self.round(round_id) / "train" / "summary.json"

    def fit_digests(self, round_id: int) -> Place:
        """Digests of the fitted adapters, by task, as the training left them."""
        return self.round(round_id) / "train" / "digests.json"

    def checkpoints(self, round_id: int) -> Place:
        """Checkpoints of unfinished fits."""
        return self.round(round_id) / "train" / "checkpoints"

    def results(self, round_id: int) -> Place:
        """The held-out results, a row per pair (`evaluation.heldout.results_schema`)."""
        return self.round(round_id) / RESULTS

    def clear(self, rounds: Iterable[int]) -> None:
        """Delete what stopped commands, or a disk that refused it then, left of finished rounds."""
        for round_id in rounds:
            remove_tree(self.result_parts(round_id))
            remove_tree(self.checkpoints(round_id))
        for made in (self.data, self.ledger, self.root / "rounds"):
            if isinstance(made, Path):  # a store has no hidden files
                remove_unfinished(made)

    def result_parts(self, round_id: int) -> Place:
        """Folder of the parts of an unfinished evaluation."""
        return self.round(round_id) / "results"

    def audit(self, round_id: int) -> Place:
        """What people say of the round's accepted labels, once they were asked."""
        return self.round(round_id) / "audit.json"

    def grid(self, round_id: int) -> Place:
        """The picture of sample frames."""
        return self.round(round_id) / "grid.png"

    def report_path(self, round_id: int) -> Place:
        """The report, the round's last write."""
        return self.round(round_id) / REPORT

    def timings_path(self, round_id: int) -> Place:
        """Wall seconds per stage."""
        return self.round(round_id) / "timings.json"

    def controls(self, round_id: int) -> Place:
        """Folder of the two models that the round is compared with."""
        return self.root / "controls" / f"round-{round_id:02d}"

    def models(self, report: RoundReport, base: Place) -> ModelRef:
        """The adapters that a report names, at their place in this folder."""
        return ModelRef(
            base=base,
            idm=self.root / report.models["idm"],
            fdp=self.root / report.models["fdp"],
            idm_digest=report.models["idm_digest"],
            fdp_digest=report.models["fdp_digest"],
        )

    def relative(self, models: ModelRef) -> dict[str, str]:
        """Inverse of `models`: without this machine's paths, so that equal runs report the same."""
        fields = {name: str(value) for name, value in asdict(models).items()}
        adapters = {
            task: getattr(models, task).relative_to(self.root).as_posix() for task in ("idm", "fdp")
        }
        return fields | adapters | {"base": models.base.name}

    def report(self, round_id: int) -> RoundReport | None:
        """The round's report, None while the round is not finished."""
        path = self.report_path(round_id)
        return read_record(path, RoundReport.from_json) if path.exists() else None

    def reports(self, rounds: int) -> list[RoundReport]:
        """Reports of the finished rounds among 0 to ``rounds``."""
        found = [self.report(round_id) for round_id in range(rounds + 1)]
        return [report for report in found if report is not None]

    def timings(self, round_id: int) -> dict[str, float]:
        """Wall seconds per stage. Kept out of report.json, which must not depend on the clock."""
        path = self.timings_path(round_id)
        return read_json(path) if path.exists() else {}

    @contextmanager
    def timed(self, round_id: int, stage: str) -> Iterator[None]:
        """Add the wall time of the body to the stage's seconds."""
        start = time.monotonic()
        yield
        timings = self.timings(round_id)
        timings[stage] = round(timings.get(stage, 0.0) + time.monotonic() - start, 3)
        write_json(self.timings_path(round_id), timings)

    def training_log(self, round_id: int, task: str) -> "TrainingLog":
        """The loss curve of the round's fit of ``task`` ("idm" or "fdp")."""
        return TrainingLog(self.round(round_id) / "train" / f"{task}.jsonl")

    def loss_curve(self, round_id: int, task: str) -> list[dict[str, float]]:
        """Lines of `training_log`; none where its file was deleted.

        Raises:
            UserError: a line is damaged, or the curve ends before the fit did.
        """
        log, summary = self.training_log(round_id, task), self.fit_summary(round_id)
        lines = log.lines()
        steps = read_json(summary).get(f"{task}_steps", 0) if summary.exists() else 0
        if lines and lines[-1]["step"] < steps:
            raise UserError(
                f"{log.path} ends at step {lines[-1]['step']:.0f} of {steps:.0f}: it was cut "
                "short; restore it, or delete it: it holds only the loss curve"
            )
        return lines

    def config(self) -> LoopConfig:
        """The config that the run was last continued with.

        Raises:
            UserError: no run lies here, or one of another version.
        """
        return _stored(self.record)[1]

    @property
    def digest(self) -> str:
        """The config's digest at the start: names the run for the rest of its life."""
        return str(_stored(self.record)[0]["digest"])

    @property
    def base_digest(self) -> str:
        """The base checkpoint's digest at the start."""
        return str(_stored(self.record)[0]["base_digest"])

    @contextmanager
    def claimed(self, cfg: LoopConfig, moved: Moved | None = None) -> Iterator[None]:
        """Hold the folder for ``cfg`` while the body runs.

        Args:
            cfg: starts the run, or continues it.
            moved: as `continued`.

        Raises:
            RunFolderInUseError: another process holds it.
            UserError: the folder belongs to another config, or holds something else.
        """
        check_store(self.root)
        if self.root.is_file():
            raise UserError(f"run_dir {self.root} is a file; choose another run_dir")
        make_folder(self.root)
        others = (found for found in self.root.iterdir() if found.name not in LOCKS)
        if not self.record.exists() and next(others, None) is not None:
            raise UserError(f"{self.root} is not empty and holds no run; choose another run_dir")
        with claimed(self.root):
            write_json(self.record, continued(self.record, cfg, moved))
            yield


@dataclass(frozen=True, slots=True)
class TrainingLog:
    """Lines ``{"step": 50, "loss": 1.2}`` that a fit appends while others read."""

    path: Place

    def append(self, step: int, metrics: dict[str, float]) -> None:
        """Add a line."""
        line = json.dumps(seal({"step": step, **metrics})) + "\n"
        text = self._text()
        whole = text[: text.rfind("\n") + 1]  # a killed writer may have left a part of a line
        if isinstance(self.path, StorePath) or whole != text:  # objects do not grow
            write_bytes(self.path, (whole + line).encode())
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a") as stream:
            stream.write(line)

    def _text(self) -> str:
        try:
            return self.path.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""

    def lines(self) -> list[dict[str, float]]:
        """The curve by step; of a step that a resumed fit repeated, the later line.

        Raises:
            UserError: a line is damaged. One that its writer has not finished is left out.
        """
        *lines, rest = self._text().split("\n")
        by_step = {}
        for text in [*lines, *([rest] if "}" in rest else [])]:
            try:
                line = unsealed(json.loads(text))
                by_step[line["step"]] = line
            except (ValueError, AttributeError, KeyError, TypeError) as error:
                raise UserError(
                    f"a line of {self.path} is damaged; restore it, or delete it: it holds only "
                    "the loss curve"
                ) from error
        return [by_step[step] for step in sorted(by_step)]

    def last_step(self) -> int:
        """Step of the last line, 0 before the first."""
        lines = self.lines()
        return int(lines[-1]["step"]) if lines else 0


def _older_or_in_parts(parts: Place) -> Place:
    """The single file that an older version wrote, where it is."""
    file = parts.with_name(f"{parts.stem}.parquet")
    return file if file.exists() else parts


def continued(path: Place, cfg: LoopConfig, moved: Moved | None = None) -> dict[str, Any]:
    """Content of run.json (a run) or study.json (a study) once ``cfg`` continues it.

    ``format``, ``digest`` and ``base_digest`` are those of the start, ``chosen`` is what its digest
    covers; ``config`` is the newest one, with every key resolved.

    Args:
        path: the file; it may be missing.
        cfg: another value of a key that decides results is refused. Keys that the stored config
            does not have count as their defaults.
        moved: compares the files below paths that are given in both configs and differ. The base
            checkpoint is compared here, by its bytes.

    Raises:
        UserError: the folder belongs to another config, base checkpoint or version.
    """
    config, found_base = cfg.model_dump(mode="json"), base_digest(cfg)
    if not path.exists():
        start = {"format": FORMAT, "digest": cfg.digest(), "chosen": cfg.chosen()}
        return {**start, "base_digest": found_base, "config": config}
    found, stored = _stored(path)
    old, new = stored.deciding(), cfg.deciding()
    if keys := sorted(key for key in {*old, *new} if old.get(key) != new.get(key)):
        shown = ", ".join(f"{key} was {old.get(key)!r}, now {new.get(key)!r}" for key in keys[:3])
        more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
        raise UserError(
            f"{path.parent} belongs to another config ({shown}{more}); choose another folder, "
            "restore the old values, or delete the folder"
        )
    if found["base_digest"] != found_base:
        raise UserError(
            f"{path.parent} was made with another base checkpoint than {cfg.model.base} holds now; "
            "choose another folder, restore the checkpoint, or delete the folder"
        )
    if moved is not None:
        moved(stored, cfg)
    return {**found, "config": config}


def _stored(path: Place) -> tuple[dict[str, Any], LoopConfig]:
    """The file and its config, without keys at their defaults that this version does not have."""
    if not path.exists():
        raise UserError(f"{path.parent} holds no run (no {path.name}); name a run folder")
    found = read_json(path)
    if found.get("format") not in (1, FORMAT):
        raise UserError(
            f"{path} was written by {'another' if 'format' in found else 'an older'} version of "
            "dynamics; continue it with that version, or choose another folder"
        )
    cfg = validate(found["config"], where=str(path), unknown="ignore")
    known = {*cfg.deciding(), *flatten(cfg.model_dump(mode="json"))}
    if gone := [f"{key}={value}" for key, value in found["chosen"].items() if key not in known]:
        raise UserError(
            f"{path} has settings that this version of dynamics does not know "
            f"({', '.join(gone[:3])}); continue it with its version, or choose another folder"
        )
    return found, cfg


def base_digest(cfg: LoopConfig) -> str:
    """sha256 of the base checkpoint; empty for a missing one, since its loader says so better."""
    base = cfg.base_path()
    return checkpoint_digest(base) if base.is_dir() else ""


def flatten(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"a": {"b": 1}}`` to ``{"a.b": 1}``; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        flat.update(flatten(value, f"{name}.") if isinstance(value, dict) else {name: value})
    return flat


def read_json(path: Place) -> dict[str, Any]:
    """Read a JSON object that `write_json` wrote.

    Raises:
        UserError: the file is damaged.
    """
    try:
        payload = path.read_bytes()
        record: dict[str, Any] = json.loads(payload)
        content = unsealed(record)
        if SEAL in record and json_bytes(record) != payload:
            raise ValueError("the same values are written in another way")
        return content
    except (ValueError, AttributeError) as error:
        raise UserError(
            f"{path} is not valid JSON, or was changed ({error}); restore it, or delete it "
            "and run the same command again"
        ) from error


def read_record(path: Place, from_json: Callable[[dict[str, Any]], Record]) -> Record:
    """The record that `write_json` wrote; ``from_json`` gives fields added later their defaults.

    Raises:
        UserError: the file is damaged, or a newer version wrote it.
    """
    try:
        return from_json(read_json(path))
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(
            f"{path} was written by another version of this code, or changed ({error}); "
            "read it with that one"
        ) from error


def write_json(path: Place, payload: dict[str, Any]) -> None:
    """Write a JSON object atomically, with its digest; equal objects give equal bytes."""
    write_bytes(path, json_bytes(seal(payload)))


def json_bytes(payload: dict[str, Any]) -> bytes:
    """A JSON object for others to read; equal objects give equal bytes."""
    return (json.dumps(payload, indent=2, sort_keys=True) + "\n").encode()
