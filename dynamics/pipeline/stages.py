"""The stages of the loop, wired once; an executor runs the work that takes models.

This module decides which work is missing, names the files and joins the results, so that the
executors cannot drift apart.
"""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.progress import Progress, silent
from dynamics.core.records import (
    TRANSITION_SCHEMA,
    TRUTH_SCHEMA,
    DataRefs,
    DatasetRef,
    ModelRef,
    RoundReport,
)
from dynamics.evaluation.guards.rules import evaluate_guards
from dynamics.evaluation.heldout import results_schema
from dynamics.evaluation.label_quality import correct_labels, label_accuracy
from dynamics.evaluation.metrics import summarise
from dynamics.evaluation.worker import EvaluationWorker, part_path
from dynamics.inference.load import check_bytes, model_ref
from dynamics.labelling.filter import iter_decisions
from dynamics.labelling.labeller import unlabelled
from dynamics.labelling.training_set import build_training_set
from dynamics.labelling.worker import LabelWorker
from dynamics.pipeline.evidence import guard_evidence
from dynamics.pipeline.executor import Executor, LocalExecutor
from dynamics.pipeline.fit_jobs import fit_jobs
from dynamics.pipeline.prepare import prepare
from dynamics.pipeline.tracking import Tracker, Trackers
from dynamics.storage.files import remove_tree
from dynamics.storage.ledger import Ledger, coverage, keys_of
from dynamics.storage.pairs import is_whole
from dynamics.storage.run_folder import TRAINING_SET, RunFolder, read_json, write_json
from dynamics.storage.shards import Shard, cut, num_rows, read_shard
from dynamics.storage.streams import Stream
from dynamics.storage.tables import dataset_ref, read_table, write_table


