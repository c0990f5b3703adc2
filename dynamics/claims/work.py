"""One function per kind of unit: fit, evaluate, write. Analysis only reads what they wrote.

Each runs in a process of its own with one thread; a killed one is repeated, its fits resume from
their checkpoints.
"""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import torch

from dynamics.claims.plan import KEPT_FRACTION, StudyPlan, Unit
from dynamics.config import (
    SCORES_BY_FDP,
    FilterConfig,
    GuardName,
    LoopConfig,
    ScoreName,
    StratifiedTopKRule,
    TopFractionRule,
    TrainConfig,
)
from dynamics.evaluation.controls import control_steps, label_truly
from dynamics.evaluation.items import StateReader
from dynamics.evaluation.meaning import kind_of, outcome
from dynamics.generation.verify import gather_evidence
from dynamics.labelling.confidence import SCORES
from dynamics.labelling.filter import decide
from dynamics.labelling.label import Labeller
from dynamics.local import LocalStages
from dynamics.loop import run_rounds
from dynamics.models import load_image_tokenizer
from dynamics.models.adapters import load_fdp, load_idm, load_pair, model_ref
from dynamics.models.chameleon import load_network
from dynamics.prepare import prepare, prepared
from dynamics.records import (
    LABEL_SCHEMA,
    PAIR_SCHEMA,
    TRANSITION_SCHEMA,
    TRUTH_SCHEMA,
    DataRefs,
    ModelRef,
)
from dynamics.run_folder import RunFolder, write_json
from dynamics.seeds import derive_seed, numpy_rng
from dynamics.tables import codes_matrix, read_table, write_table
from dynamics.training.fit import FitJob, FitTask, fit_adapter
from dynamics.training.grow import grow
from dynamics.training.loss import Task

OUTCOME_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),  # of the true action: "move", ...
        pa.field("success", pa.bool_(), nullable=False),
        pa.field("copy", pa.bool_()),  # FDP only: the frame shows the source state
    ]
)
"""What an arm does on the held-out scenes of its seed, greedy decoding."""

VERIFIED_SCHEMA = pa.schema(
    [
        pa.field("pair_id", pa.string(), nullable=False),
        pa.field("temperature", pa.float64(), nullable=False),
        pa.field("greedy_right", pa.bool_(), nullable=False),
        pa.field("right", pa.list_(pa.bool_()), nullable=False),  # [N]
        pa.field("copy", pa.list_(pa.bool_()), nullable=False),  # [N]
        pa.field("action_logprob", pa.list_(pa.float64()), nullable=False),  # [N], IDM
        pa.field("copy_logprob", pa.float64(), nullable=False),  # IDM, of the unchanged frame
        pa.field("frame_logprob", pa.list_(pa.float64()), nullable=False),  # [N], FDP
    ]
)
"""N candidates a scene with what every verifier needs; any N up to it is a subset."""

