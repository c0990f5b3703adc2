"""Training batches: transitions chosen by seed and step, their codes read when they are needed."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from torch import Tensor

from dynamics.core.config import TrainConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.records import TRANSITION_SCHEMA, stable_hash
from dynamics.core.seeds import numpy_rng
from dynamics.models.tokens import Rows
from dynamics.models.vlm import UnifiedVLM
from dynamics.storage.codes import CodesFolder
from dynamics.storage.pairs import codes_folder, parts_ref, stored_rows
from dynamics.training.loss import Task
from dynamics.training.objectives import Objective

FitTask = Task | Literal["joint"]
"""Task of a fit; "joint" trains both in one adapter, in turn, half of the steps each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FitJob:
    """One fit: its data, start, settings and folders."""

    task: FitTask
    family: str
    base: Place
    device: str
    transitions: Place
    """TRANSITION_SCHEMA in parts: labelled rows (origin "labelled") and accepted labels."""
    steps: int
    train: TrainConfig
    seed: int
    init_from: Place | None
    """Output of an earlier fit to start from; None = the base."""
    out: Place
    """Adapter folder, with ``train.method`` full a whole checkpoint; complete when it exists."""
    checkpoint_dir: Place


class Batch:
    """The transitions of a step, B rows of L codes a frame."""

    def __init__(
        self,
        codes: CodesFolder,
        rows: NDArray[np.int32],
        actions: list[str],
        is_labelled: NDArray[np.bool_],
    ) -> None:
        self._codes, self._rows = codes, rows
        self.actions = actions
        self.is_labelled = is_labelled
        """From the labelled set, or an accepted label; bool [B]."""
        both = codes.read("frames", np.tile(rows[:, 0], 2), rows[:, 1:3].T.ravel())
        self.source_codes, self.target_codes = both.astype(np.int64).reshape(2, len(rows), -1)
        """int64 [B, L]."""

    @property
    def recognition(self) -> NDArray[np.float32]:
        """Recognition weights before any normalisation, float32 [B, L]; read when asked for."""
        weights = self._codes.read("recognition", self._rows[:, 0], self._rows[:, 3])
        return weights.astype(np.float32)


