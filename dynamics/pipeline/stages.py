"""LocalStages: every box of the loop wired once, in this process.

For tests, for a debugger and for one GPU without Ray. `ray_jobs.executor.RayStages` extends it and
overrides only what a cluster takes part in, so that the two cannot drift apart.
"""

import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress, silent
from dynamics.core.records import (
    DECISION_SCHEMA,
    LABEL_SCHEMA,
    PAIR_SCHEMA,
    TRANSITION_SCHEMA,
    TRUTH_SCHEMA,
    DataRefs,
    DatasetRef,
    ModelRef,
    RoundReport,
)
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.guards.leakage import Leakage, find_leakage
from dynamics.evaluation.guards.rules import GuardEvidence, judge
from dynamics.evaluation.heldout import items_schema
from dynamics.evaluation.label_quality import label_accuracy
from dynamics.evaluation.metrics import summarise
from dynamics.evaluation.worker import Evaluator, part_path
from dynamics.inference.best_of_n import Prediction, best_of_n
from dynamics.inference.load import load_pair, model_ref
from dynamics.inference.sampling import SamplingParams
from dynamics.labelling.filter import decide
from dynamics.labelling.labeller import unlabelled
from dynamics.labelling.load import load_labeller
from dynamics.labelling.training_set import grow
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.pipeline.prepare import prepare
from dynamics.pipeline.tracking import NoTracker, Tracker
from dynamics.report.grid import write_grid
from dynamics.report.page import write_page
from dynamics.storage.ledger import Ledger, coverage
from dynamics.storage.run_folder import RunFolder, TrainingLog, read_json, write_json
from dynamics.storage.shards import Shard, cut, read_shard
from dynamics.storage.tables import codes_matrix, dataset_ref, read_table, write_table
from dynamics.training.batches import FitJob
from dynamics.training.checkpoints import FitResult
from dynamics.training.fit import WorkerContext, fit_adapter
from dynamics.training.loss import Task


