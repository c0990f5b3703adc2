"""THE ALGORITHM: bootstrapping forward dynamics from inverse dynamics, on one page.

    labelled set ────────────┐                                   held-out pairs
                             ▼                                          │
    videos ─▶ frame pairs ─▶ LABEL ─▶ FILTER ─▶ training set ─▶ TRAIN ─▶ EVALUATE ─▶ GUARD ─▶ SERVE
              (once)         ▲ IDM              ledger          IDM, FDP               │
                             └───────────── the promoted round's IDM ◀─────────────────┘

Round 0 trains both adapters on the labelled set. Every later round labels the whole pool with
the newest IDM, accepts the confident labels and trains both adapters on them and the labelled set
(arXiv 2506.06006, section 3). A round that a guard blocks is not promoted: the loop ends there,
and the round before it is what is served. The loop knows neither Ray nor MLflow: `Stages` does.
"""

from typing import Protocol

from dynamics.core.config import LoopConfig
from dynamics.core.records import DataRefs, DatasetRef, ModelRef, RoundReport


class Stages(Protocol):
    """One method per box of the picture. Every method returns at once what it finds finished."""

    def prepare(self) -> DataRefs:
        """Film or find the videos, ingest them into pairs of codes."""

    def finished(self, round_id: int) -> tuple[ModelRef, RoundReport] | None:
        """The round's models and report when it was committed before, else None.

        What the config accepts by now is recorded in the report.
        """

    def begin(self, round_id: int) -> None:
        """Take note that work on a round begins, or goes on after a command that was killed."""

    def label(self, pool: DatasetRef, models: ModelRef, round_id: int) -> DatasetRef:
        """Write an action sentence with log-probabilities for every pair (LABEL_SCHEMA)."""

    def filter(self, labels: DatasetRef, round_id: int) -> DatasetRef:
        """Decide on every label, commit labels and decisions to the ledger (DECISION_SCHEMA)."""

    def build_training_set(
        self, data: DataRefs, decisions: DatasetRef | None, round_id: int
    ) -> DatasetRef:
        """Join the labelled set and the accepted labels (TRANSITION_SCHEMA)."""

    def train(self, training_set: DatasetRef, previous: ModelRef | None, round_id: int) -> ModelRef:
        """Fit the round's IDM and FDP adapters, side by side."""

    def evaluate(
        self, data: DataRefs, models: ModelRef, decisions: DatasetRef | None, round_id: int
    ) -> RoundReport:
        """Measure the round on the held-out pairs and its labels against the truth."""

    def guard(
        self, data: DataRefs, decisions: DatasetRef | None, report: RoundReport
    ) -> RoundReport:
        """The report with what the guards say, which decides whether the round is promoted."""

    def commit(self, report: RoundReport) -> None:
        """Write the report, the round's last write, and track it."""

    def serve(self, models: ModelRef, round_id: int) -> None:
        """Put the round's generator behind HTTP and check that it answers; never ends the loop."""

    def finish(self, reports: list[RoundReport]) -> None:
        """Write the comparison of all rounds."""


def run_rounds(cfg: LoopConfig, stages: Stages) -> list[RoundReport]:
    """Run (or resume) rounds 0 to ``cfg.rounds``; returns one report per round.

    Fewer when a guard blocks a round: its report is the last one. The last promoted round is the
    caller's to serve, once all that the rounds have given is written down.
    """
    data = stages.prepare()
    models: ModelRef | None = None  # of the last promoted round
    reports: list[RoundReport] = []
    for round_id in range(cfg.rounds + 1):
        if done := stages.finished(round_id):
            trained, report = done
        else:
            stages.begin(round_id)
            decisions = None
            if models is not None:
                labels = stages.label(data.pool, models, round_id)
                decisions = stages.filter(labels, round_id)
            training_set = stages.build_training_set(data, decisions, round_id)
            trained = stages.train(training_set, models, round_id)
            measured = stages.evaluate(data, trained, decisions, round_id)
            report = stages.guard(data, decisions, measured)
            stages.commit(report)
        reports.append(report)
        if not report.promoted:
            break
        models = trained
        if cfg.serve.each_round and not done and round_id < cfg.rounds:
            stages.serve(models, round_id)
    stages.finish(reports)
    return reports