class Batches:
    """Transitions by their place in the codes files; batch ``step`` is a pure function of seeds.

    Of a transition its sentence and 17 bytes are in memory: file, rows in it, labelled or not.
    """

    def __init__(self, job: FitJob, model: UnifiedVLM, objective: Objective) -> None:
        self._job, self._tokens, self._objective = job, model.tokens, objective
        table = parts_ref(job.transitions)
        self._rows = np.empty((table.num_rows, 4), np.int32)
        self._is_labelled = np.empty(table.num_rows, bool)
        files: dict[str, int] = {}
        actions: list[pa.Array] = []
        clips: list[tuple[str, str]] = []
        at = 0
        for rows in stored_rows(table, TRANSITION_SCHEMA, codes_folder(job.transitions)):
            here = slice(at, at := at + rows.num_rows)
            names = rows["codes"].combine_chunks().dictionary_encode()
            numbers = [files.setdefault(name, len(files)) for name in names.dictionary.to_pylist()]
            self._rows[here, 0] = np.array(numbers)[names.indices.to_numpy()]
            for column, name in enumerate(("source_row", "target_row", "pair_row"), start=1):
                self._rows[here, column] = rows[name].to_numpy()
            self._is_labelled[here] = pc.equal(rows["origin"], "labelled").to_numpy()
            actions += rows["action"].chunks
            if job.train.validation_fraction:
                names, digests = (rows[name].to_pylist() for name in ("clip_path", "clip_sha256"))
                clips += zip(names, digests, strict=True)
        self._actions = pa.chunked_array(actions, pa.string())
        self._codes = CodesFolder(codes_folder(job.transitions), tuple(files))
        positions = np.arange(table.num_rows, dtype=np.int32)  # half of np.flatnonzero's memory
        labelled = positions[self._is_labelled]
        self._left_out = _of_clips(labelled, clips, job.train.validation_fraction)
        self._labelled_rows = labelled[~np.isin(labelled, self._left_out)]
        accepted = positions[~self._is_labelled]
        self._accepted_rows = _of_other_clips(accepted, clips, self._left_out)

    def rows_of(self, step: int) -> np.ndarray:
        """Indices of a step's batch: ``labelled_fraction`` of it from the labelled set."""
        rng = numpy_rng(self._job.seed, "batch", step)
        size = self._job.train.batch_size
        share = self._job.train.labelled_fraction if len(self._accepted_rows) else 1.0
        from_labelled = round(size * share) if len(self._labelled_rows) else 0
        parts = [
            rng.choice(self._labelled_rows, from_labelled)
            if from_labelled
            else self._labelled_rows[:0]
        ]
        if from_labelled < size:
            parts.append(rng.choice(self._accepted_rows, size - from_labelled))
        return np.concatenate(parts)

    def task_of(self, step: int) -> Task:
        """The task that a step trains."""
        if self._job.task == "joint":
            return "fdp" if step % 2 else "idm"
        return self._job.task

    def batch(self, step: int) -> tuple[Rows, Tensor | None]:
        """Token rows and their weights, see `Objective.weights`."""
        chosen, task = self.rows_of(step), self.task_of(step)
        actions = [self._actions[row].as_py() for row in chosen.tolist()]
        batch = Batch(self._codes, self._rows[chosen], actions, self._is_labelled[chosen])
        said: list[str | None] = [*actions]
        if dropout := self._job.train.action_dropout:
            dropped = numpy_rng(self._job.seed, "action_dropout", step).random(len(said)) < dropout
            said = [None if drop else one for one, drop in zip(said, dropped, strict=True)]
        rng = numpy_rng(self._job.seed, "wordings", step)
        wordings = rng.integers(self._tokens.num_wordings(task), size=len(actions)).tolist()
        rows = (
            self._tokens.idm_rows(batch.source_codes, batch.target_codes, actions, wordings)
            if task == "idm"
            else self._tokens.fdp_rows(batch.source_codes, said, batch.target_codes, wordings)
        )
        return rows, self._objective.weights(batch, rows, task, self._job.train)

    def left_out(self) -> Iterator[tuple[Task, Rows]]:
        """Token rows of the labelled pairs that no batch has, a few at a time, by their task."""
        size = self._job.train.batch_size
        tasks: tuple[Task, ...] = get_args(Task) if self._job.task == "joint" else (self._job.task,)
        for start in range(0, len(self._left_out), size):
            chosen = self._left_out[start : start + size]
            actions = [self._actions[row].as_py() for row in chosen.tolist()]
            batch = Batch(self._codes, self._rows[chosen], actions, self._is_labelled[chosen])
            source, target, first = batch.source_codes, batch.target_codes, [0] * len(actions)
            for task in tasks:
                yield (
                    task,
                    self._tokens.idm_rows(source, target, actions, first)
                    if task == "idm"
                    else self._tokens.fdp_rows(source, actions, target, first),
                )


Clips = Sequence[tuple[str, str]]
"""Of each transition the name of its clip, and the digest of the clip's file."""


def _of_clips(rows: NDArray[np.int32], clips: Clips, fraction: float) -> NDArray[np.int32]:
    """The rows of a share of the clips, whose choice depends on their names alone."""
    if not fraction:
        return rows[:0]
    names = {clips[row][0] for row in rows}
    if len(names) < 2:
        raise UserError("train.validation_fraction needs labelled pairs of two clips or more")
    order = sorted(names, key=lambda name: stable_hash("validation", name))
    chosen = set(order[: min(len(order) - 1, max(1, round(fraction * len(order))))])
    return rows[[clips[row][0] in chosen for row in rows]]


def _of_other_clips(
    rows: NDArray[np.int32], clips: Clips, left_out: NDArray[np.int32]
) -> NDArray[np.int32]:
    """The rows of clips that validate nothing: a label of one that does would teach its frames."""
    known = {text for row in left_out for text in clips[row]}

    def validates(name: str, digest: str) -> bool:
        # A pool of several folders puts the folder before a clip's own name.
        return not known.isdisjoint((name, name.partition("/")[2], digest))

    return rows[[not validates(*clips[row]) for row in rows]] if known else rows