class Stages:
    """The stages of `dynamics.loop.Stages` over a run folder.

    Args:
        cfg: Configuration of the run.
        run_dir: Absolute path of the run folder, which the caller holds (`RunFolder.claimed`).
        executor: Labels, fits, evaluates and serves; by default this process.
        trackers: Write down finished rounds.
        progress: Called as a stage advances.
    """

    def __init__(
        self,
        cfg: LoopConfig,
        run_dir: Place,
        *,
        executor: Executor | None = None,
        trackers: Tracker | None = None,
        progress: Progress = silent,
    ) -> None:
        self.cfg = cfg
        self.folder = RunFolder(run_dir)
        self.ledger = Ledger(self.folder.ledger)
        self.executor = executor or LocalExecutor(cfg, self.folder)
        self.trackers = trackers or Trackers()
        self.progress = progress

    def prepare(self) -> DataRefs:
        """Film or find the videos, ingest them into pairs of codes."""
        run = partial(self.executor.run_stream, "ingest")
        return prepare(self.cfg, self.folder, self.executor.images, run, self.progress)

    def finished(self, round_id: int) -> tuple[ModelRef, RoundReport] | None:
        """The round's models and report when it was committed before, else None.

        Guards that the config accepts since then are recorded in the report.
        """
        found = self.folder.report(round_id)
        if found is None:
            return None
        report = found.accepting(self.cfg.guards.accept)
        if report != found:
            self.commit(report)
        return self.folder.models(report, self.cfg.base_path()), report

    def begin(self, round_id: int) -> None:
        """Tell the trackers that work on a round begins."""
        self.trackers.begin_round(round_id)

    def label(self, pool: DatasetRef, models: ModelRef, round_id: int) -> DatasetRef:
        """Write an action sentence with log-probabilities for every pair (LABEL_SCHEMA).

        Raises:
            UserError: a pair of the pool has no label after all were made, or more than one.
        """
        if round_id in self.ledger.rounds():
            return self.ledger.ref(round_id)
        with self.folder.timed(round_id, "label"):
            if shards := self._unlabelled(pool, models, round_id):
                make = partial(LabelWorker, self.cfg, models, self.ledger, round_id)
                stream = Stream(
                    what=f"label, round {round_id}",
                    items=shards,
                    total=num_rows(shards),
                    read=partial(read_shard, pool),
                    make_worker=make,
                )
                for _ in self.executor.run_stream("label", stream, self.progress):
                    pass
            if lost := self._unlabelled(pool, models, round_id, checked=False):
                of = f"{pool.num_rows:,} pairs of the pool"
                raise self._unseen(num_rows(lost), of, "label", self.ledger.attempts(round_id))
            out = self.folder.labels(round_id)
            labels = self.ledger.merge(round_id, models.idm_digest, out)
            self._check_coverage(pool, labels, round_id)
            return labels

    def filter(self, labels: DatasetRef, round_id: int) -> DatasetRef:
        """Decide on every label, commit labels and decisions to the ledger (DECISION_SCHEMA)."""
        with self.folder.timed(round_id, "filter"):
            if round_id not in self.ledger.rounds():
                read = partial(self.ledger.merged, labels)
                parents = {
                    "pool": dataset_ref(self.folder.pool).digest,
                    "config": self.folder.digest,
                    "idm": _only(read(["idm_digest"])),
                    "prompt_version": _only(read(["prompt_version"])),
                }
                decisions = iter_decisions(read, self.cfg.filter)
                self.ledger.commit(round_id, labels, decisions, parents)
            return self.ledger.ref(round_id)

    def build_training_set(
        self, data: DataRefs, decisions: DatasetRef | None, round_id: int
    ) -> DatasetRef:
        """Labelled set plus accepted labels as one training set (TRANSITION_SCHEMA)."""
        out = self.folder.round(round_id) / TRAINING_SET
        if is_whole(out):
            return dataset_ref(out)
        columns = ["label_id", "pair_id", "action"]
        accepted = self.ledger.iter_accepted(round_id, columns) if decisions else ()
        return build_training_set(data.labelled, data.pool, accepted, out, self.folder.codes)

    def train(self, training_set: DatasetRef, previous: ModelRef | None, round_id: int) -> ModelRef:
        """Fit the round's IDM and FDP adapters, side by side."""
        jobs = fit_jobs(self.cfg, self.folder, training_set, previous, round_id)
        summary, digests = self.folder.fit_summary(round_id), self.folder.fit_digests(round_id)
        if not summary.exists():
            if previous is not None and self.cfg.train.init == "previous":
                check_bytes(previous)
            with self.folder.timed(round_id, "train"):
                results = self.executor.fit(jobs, round_id, self.progress)
            losses = {f"{task}_loss": result.loss for task, result in results.items()}
            steps = {f"{task}_steps": float(result.steps) for task, result in results.items()}
            write_json(
                digests, {f"{task}_digest": result.digest for task, result in results.items()}
            )
            write_json(summary, losses | steps)
            remove_tree(self.folder.checkpoints(round_id))
        models = model_ref(self.cfg.base_path(), jobs["idm"].out, jobs["fdp"].out)
        return replace(models, **read_json(digests)) if digests.exists() else models

    def evaluate(
        self, data: DataRefs, models: ModelRef, decisions: DatasetRef | None, round_id: int
    ) -> RoundReport:
        """Measure the round on the held-out pairs and its labels against the ground truth."""
        with self.folder.timed(round_id, "evaluate"):
            items = self._items(data, models, round_id)
        metrics = summarise(items)
        reasons: dict[str, int] = {}
        if decisions is not None:
            reasons = self.ledger.manifest(round_id).reasons
            accepted = self.ledger.decisions(round_id, ["accepted"])["accepted"].to_numpy()
            metrics |= label_accuracy(accepted, self._correct(data, round_id))
        return RoundReport(
            round_id=round_id,
            num_labelled=sum(reasons.values()),
            num_accepted=reasons.get("accepted", 0),
            reasons=reasons,
            metrics=metrics,
            models=self.folder.relative(models),
            train=read_json(self.folder.fit_summary(round_id)),
        )

    def guard(
        self, data: DataRefs, decisions: DatasetRef | None, report: RoundReport
    ) -> RoundReport:
        """The report with the guards' results, which decide whether the round is promoted."""
        limits = self.cfg.guards
        with self.folder.timed(report.round_id, "guard"):
            self.progress(0, 0, f"guard, round {report.round_id}")
            evidence = guard_evidence(
                self.cfg,
                self.folder,
                self.executor.images.frame_px,
                data,
                decisions,
                report.round_id,
                partial(self.executor.run_stream, "decode"),
                self.progress,
            )
            results = evaluate_guards(evidence, limits)
        return replace(report, guards=results).accepting(limits.accept)

    def commit(self, report: RoundReport) -> None:
        """Write the report, the round's last write, and track it."""
        write_json(self.folder.report_path(report.round_id), report.to_json())
        self.trackers.log_round(report)

    def serve(self, models: ModelRef, round_id: int) -> None:
        """Have the round's generator draw one held-out frame; never ends the loop."""
        self.executor.serve(models, round_id, self.progress)

    def finish(self, reports: list[RoundReport]) -> None:
        """Write the comparison of all rounds; nothing that a stopped command left stays."""
        self.folder.clear(report.round_id for report in reports)
        self.trackers.log_run(reports)

    def _correct(self, data: DataRefs, round_id: int) -> list[bool | None] | None:
        """Verdicts on the round's labels; None without the truth."""
        if data.truth is None:
            return None
        labels = self.ledger.labels(round_id, ["pair_id", "action"])
        return correct_labels(labels, read_table(data.truth, TRUTH_SCHEMA), load_domain(self.cfg))

    def _unlabelled(
        self, pool: DatasetRef, models: ModelRef, round_id: int, *, checked: bool = True
    ) -> list[Shard]:
        attempted = self.ledger.attempted(round_id, models.idm_digest, checked=checked)
        return unlabelled(pool.num_rows, attempted, self.cfg.label.shard_rows)

    def _check_coverage(self, pool: DatasetRef, labels: DatasetRef, round_id: int) -> None:
        """Refuse merged labels that are not exactly one for each pair: a commit is for ever."""

        def labelled() -> Iterator[pa.ChunkedArray]:
            return (rows["pair_id"] for rows in self.ledger.merged(labels, ["pair_id"]))

        missing, surplus = coverage(keys_of(pool), labelled)
        if missing or surplus:
            attempts = self.ledger.attempts(round_id)
            raise UserError(
                f"{surplus:,} labels in {attempts} are repeats or of pairs that {pool.path} does "
                f"not hold, and {missing:,} pairs have none; delete that folder, the same command "
                "labels the pool again"
            )

    def _unseen(self, missing: int, of: str, what: str, folder: Place) -> UserError:
        """Error for rows that workers reported as written and that are not in ``folder``."""
        return UserError(
            f"{missing:,} of {of} have no {what} in {folder}; do all nodes see {self.folder.root} "
            "as one folder? the same command makes the missing ones again"
        )

    def _items(self, data: DataRefs, models: ModelRef, round_id: int) -> pa.Table:
        """The round's evaluation table; each part is written once, also after kills."""
        schema = results_schema(self.cfg.evaluate.best_of)
        out = self.folder.results(round_id)
        if out.exists():
            return read_table(out, schema)
        parts = self.folder.result_parts(round_id)
        shards = cut(data.heldout.num_rows, self.cfg.evaluate.batch_size)
        if missing := _unwritten(parts, shards):
            names = TRANSITION_SCHEMA.names
            stream = Stream(
                what=f"evaluate, round {round_id}",
                items=missing,
                total=num_rows(missing),
                read=partial(read_shard, data.heldout, columns=names, schema=TRANSITION_SCHEMA),
                make_worker=partial(EvaluationWorker, self.cfg, data, models, parts, round_id),
            )
            for _ in self.executor.run_stream("evaluate", stream, self.progress):
                pass
        if lost := _unwritten(parts, shards):
            of = f"{data.heldout.num_rows:,} held-out pairs"
            raise self._unseen(num_rows(lost), of, "evaluation", part_path(parts, lost[0]))
        tables = [read_table(part_path(parts, shard), schema) for shard in shards]
        ref = write_table(out, pa.concat_tables(tables), schema)
        remove_tree(parts)
        return read_table(ref, schema)


def _unwritten(parts: Place, shards: Sequence[Shard]) -> list[Shard]:
    return [shard for shard in shards if not part_path(parts, shard).exists()]


def _only(tables: Iterator[pa.Table]) -> str:
    """The value that all rows of tables of one column share."""
    (value,) = {value for rows in tables for value in pc.unique(rows[0]).to_pylist()}
    return str(value)