class LocalStages:
    """`dynamics.loop.Stages` in one process.

    Args:
        cfg: Everything that the run is made from.
        run_dir: Absolute; the caller holds it (`RunFolder.claimed`).
        tracker: Told of finished rounds.
        progress: Told how far a stage is.
    """

    def __init__(
        self,
        cfg: LoopConfig,
        run_dir: Path,
        tracker: Tracker | None = None,
        progress: Progress = silent,
    ) -> None:
        self.cfg = cfg
        self.folder = RunFolder(run_dir)
        self.ledger = Ledger(self.folder.ledger)
        self.tracker = tracker or NoTracker()
        self.progress = progress

    def prepare(self) -> DataRefs:
        """Film or find the videos, ingest them into pairs of codes."""
        return prepare(self.cfg, self.folder, self.images, self.progress)

    def finished(self, round_id: int) -> tuple[ModelRef, RoundReport] | None:
        """The round's models and report when it was committed before, else None.

        What the config accepts by now is recorded in the report.
        """
        found = self.folder.report(round_id)
        if found is None:
            return None
        report = found.accepting(self.cfg.guards.accept)
        if report != found:
            self.commit(report)
        return self.folder.models(report, self.cfg.base_path()), report

    def label(self, pool: DatasetRef, models: ModelRef, round_id: int) -> DatasetRef:
        """Write an action sentence with log-probabilities for every pair (LABEL_SCHEMA).

        Raises:
            UserError: a pair of the pool has no label after all were made, or more than one.
        """
        with self.folder.timed(round_id, "label"):
            attempted = self.ledger.attempted(round_id, models.idm_digest)
            shards = unlabelled(pool, attempted, self.cfg.label.shard_rows)
            if shards:
                self._label_shards(pool, shards, models, round_id)
            out = self.folder.labels(round_id)
            labels = self.ledger.merge(round_id, models.idm_digest, out)
            self._check_coverage(pool, labels, round_id)
            return labels

    def select(self, labels: DatasetRef, round_id: int) -> DatasetRef:
        """Decide on every label, commit labels and decisions to the ledger (DECISION_SCHEMA)."""
        with self.folder.timed(round_id, "select"):
            if round_id not in self.ledger.rounds():
                table = read_table(labels, LABEL_SCHEMA)
                parents = {
                    "pool": dataset_ref(self.folder.pool).digest,
                    "config": self.folder.digest,
                    "idm": _only(table, "idm_digest"),
                    "prompt_version": _only(table, "prompt_version"),
                }
                self.ledger.commit(round_id, labels, decide(table, self.cfg.filter), parents)
            return self.ledger.decisions_ref(round_id)

    def grow(self, data: DataRefs, decisions: DatasetRef | None, round_id: int) -> DatasetRef:
        """Seed plus accepted labels as one training set (TRANSITION_SCHEMA)."""
        out = self.folder.training_set(round_id)
        if out.exists():
            return dataset_ref(out)
        rows = read_table(data.seed, TRANSITION_SCHEMA)
        if decisions is not None:
            pool = read_table(data.pool, PAIR_SCHEMA)
            rows = grow(rows, pool, self.ledger.accepted(round_id))
        return write_table(out, rows, TRANSITION_SCHEMA)

    def train(self, grown: DatasetRef, previous: ModelRef | None, round_id: int) -> ModelRef:
        """Fit the round's IDM and FDP adapters, side by side."""
        jobs = self._fit_jobs(grown, previous, round_id)
        summary = self.folder.fit_summary(round_id)
        if not summary.exists():
            with self.folder.timed(round_id, "train"):
                results = self._fit(jobs, round_id)
            losses = {f"{task}_loss": result.loss for task, result in results.items()}
            steps = {f"{task}_steps": float(result.steps) for task, result in results.items()}
            write_json(summary, losses | steps)
            shutil.rmtree(self.folder.checkpoints(round_id), ignore_errors=True)
        return model_ref(self.cfg.base_path(), jobs["idm"].out, jobs["fdp"].out)

    def evaluate(
        self, data: DataRefs, models: ModelRef, decisions: DatasetRef | None, round_id: int
    ) -> RoundReport:
        """Measure the round on the held-out pairs and its labels against the truth."""
        with self.folder.timed(round_id, "evaluate"):
            items = self._items(data, models, round_id)
            heldout = read_table(data.heldout, TRANSITION_SCHEMA)
            write_grid(self.folder.grid(round_id), items, heldout, self.images)
        metrics = summarise(items)
        reasons: dict[str, int] = {}
        if decisions is not None:
            reasons = self.ledger.manifest(round_id).reasons
            truth = read_table(data.truth, TRUTH_SCHEMA) if data.truth else None
            decided = read_table(decisions, DECISION_SCHEMA)
            metrics |= label_accuracy(
                self.ledger.labels(round_id), decided, truth, load_domain(self.cfg)
            )
        return RoundReport(
            round_id=round_id,
            num_labelled=sum(reasons.values()),
            num_accepted=reasons.get("accepted", 0),
            reasons=reasons,
            metrics=metrics,
            models=self._portable(models),
            train=read_json(self.folder.fit_summary(round_id)),
        )

    def guard(
        self, data: DataRefs, decisions: DatasetRef | None, report: RoundReport
    ) -> RoundReport:
        """The report with what the guards say, which decides whether the round is promoted."""
        limits = self.cfg.guards
        with self.folder.timed(report.round_id, "guard"):
            self.progress(0, 0, f"guard, round {report.round_id}")
            results = judge(self._evidence(data, decisions, report.round_id), limits)
        return replace(report, guards=results).accepting(limits.accept)

    def commit(self, report: RoundReport) -> None:
        """Write the report, the round's last write, and track it."""
        write_json(self.folder.report_path(report.round_id), report.to_json())
        self.tracker.log_round(report)

    def serve(self, models: ModelRef, round_id: int) -> None:
        """Generate one held-out frame: what `RayStages` does over HTTP."""
        self.progress(0, 1, f"generate, round {round_id}")
        self.answer(models)
        self.progress(1, 1, f"generate, round {round_id}")

    def finish(self, reports: list[RoundReport]) -> None:
        """Write the comparison of all rounds."""
        self.tracker.log_run(reports, [write_page(self.folder)])

    def answer(self, models: ModelRef) -> Prediction:
        """Best of N for the first held-out pair."""
        idm, fdp = load_pair(models, self.cfg.model)
        frame, action = self.example()
        return best_of_n(
            self.images.encode(frame[None]),
            [action],
            idm,
            fdp,
            SamplingParams(
                num_samples=self.cfg.serve.num_samples,
                temperature=self.cfg.evaluate.temperature,
            ),
            verifier=self.cfg.serve.verifier,
            seeds=[self.cfg.seed],
        )

    def example(self) -> tuple[np.ndarray, str]:
        """The first held-out pair as uint8 frame [H, W, 3] and action sentence."""
        first = read_table(
            self.folder.heldout, TRANSITION_SCHEMA, ["source_codes", "action"]
        ).slice(0, 1)
        frame = self.images.decode(codes_matrix(first, "source_codes"))[0]
        return frame, first["action"][0].as_py()

    @cached_property
    def images(self) -> ImageTokenizer:
        """The base's image tokenizer, without its language model."""
        return load_image_tokenizer(self.cfg.model.family, self.cfg.base_path())

    # What RayStages overrides, besides `serve`.

    def _label_shards(
        self, pool: DatasetRef, shards: Sequence[Shard], models: ModelRef, round_id: int
    ) -> None:
        labeller = load_labeller(self.cfg, models)
        total, done = sum(shard.stop - shard.start for shard in shards), 0
        for shard in shards:
            pairs = read_shard(pool, shard)
            self.ledger.write_attempt(round_id, labeller.label(pairs, round_id))
            done += pairs.num_rows
            self.progress(done, total, f"label, round {round_id}")

    def _fit(self, jobs: dict[Task, FitJob], round_id: int) -> dict[Task, FitResult]:
        results: dict[Task, FitResult] = {}
        for task, job in jobs.items():
            what = f"train {task.upper()}, round {round_id}"
            self.progress(0, job.steps, what)
            report = _Reporter(self.folder.fit_log(round_id, task), self.progress, what)
            results[task] = fit_adapter(job, WorkerContext(report=report))
        return results

    def _evaluate_shards(
        self,
        data: DataRefs,
        shards: Sequence[Shard],
        models: ModelRef,
        parts: Path,
        round_id: int,
    ) -> None:
        evaluator = Evaluator(self.cfg, data, models, parts, round_id)
        total, done = sum(shard.stop - shard.start for shard in shards), 0
        for shard in shards:
            done += evaluator.write_part(shard)
            self.progress(done, total, f"evaluate, round {round_id}")

    # Details of the stages.

    def _check_coverage(self, pool: DatasetRef, labels: DatasetRef, round_id: int) -> None:
        """Refuse merged labels that are not exactly one for each pair: a commit is for ever."""
        pairs = read_table(pool, PAIR_SCHEMA, ["pair_id"])["pair_id"]
        labelled = read_table(labels, LABEL_SCHEMA, ["pair_id"])["pair_id"]
        missing, surplus = coverage(pairs, labelled)
        attempts = self.ledger.attempts(round_id)
        if missing:
            raise self._unseen(missing, f"{len(pairs):,} pairs of the pool", "label", attempts)
        if surplus:
            raise UserError(
                f"{surplus:,} labels in {attempts} are repeats or of pairs that {pool.path} does "
                "not hold; delete that folder, the same command labels the pool again"
            )

    def _unseen(self, missing: int, of: str, what: str, folder: Path) -> UserError:
        """The refusal of rows that workers said to have written and that are not here."""
        return UserError(
            f"{missing:,} of {of} have no {what} in {folder}; do all nodes see {self.folder.root} "
            "as one folder? the same command makes the missing ones again"
        )

    def _fit_jobs(
        self, grown: DatasetRef, previous: ModelRef | None, round_id: int
    ) -> dict[Task, FitJob]:
        train = self.cfg.train
        start = previous if train.init == "previous" else None
        steps = {
            task: train.of(task).round_steps if round_id else train.of(task).seed_steps
            for task in get_args(Task)
        }
        return {
            task: FitJob(
                task=task,
                family=self.cfg.model.family,
                base=self.cfg.base_path(),
                device=self.cfg.model.device,
                transitions=grown.path,
                steps=steps[task],
                train=train,
                seed=derive_seed(self.cfg.seed, round_id, task),
                init_from=getattr(start, task) if start else None,
                out=self.folder.adapter(round_id, task),
                checkpoint_dir=self.folder.checkpoints(round_id) / task,
            )
            for task in get_args(Task)
        }

    def _items(self, data: DataRefs, models: ModelRef, round_id: int) -> pa.Table:
        """The round's evaluation table; each part is written once, also over kills."""
        schema = items_schema(self.cfg.evaluate.best_of)
        out = self.folder.items(round_id)
        if out.exists():
            return read_table(out, schema)
        parts = self.folder.item_parts(round_id)
        shards = cut(data.heldout.num_rows, self.cfg.evaluate.batch_size)
        if missing := _unwritten(parts, shards):
            self._evaluate_shards(data, missing, models, parts, round_id)
        if lost := _unwritten(parts, shards):
            rows = sum(shard.stop - shard.start for shard in lost)
            of = f"{data.heldout.num_rows:,} held-out pairs"
            raise self._unseen(rows, of, "evaluation", part_path(parts, lost[0]))
        tables = [read_table(part_path(parts, shard), schema) for shard in shards]
        ref = write_table(out, pa.concat_tables(tables), schema)
        shutil.rmtree(parts)
        return read_table(ref, schema)

    def _evidence(
        self, data: DataRefs, decisions: DatasetRef | None, round_id: int
    ) -> GuardEvidence:
        schema = items_schema(self.cfg.evaluate.best_of)
        seed = read_table(data.seed, TRANSITION_SCHEMA, ["action"])
        return GuardEvidence(
            items=read_table(self.folder.items(round_id), schema),
            heldout=read_table(data.heldout, TRANSITION_SCHEMA),
            seed_actions=seed["action"].to_pylist(),
            leakage=self._leakage(data),
            labels=self.ledger.labels(round_id) if decisions else None,
            decisions=read_table(decisions, DECISION_SCHEMA) if decisions else None,
            first_items=read_table(self.folder.items(0), schema) if round_id else None,
            domain=load_domain(self.cfg),
        )

    def _leakage(self, data: DataRefs) -> Leakage:
        """Of this pool and these held-out pairs; looked for once a run."""
        path = self.folder.leakage
        tables = {"pool": data.pool.digest, "heldout": data.heldout.digest}
        if path.exists() and (known := read_json(path))["tables"] == tables:
            return Leakage(**known["found"])
        columns = ["clip_sha256", "source_codes", "target_codes"]
        pool = read_table(data.pool, PAIR_SCHEMA, columns)
        heldout = read_table(data.heldout, TRANSITION_SCHEMA, columns)
        found = find_leakage(pool, heldout, self.images)
        write_json(path, {"tables": tables, "found": asdict(found)})
        return found

    def _portable(self, models: ModelRef) -> dict[str, str]:
        """Without this machine's paths, so that equal runs have equal reports."""
        fields = {name: str(value) for name, value in asdict(models).items()}
        adapters = {
            task: Path(fields[task]).relative_to(self.folder.root).as_posix()
            for task in get_args(Task)
        }
        return fields | adapters | {"base": self.cfg.model.base.name}


@dataclass(frozen=True, slots=True)
class _Reporter:
    """What a fit in this process reports to."""

    log: TrainingLog
    progress: Progress
    what: str

    def __call__(self, step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        self.log.append(step, metrics)
        self.progress(step, int(metrics["steps"]), self.what)


def _unwritten(parts: Path, shards: Sequence[Shard]) -> list[Shard]:
    return [shard for shard in shards if not part_path(parts, shard).exists()]


def _only(table: pa.Table, column: str) -> str:
    """The value that all rows share."""
    (value,) = pc.unique(table[column]).to_pylist()
    return str(value)
