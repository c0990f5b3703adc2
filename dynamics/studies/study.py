"""One seed of a study: its settings, its folders, and the tables that every experiment reads."""

from dataclasses import dataclass

import pyarrow as pa

from dynamics.core.config import LoopConfig
from dynamics.core.domain import Domain, load_domain
from dynamics.core.places import Place
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA, TRUTH_SCHEMA, DataRefs, ModelRef
from dynamics.evaluation.candidates import labelled_pairs
from dynamics.evaluation.controls import label_truly
from dynamics.evaluation.guards.rules import GUARDS
from dynamics.evaluation.heldout import code_columns, idm_columns
from dynamics.evaluation.state_reader import StateReader, states_by_pair
from dynamics.inference.load import load_fdp, load_idm, model_ref
from dynamics.inference.sampling import GREEDY
from dynamics.pipeline.prepare import prepared
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import read_table
from dynamics.studies.experiments import SCORES, Experiment, StudyPlan
from dynamics.training.loss import Task

OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("success", pa.bool_(), nullable=False),
        pa.field("copy", pa.bool_()),  # FDP only: the frame shows the source state
        pa.field("changed", pa.float32()),  # FDP only: the share of the changed codes it draws
    ]
)
"""Outcome of an arm's greedy decoding on every held-out scene of its seed.

Where no rules are known, success is the recorded frame to the last code, or its very sentence.
"""

FULL_LEARNING_RATE = 4e-3
"""AdamW's learning rate on all weights: the best of 0.5e-3, 2e-3 and 4e-3 for the FDP; the last two
are equally good for the IDM (docs/LOG.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One seed of the study."""

    cfg: LoopConfig
    """The loop's config with this seed and its run folder."""
    plan: StudyPlan
    root: Place
    """Absolute; ``run/`` is the loop's run folder, ``experiments/`` holds the rest."""

    @property
    def run(self) -> RunFolder:
        """The loop's run folder."""
        return RunFolder(self.root / "run")

    @property
    def domain(self) -> Domain:
        """The domain of the loop's config."""
        return load_domain(self.cfg)

    @property
    def has_truth(self) -> bool:
        """True where the domain's rules say what follows."""
        return data_refs(self).truth is not None

    def folder(self, experiment: Experiment) -> Place:
        """Folder of an experiment's results."""
        return self.root / "experiments" / experiment.name

    def is_done(self, experiment: Experiment) -> bool:
        """True once an experiment was finished, by this process or an earlier one."""
        return self.done(experiment).is_file()

    def done(self, experiment: Experiment) -> Place:
        """An experiment's last write."""
        return self.folder(experiment) / "done.json"

    @property
    def scored_labels(self) -> Place:
        """Round 1's greedy labels with every score (LABEL_SCHEMA)."""
        return self.folder(SCORES) / "labels.parquet"

    def models(self, round_id: int) -> ModelRef:
        """The adapters of a finished round."""
        idm, fdp = (self.run.adapter(round_id, task) for task in ("idm", "fdp"))
        return model_ref(self.cfg.base_path(), idm, fdp)


def study_of(cfg: LoopConfig, plan: StudyPlan, folder: Place, seed: int) -> Study:
    """The study of one seed below ``folder``."""
    root = folder / f"seed-{seed}"
    serve = cfg.serve.model_copy(update={"enabled": False})
    # A blocked round is a result of the study, not a reason to stop it.
    guards = cfg.guards.model_copy(update={"accept": tuple(GUARDS)})
    where = {"seed": seed, "run_dir": root / "run"}
    own = cfg.model_copy(update={**where, "serve": serve, "guards": guards})
    return Study(cfg=own, plan=plan, root=root)


ENDS = ("source", "target")


def measure_outcomes(study: Study, models: ModelRef, task: Task) -> pa.Table:
    """OUTCOME_SCHEMA over the held-out scenes."""
    cfg = study.cfg
    pairs = labelled_pairs(
        read_table(data_refs(study).heldout, TRANSITION_SCHEMA), true_states(study)
    )
    nothing = [None] * len(pairs.pair_ids)
    if task == "idm":
        found = idm_columns(pairs, load_idm(models, cfg.model), cfg, study.domain)
        success = found["idm_correct" if study.has_truth else "idm_exact"]
        return pa.table([pairs.pair_ids, success, nothing, nothing], schema=OUTCOME_SCHEMA)
    fdp = load_fdp(models, cfg.model)
    drawn_BL = fdp.generate(pairs.source, pairs.actions, GREEDY).codes[:, 0]
    changed = code_columns(pairs, drawn_BL)["code_changed_accuracy"]
    if not study.has_truth:
        exact = (drawn_BL == pairs.target).all(axis=1)
        return pa.table([pairs.pair_ids, exact, nothing, changed], schema=OUTCOME_SCHEMA)
    shown = StateReader(fdp.images, study.domain).read(drawn_BL)
    success, copies = (
        [state == wanted for state, wanted in zip(shown, states, strict=True)]
        for states in (pairs.target_states, pairs.source_states)
    )
    return pa.table([pairs.pair_ids, success, copies, changed], schema=OUTCOME_SCHEMA)


def data_refs(study: Study) -> DataRefs:
    """References to the tables that the data experiment wrote."""
    return prepared(study.run)


def labelled_set(study: Study) -> pa.Table:
    """The labelled set of the study's seed (TRANSITION_SCHEMA)."""
    return read_table(data_refs(study).labelled, TRANSITION_SCHEMA)


def true_pool(study: Study) -> pa.Table:
    """The pool's pairs with their true actions (TRANSITION_SCHEMA)."""
    refs = data_refs(study)
    assert refs.truth is not None  # the study's pool is filmed
    pool, truth = read_table(refs.pool, PAIR_SCHEMA), read_table(refs.truth, TRUTH_SCHEMA)
    return label_truly(pool, truth).cast(TRANSITION_SCHEMA)


def true_states(study: Study) -> dict[str, tuple[str, str]]:
    """Source and target state of every pair whose truth is known."""
    truth = data_refs(study).truth
    return {} if truth is None else states_by_pair(read_table(truth, TRUTH_SCHEMA))
