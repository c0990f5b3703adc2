"""Experiments that fit an adapter on a training set of their own and measure it."""

import shutil

import pyarrow as pa
import torch

from dynamics.core.config import FilterConfig, LoopConfig, TrainConfig
from dynamics.core.domain import Domain
from dynamics.core.places import Place
from dynamics.core.records import LABEL_SCHEMA, PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.core.seeds import derive_seed, numpy_rng
from dynamics.evaluation.controls import SEEDED_AS, control_steps
from dynamics.inference.load import load_pair, model_ref
from dynamics.labelling.filter import StratifiedTopKRule, TopFractionRule, decide
from dynamics.labelling.labeller import Labeller
from dynamics.labelling.training_set import with_actions
from dynamics.models.chameleon import load_network
from dynamics.storage.files import local_copy, new_folder, remove_tree
from dynamics.storage.ledger import is_accepted
from dynamics.storage.pairs import PARTS, write_pairs
from dynamics.storage.tables import read_table, write_table
from dynamics.studies.experiments import ACCEPTED_FRACTION, TASKS, Experiment
from dynamics.studies.study import (
    FULL_LEARNING_RATE,
    OUTCOME_SCHEMA,
    Study,
    data_refs,
    labelled_set,
    measure_outcomes,
    true_pool,
)
from dynamics.training.batches import FitJob, FitTask
from dynamics.training.fit import fit_adapter


def fit_control(study: Study, experiment: Experiment) -> None:
    """A fit on the labelled set alone or with the true pool, as many steps as all rounds took."""
    rows = labelled_set(study)
    if experiment.arm == "true_labels":
        rows = pa.concat_tables([rows, true_pool(study)])
    steps = control_steps(study.cfg.train.of(_task(experiment)), study.cfg.rounds)
    _fit_and_measure(study, experiment, rows, steps)


def fit_labelled(study: Study, experiment: Experiment) -> None:
    """A fit on the first ``experiment.arm`` labelled pairs."""
    rows = _first_labelled(study, int(experiment.arm))
    _fit_and_measure(study, experiment, rows, study.cfg.train.of(_task(experiment)).first_steps)


def score_labels(study: Study, experiment: Experiment) -> None:
    """Write round 1's labels as the paper makes them, greedily, with every score."""
    idm, fdp = load_pair(study.models(0), study.cfg.model)
    pool = read_table(data_refs(study).pool, PAIR_SCHEMA)
    sampled, with_fdp = (
        Labeller(idm, fdp, _with_score(study.cfg, score), fdp.images).label(pool, 1)
        for score in ("agreement", "fdp_likelihood")  # one pass measures all that it can
    )
    place = LABEL_SCHEMA.get_field_index("scores")
    field = LABEL_SCHEMA.field(place)
    both = zip(with_fdp["scores"].to_pylist(), sampled["scores"].to_pylist(), strict=True)
    scores = [sorted((dict(by_fdp) | dict(by_idm)).items()) for by_fdp, by_idm in both]
    labels = sampled.set_column(place, field, pa.array(scores, field.type))
    write_table(study.scored_labels, labels, LABEL_SCHEMA)


def fit_filtered(study: Study, experiment: Experiment) -> None:
    """An FDP fit on what one filter accepts of round 1's labels."""
    rows, train = _filtered(study, experiment.arm), study.cfg.train
    init = study.run.adapter(0, "fdp") if train.init == "previous" else None
    _fit_and_measure(study, experiment, rows, train.of("fdp").round_steps, init=init)


def _filtered(study: Study, arm: str) -> pa.Table:
    labelled = labelled_set(study)
    if arm == "nothing":
        return labelled
    if arm == "true_labels":
        return pa.concat_tables([labelled, true_pool(study)])
    labels = read_table(study.scored_labels, LABEL_SCHEMA)
    pool = read_table(data_refs(study).pool, PAIR_SCHEMA)
    accepted = is_accepted(labels, decisions_of(arm, labels, study.domain))
    added = with_actions(pool, labels.filter(pa.array(accepted))).cast(TRANSITION_SCHEMA)
    return pa.concat_tables([labelled, added])


def decisions_of(arm: str, labels: pa.Table, domain: Domain) -> pa.Table:
    """Decisions of a `FILTER_ARMS` entry about LABEL_SCHEMA rows (DECISION_SCHEMA)."""
    if arm == "balanced_types":
        place = labels.schema.get_field_index("clip_class")
        kinds = pa.array([domain.kind(action) for action in labels["action"].to_pylist()])
        labels = labels.set_column(place, LABEL_SCHEMA.field(place), kinds)
    return decide(labels, _filter_of(arm, labels.num_rows))