WEIGHTS = (0.0, 0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Of the IDM's log-likelihood beside the FDP's, tried when a weight is fitted."""

NUM_CALIBRATION_PAIRS = 600
FULL_LEARNING_RATE = 4e-3
"""Of AdamW on all weights: the best for the FDP of 0.5e-3, 2e-3 and 4e-3, the IDM has no preference
between the last two (docs/LOG.md)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Study:
    """One seed of the study."""

    cfg: LoopConfig
    """With the seed and the run folder of this seed."""
    plan: StudyPlan
    root: Path
    """Absolute; ``run/`` is the loop's run folder, ``units/`` holds the rest."""

    @property
    def run(self) -> RunFolder:
        """The loop's run folder."""
        return RunFolder(self.root / "run")

    def unit(self, name: str) -> Path:
        """Folder of a unit's results."""
        return self.root / "units" / name

    def is_done(self, name: str) -> bool:
        """Whether a unit was finished, by this process or an earlier one."""
        return (self.unit(name) / "done.json").is_file()

    def models(self, round_id: int) -> ModelRef:
        """The adapters of a finished round."""
        folder = self.run.round(round_id)
        return model_ref(self.cfg.base_path(), folder / "idm", folder / "fdp")


def study_of(cfg: LoopConfig, plan: StudyPlan, folder: Path, seed: int) -> Study:
    """The study of one seed below ``folder``."""
    root = folder / f"seed-{seed}"
    serve = cfg.serve.model_copy(update={"enabled": False})
    # A bad round is a finding here, not a reason to stop.
    guards = cfg.guards.model_copy(update={"accept": get_args(GuardName)})
    where = {"seed": seed, "run_dir": root / "run"}
    own = cfg.model_copy(update={**where, "serve": serve, "guards": guards})
    return Study(cfg=own, plan=plan, root=root)


def run_unit(study: Study, unit: Unit) -> None:
    """Do a unit's work in this process; its ``done.json`` is the last write."""
    torch.set_num_threads(1)
    folder = study.unit(unit.name)
    if study.is_done(unit.name):
        return
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[unit.kind](study, unit.arm, folder)
    write_json(folder / "done.json", {"unit": unit.name})


def _data(study: Study, arm: str, folder: Path) -> None:
    cfg = study.cfg
    images = load_image_tokenizer(cfg.model.family, cfg.base_path())
    with study.run.claimed(cfg):
        prepare(cfg, study.run, images, lambda done, total, what: None)


def _loop(study: Study, arm: str, folder: Path) -> None:
    with study.run.claimed(study.cfg):
        run_rounds(study.cfg, LocalStages(study.cfg, study.run.root))


def _control(study: Study, arm: str, folder: Path) -> None:
    name, task = _arm_and_task(arm)
    rows = _seed(study)
    if name == "true_labels":
        rows = pa.concat_tables([rows, _true_pool(study)])
    steps = control_steps(study.cfg.train.of(task), study.cfg.rounds)
    _fit_and_judge(study, folder, task, rows, steps, seed_parts=("control", name))


def _size(study: Study, arm: str, folder: Path) -> None:
    name, task = _arm_and_task(arm)
    rows = _first_labelled(study, int(name))
    steps = study.cfg.train.of(task).seed_steps
    _fit_and_judge(study, folder, task, rows, steps, seed_parts=("size", name))


def _scores(study: Study, arm: str, folder: Path) -> None:
    """Round 1's labels as the paper makes them, greedily, with every score."""
    idm, fdp = load_pair(study.models(0), study.cfg.model)
    pool = read_table(_refs(study).pool, PAIR_SCHEMA)
    sampled, by_fdp = (
        Labeller(idm, fdp, _with_score(study.cfg, score), fdp.model.images).label(pool, 1)
        for score in ("agreement", SCORES_BY_FDP[0])
    )
    labels = sampled
    for score in SCORES_BY_FDP:  # one pass measures them all
        column = f"score_{score}"
        place = labels.schema.get_field_index(column)
        labels = labels.set_column(place, LABEL_SCHEMA.field(column), by_fdp[column])
    write_table(folder / "labels.parquet", labels, LABEL_SCHEMA)


def _filter(study: Study, arm: str, folder: Path) -> None:
    seed = _seed(study)
    rows = seed if arm == "nothing" else _filtered(study, arm, seed)
    cfg = study.cfg
    init = study.run.round(0) / "fdp" if cfg.train.init == "previous" else None
    _fit_and_judge(
        study,
        folder,
        "fdp",
        rows,
        cfg.train.of("fdp").round_steps,
        seed_parts=("filter", arm),
        init=init,
    )


def _filtered(study: Study, arm: str, seed: pa.Table) -> pa.Table:
    if arm == "true_labels":
        return pa.concat_tables([seed, _true_pool(study)])
    labels = read_table(study.unit("scores") / "labels.parquet", LABEL_SCHEMA)
    pool = read_table(_refs(study).pool, PAIR_SCHEMA)
    return grow(seed, pool, labels, decisions_of(arm, labels))


def decisions_of(arm: str, labels: pa.Table) -> pa.Table:
    """What a `FILTER_ARMS` entry keeps of LABEL_SCHEMA rows (DECISION_SCHEMA)."""
    if arm == "balanced_types":
        place = labels.schema.get_field_index("clip_class")
        kinds = pa.array([kind_of(action) for action in labels["action"].to_pylist()])
        labels = labels.set_column(place, LABEL_SCHEMA.field(place), kinds)
    return decide(labels, _filter_of(arm, labels.num_rows))


def _filter_of(arm: str, num_labels: int) -> FilterConfig:
    if arm == "all":
        return FilterConfig(score="mean_logprob", rule=TopFractionRule(fraction=1.0))
    if arm == "balanced_types":
        k = int(KEPT_FRACTION * num_labels)
        return FilterConfig(score="mean_logprob", rule=StratifiedTopKRule(k=k))
    score: ScoreName = next(name for name in SCORES if name == arm)
    return FilterConfig(score=score, rule=TopFractionRule(fraction=KEPT_FRACTION))


def _ablation(study: Study, arm: str, folder: Path) -> None:
    """Round 0 with one thing changed; its reference is the loop's round 0."""
    name, task = _arm_and_task(arm)
    train, base, steps = study.cfg.train, study.cfg.base_path(), study.cfg.train.of(task).seed_steps
    if name == "recognition_weights":
        train = train.model_copy(update={"recognition_weight": 1.0})
    elif name == "joint":
        steps *= 2  # as many as two adapters take together
    else:
        train = train.model_copy(update={"method": "full", "learning_rate": FULL_LEARNING_RATE})
    if name == "from_scratch":
        base = untrained_base(base, folder / "base", derive_seed(study.cfg.seed, "scratch"))
    _fit_and_judge(
        study, folder, task, _seed(study), steps, ("ablation", name), train=train, base=base
    )


def _verify(study: Study, arm: str, folder: Path) -> None:
    """Candidates of a round's FDP on held-out scenes, with both models' likelihoods."""
    round_id = int(arm)
    heldout = read_table(_refs(study).heldout, TRANSITION_SCHEMA)
    heldout = heldout.slice(0, study.plan.num_verified)
    states = _states(study)
    targets = [states[pair] for pair in heldout["pair_id"].to_pylist()]
    table = pa.concat_tables(
        [
            _candidates(study, round_id, heldout, targets, max(study.plan.best_of), temperature)
            for temperature in study.plan.temperatures
        ]
    )
    write_table(folder / "verified.parquet", table, VERIFIED_SCHEMA)


def _calibrate(study: Study, arm: str, folder: Path) -> None:
    """Fit the IDM's weight beside the FDP on pairs of the labelled seed.

    Right is what decodes to the state that the true next frame's codes decode to, so that it needs
    no more than labelled pairs.
    """
    seed = _seed(study).slice(0, NUM_CALIBRATION_PAIRS)
    images = load_image_tokenizer(study.cfg.model.family, study.cfg.base_path())
    reader = StateReader(images, study.cfg.world)
    sources, targets = (reader.read(codes_matrix(seed, f"{end}_codes")) for end in _ENDS)
    states = list(zip(sources, targets, strict=True))
    verified = _candidates(study, study.cfg.rounds, seed, states, 8, 1.0)
    right_BN, action_BN, frame_BN = (
        np.array(verified[name].to_pylist())
        for name in ("right", "action_logprob", "frame_logprob")
    )
    rows = np.arange(len(right_BN))
    success = {
        weight: float(right_BN[rows, (frame_BN + weight * action_BN).argmax(1)].mean())
        for weight in WEIGHTS
    }
    best = max(success.values())
    # Of equal ones the weight nearest to plain addition.
    weight = min((w for w in WEIGHTS if success[w] == best), key=lambda w: abs(np.log2(w or 1e-3)))
    payload = {"weight": weight, "success": {str(key): value for key, value in success.items()}}
    write_json(folder / "weight.json", payload)


KINDS: dict[str, Callable[[Study, str, Path], None]] = {
    "data": _data,
    "loop": _loop,
    "control": _control,
    "size": _size,
    "scores": _scores,
    "filter": _filter,
    "ablation": _ablation,
    "verify": _verify,
    "calibrate": _calibrate,
}

_ENDS = ("source", "target")


def untrained_base(base: Path, out: Path, seed: int) -> Path:
    """A checkpoint like ``base`` with its tokenizers, whose language model is at random weights."""
    fresh = out.with_name(out.name + ".new")
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(base, fresh, ignore=shutil.ignore_patterns("model*", "*.npy"))
    torch.manual_seed(seed)
    network = type(load_network(base))(load_network(base).config)
    network.save_pretrained(fresh)
    shutil.rmtree(out, ignore_errors=True)
    fresh.rename(out)
    return out


def _fit_and_judge(
    study: Study,
    folder: Path,
    task: FitTask,
    rows: pa.Table,
    steps: int,
    seed_parts: Sequence[str],
    *,
    train: TrainConfig | None = None,
    init: Path | None = None,
    base: Path | None = None,
) -> None:
    """Fit an arm and write what it does on the held-out scenes, one table a task."""
    cfg, base = study.cfg, base or study.cfg.base_path()
    grown = folder / "transitions.parquet"
    write_table(grown, rows, TRANSITION_SCHEMA)
    fitted = fit_adapter(
        FitJob(
            task=task,
            family=cfg.model.family,
            base=base,
            device=cfg.model.device,
            transitions=grown,
            steps=steps,
            train=train or cfg.train,
            seed=derive_seed(cfg.seed, *seed_parts, task),
            init_from=init,
            out=folder / "model",
            checkpoint_dir=folder / "checkpoint",
        )
    )
    grown.unlink()
    models = model_ref(base, fitted.adapter, fitted.adapter)
    tasks: tuple[Task, ...] = ("idm", "fdp") if task == "joint" else (task,)
    for one in tasks:
        write_table(folder / f"{one}.parquet", _judge(study, models, one), OUTCOME_SCHEMA)


def _judge(study: Study, models: ModelRef, task: Task) -> pa.Table:
    """OUTCOME_SCHEMA over the held-out scenes."""
    cfg = study.cfg
    heldout = read_table(_refs(study).heldout, TRANSITION_SCHEMA)
    actions, states = heldout["action"].to_pylist(), _states(study)
    pairs = [states[pair] for pair in heldout["pair_id"].to_pylist()]
    source_BL, target_BL = (codes_matrix(heldout, f"{end}_codes") for end in _ENDS)
    copies: list[bool | None] = [None] * len(pairs)
    if task == "idm":
        idm = load_idm(models, cfg.model)
        said = idm.label(source_BL, target_BL, max_action_tokens=cfg.label.max_action_tokens)
        ok = [
            outcome(caption.action, source) == target
            for caption, (source, target) in zip(said, pairs, strict=True)
        ]
    else:
        fdp = load_fdp(models, cfg.model)
        drawn = fdp.generate(
            source_BL, actions, num_samples=1, temperature=0.0, seeds=[0] * len(actions)
        )
        shown = StateReader(fdp.model.images, cfg.world).read(drawn.codes[:, 0])
        ok = [state == target for state, (_, target) in zip(shown, pairs, strict=True)]
        copies = [state == source for state, (source, _) in zip(shown, pairs, strict=True)]
    columns = [heldout["pair_id"], list(map(kind_of, actions)), ok, copies]
    return pa.table(columns, schema=OUTCOME_SCHEMA)


def _candidates(
    study: Study,
    round_id: int,
    pairs: pa.Table,
    states: Sequence[tuple[str, str]],
    num_samples: int,
    temperature: float,
) -> pa.Table:
    """VERIFIED_SCHEMA: candidates of a round's models on TRANSITION_SCHEMA rows."""
    cfg = study.cfg
    idm, fdp = load_pair(study.models(round_id), cfg.model)
    reader = StateReader(fdp.model.images, cfg.world)
    pair_ids, actions = pairs["pair_id"].to_pylist(), pairs["action"].to_pylist()
    source_BL = codes_matrix(pairs, "source_codes")
    greedy = fdp.generate(
        source_BL, actions, num_samples=1, temperature=0.0, seeds=[0] * len(actions)
    )
    seeds = [derive_seed(cfg.seed, "verify", round_id, str(temperature), p) for p in pair_ids]
    drawn = fdp.generate(
        source_BL, actions, num_samples=num_samples, temperature=temperature, seeds=seeds
    )
    evidence = gather_evidence(source_BL, actions, drawn, idm)
    flat = reader.read(drawn.codes.reshape(-1, drawn.codes.shape[-1]))
    shown = [flat[i : i + num_samples] for i in range(0, len(flat), num_samples)]
    columns = {
        "pair_id": pair_ids,
        "temperature": [temperature] * len(pair_ids),
        "greedy_right": [
            state == target
            for state, (_, target) in zip(reader.read(greedy.codes[:, 0]), states, strict=True)
        ],
        "right": [
            [s == target for s in row] for row, (_, target) in zip(shown, states, strict=True)
        ],
        "copy": [
            [s == source for s in row] for row, (source, _) in zip(shown, states, strict=True)
        ],
        "action_logprob": evidence.action.tolist(),
        "copy_logprob": evidence.action_of_copy.tolist(),
        "frame_logprob": evidence.frame.tolist(),
    }
    return pa.table(columns, schema=VERIFIED_SCHEMA)


def _refs(study: Study) -> DataRefs:
    return prepared(study.run)


def _seed(study: Study) -> pa.Table:
    return read_table(_refs(study).seed, TRANSITION_SCHEMA)


def _true_pool(study: Study) -> pa.Table:
    refs = _refs(study)
    assert refs.truth is not None  # the study's pool is filmed
    return label_truly(read_table(refs.pool, PAIR_SCHEMA), read_table(refs.truth, TRUTH_SCHEMA))


def _states(study: Study) -> dict[str, tuple[str, str]]:
    """Source and target state of every pair whose truth is known."""
    refs = _refs(study)
    assert refs.truth is not None
    names = ("pair_id", "source_state", "target_state")
    columns = (read_table(refs.truth, TRUTH_SCHEMA)[name].to_pylist() for name in names)
    return {pair: (source, target) for pair, source, target in zip(*columns, strict=True)}


def _first_labelled(study: Study, size: int) -> pa.Table:
    """``size`` truly labelled pairs; smaller sets are part of larger ones.

    Beyond the labelled seed they come from the pool, with its true labels.
    """
    seed = _seed(study)
    order = numpy_rng(study.cfg.seed, "sizes").permutation(seed.num_rows)
    rows = seed.take(order[:size])
    if size > seed.num_rows:
        more = _true_pool(study).slice(0, size - seed.num_rows)
        origin = pa.array(["seed"] * more.num_rows, pa.string())
        more = more.set_column(more.schema.get_field_index("origin"), "origin", origin)
        rows = pa.concat_tables([rows, more.cast(TRANSITION_SCHEMA)])
    return rows


def _with_score(cfg: LoopConfig, score: str) -> LoopConfig:
    """Labels greedily and measures one score."""
    label = cfg.label.model_copy(update={"candidates": 1})
    chosen = cfg.filter.model_copy(update={"score": score})
    return cfg.model_copy(update={"label": label, "filter": chosen})


def _arm_and_task(arm: str) -> tuple[str, FitTask]:
    """``4096-idm`` to its parts."""
    name, _, task = arm.rpartition("-")
    if task == "joint":
        return name, "joint"
    return name, "idm" if task == "idm" else "fdp"