def _filter_of(arm: str, num_labels: int) -> FilterConfig:
    if arm == "all":
        return FilterConfig(score="mean_logprob", rule=TopFractionRule(fraction=1.0))
    if arm == "balanced_types":
        k = int(ACCEPTED_FRACTION * num_labels)
        return FilterConfig(score="mean_logprob", rule=StratifiedTopKRule(k=k))
    return FilterConfig(score=arm, rule=TopFractionRule(fraction=ACCEPTED_FRACTION))


def fit_ablation(study: Study, experiment: Experiment) -> None:
    """Round 0 with one thing changed; its reference is the loop's round 0."""
    train, base = study.cfg.train, study.cfg.base_path()
    steps = train.of(_task(experiment)).first_steps
    if experiment.arm == "recognition_weights":
        train = train.model_copy(update={"recognition_weight": 1.0})
    elif experiment.arm == "joint":
        steps *= 2  # as many as two adapters take together
    else:
        train = train.model_copy(update={"method": "full", "learning_rate": FULL_LEARNING_RATE})
    if experiment.arm == "from_scratch":
        out = study.folder(experiment) / "base"
        base = untrained_base(base, out, derive_seed(study.cfg.seed, "scratch"))
    _fit_and_measure(study, experiment, labelled_set(study), steps, train=train, base=base)


def untrained_base(base: Place, out: Place, seed: int) -> Place:
    """A checkpoint like ``base`` with its tokenizers, whose language model is at random weights."""
    source, but_weights = local_copy(base), shutil.ignore_patterns("model*", "*.npy")
    with new_folder(out, "config.json") as fresh:
        shutil.copytree(source, fresh, ignore=but_weights, dirs_exist_ok=True)
        torch.manual_seed(seed)
        network = type(load_network(source))(load_network(source).config)
        network.save_pretrained(fresh)
    return out


def _task(experiment: Experiment) -> FitTask:
    assert experiment.task is not None  # every fit has one
    return experiment.task


def _fit_and_measure(
    study: Study,
    experiment: Experiment,
    rows: pa.Table,
    steps: int,
    *,
    train: TrainConfig | None = None,
    init: Place | None = None,
    base: Place | None = None,
) -> None:
    """Fit an arm and write its outcomes on the held-out scenes, one table a task."""
    cfg, base, folder = study.cfg, base or study.cfg.base_path(), study.folder(experiment)
    task = _task(experiment)
    arm = SEEDED_AS.get(experiment.arm, experiment.arm)
    training_set = folder / f"transitions{PARTS}"
    write_pairs(training_set, rows, TRANSITION_SCHEMA, training_set / "codes")
    fitted = fit_adapter(
        FitJob(
            task=task,
            family=cfg.model.family,
            base=base,
            device=cfg.model.device,
            transitions=training_set,
            steps=steps,
            train=train or cfg.train,
            seed=derive_seed(cfg.seed, experiment.kind, arm, task),
            init_from=init,
            out=folder / "model",
            checkpoint_dir=folder / "checkpoint",
        )
    )
    remove_tree(training_set)
    models = model_ref(base, fitted.adapter, fitted.adapter)
    for one in TASKS if task == "joint" else (task,):
        write_table(folder / f"{one}.parquet", measure_outcomes(study, models, one), OUTCOME_SCHEMA)


def _first_labelled(study: Study, size: int) -> pa.Table:
    """``size`` labelled pairs; smaller sets are part of larger ones.

    Those beyond the labelled set come from the pool, with its true labels.
    """
    labelled = labelled_set(study)
    order = numpy_rng(study.cfg.seed, "sizes").permutation(labelled.num_rows)
    rows = labelled.take(order[:size])
    if size > labelled.num_rows:
        more = true_pool(study).slice(0, size - labelled.num_rows)
        origin = pa.array(["labelled"] * more.num_rows, pa.string())
        more = more.set_column(more.schema.get_field_index("origin"), "origin", origin)
        rows = pa.concat_tables([rows, more.cast(TRANSITION_SCHEMA)])
    return rows


def _with_score(cfg: LoopConfig, score: str) -> LoopConfig:
    """Config of a labeller that labels greedily and measures one score."""
    label = cfg.label.model_copy(update={"candidates": 1})
    chosen = cfg.filter.model_copy(update={"score": score})
    return cfg.model_copy(update={"label": label, "filter": chosen})
