import json
import sys
from dataclasses import astuple, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from pydantic import ValidationError
from torch import Tensor, nn

from dynamics.core.config import LoraConfig, ModelConfig, TrainConfig
from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.inference.load import load_pair, model_ref
from dynamics.models.chameleon import load_network
from dynamics.models.tokens import IGNORE, Rows
from dynamics.storage import pairs
from dynamics.storage.files import checkpoint_digest
from dynamics.storage.pairs import write_pairs
from dynamics.storage.tables import codes_matrix, read_table
from dynamics.training import validation
from dynamics.training.backend import PlainEngine
from dynamics.training.batches import Batch, Batches, FitJob
from dynamics.training.fit import WorkerContext, _micro_batches, fit_adapter, learning_rate
from dynamics.training.objectives import OBJECTIVES, objective
from dynamics.training.objectives.nll import recognition_weights
from dynamics.training.trainable import trainable_model

TRAIN = TrainConfig(batch_size=6, checkpoint_every=4, warmup_steps=2, lora=LoraConfig(r=4, alpha=8))


def transitions(folder: Path, num_pairs: int = 12, num_new: int = 12) -> Path:
    rng = np.random.default_rng(0)
    rows = []
    for index in range(num_pairs + num_new):
        codes = rng.integers(0, 500, size=(2, 9)).tolist()
        rows.append(
            {
                "pair_id": f"{index:032d}", "clip_sha256": "0" * 64, "clip_path": "a.mp4",
                "clip_class": "", "frame0": 0, "frame1": 1, "t0_s": 0.0, "t1_s": 1.0,
                "motion": 0.1, "source_codes": codes[0], "target_codes": codes[1],
                "recognition": rng.random(9).tolist(), "action": "push the red ring left",
                "origin": "labelled" if index < num_pairs else f"label{index}",
            }
        )  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=TRANSITION_SCHEMA)
    return write_pairs(folder / "rows.parts", table, TRANSITION_SCHEMA, folder / "codes").path


def fit_job(base: Path, folder: Path, train: TrainConfig, steps: int) -> FitJob:
    return FitJob(
        task="fdp",
        family="chameleon",
        base=base,
        device="cpu",
        transitions=transitions(folder),
        steps=steps,
        train=train,
        seed=3,
        init_from=None,
        out=folder / "fdp",
        checkpoint_dir=folder / "checkpoint",
    )


@pytest.fixture
def job(untrained_base: Path, tmp_path: Path) -> FitJob:
    return fit_job(untrained_base, tmp_path, TRAIN, steps=10)


class KilledError(Exception):
    pass


@pytest.mark.parametrize("task", ["fdp", "idm"])
def test_a_killed_fit_resumes_to_the_same_bytes(job: FitJob, tmp_path: Path, task: Any) -> None:
    calm = fit_adapter(replace(job, task=task, out=tmp_path / "calm"))

    def die(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if checkpoint is not None and step == 8:
            raise KilledError

    killed = replace(job, task=task, out=tmp_path / "killed")
    with pytest.raises(KilledError):
        fit_adapter(killed, WorkerContext(report=die))
    assert not killed.out.exists()
    resumed = fit_adapter(killed)
    assert checkpoint_digest(resumed.adapter) == checkpoint_digest(calm.adapter)
    assert resumed.loss == calm.loss
    assert not killed.checkpoint_dir.exists()


def few(job: FitJob, folder: Path) -> FitJob:
    """Pairs of six clips whose sentences say nothing: all that can be learnt is by heart."""
    rng = np.random.default_rng(1)
    table = read_table(job.transitions, TRANSITION_SCHEMA).slice(0, 12)
    files = pa.array([f"{number // 2:064x}" for number in range(12)])
    clips = pa.array([f"{number // 2}.mp4" for number in range(12)])
    said = pa.array(rng.choice(["push the red ring left", "remove the blue square"], 12).tolist())
    for name, values in (("clip_sha256", files), ("clip_path", clips), ("action", said)):
        place = table.column_names.index(name)
        table = table.set_column(place, table.schema.field(name), values)
    train = TRAIN.model_copy(
        update={"validation_fraction": 0.3, "learning_rate": 0.01, "checkpoint_every": 15}
    )
    rows = write_pairs(folder / "few.parts", table, TRANSITION_SCHEMA, folder / "codes")
    return replace(job, task="idm", transitions=rows.path, steps=400, train=train)


def test_a_fit_on_few_labels_ends_where_left_out_clips_get_worse_and_resumes_to_it(
    job: FitJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(validation, "LOOK_EVERY", 5)
    monkeypatch.setattr(validation, "PATIENCE", 3)
    one = few(job, tmp_path)
    seen: list[tuple[int, float]] = []

    def note(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        seen.append((step, metrics.get("validation_loss", 9.9)))

    calm = fit_adapter(replace(one, out=tmp_path / "calm"), WorkerContext(report=note))
    assert calm.steps % 5 == 0
    assert calm.steps <= seen[-1][0] < 400
    losses = [loss for _, loss in seen]
    assert losses == sorted(losses, reverse=True)

    def die(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            raise KilledError

    killed = replace(one, out=tmp_path / "killed")
    with pytest.raises(KilledError):
        fit_adapter(killed, WorkerContext(report=die))
    assert checkpoint_digest(fit_adapter(killed).adapter) == checkpoint_digest(calm.adapter)


def test_clips_that_validate_are_in_no_batch_nor_are_accepted_labels_of_them(
    job: FitJob, tmp_path: Path
) -> None:
    one = few(job, tmp_path)
    labelled = table = read_table(one.transitions, TRANSITION_SCHEMA)
    # The clip by its name, by its name in a pool of several folders, by its digest alone.
    for path, digest in (("{}", "other"), ("pool/{}", "other"), ("x{}", "{}")):
        accepted = labelled
        for name, text in (("origin", "label"), ("clip_path", path), ("clip_sha256", digest)):
            place = table.column_names.index(name)
            values = pa.array([text.format(value) for value in labelled[name].to_pylist()])
            accepted = accepted.set_column(place, table.schema.field(name), values)
        table = pa.concat_tables([table, accepted])
    rows = write_pairs(tmp_path / "two.parts", table, TRANSITION_SCHEMA, tmp_path / "codes")
    batches = Batches(replace(one, transitions=rows.path), trainable_model(one), objective("nll"))
    left = sum(len(rows.ids) for _, rows in batches.left_out())
    used = {row for step in range(80) for row in batches.rows_of(step).tolist()}
    assert (left, len(used)) == (4, 8 + 3 * 8)
    assert len({row % 12 for row in used}) == 8  # the same clips of each


def test_a_finished_fit_is_not_repeated(job: FitJob) -> None:
    first = fit_adapter(job)
    stamp = (job.out / "fit.json").stat().st_mtime_ns
    assert fit_adapter(job) == first
    assert (job.out / "fit.json").stat().st_mtime_ns == stamp


def test_fitting_lowers_the_loss_and_leaves_the_base_alone(job: FitJob) -> None:
    before = checkpoint_digest(job.base)
    losses: list[float] = []
    context = WorkerContext(report=lambda step, metrics, _: losses.append(metrics["loss"]))
    fit_adapter(
        replace(job, steps=60, train=TRAIN.model_copy(update={"checkpoint_every": 999})), context
    )
    assert losses[-1] < losses[0]
    assert checkpoint_digest(job.base) == before


class Recorder(PlainEngine):
    """Keeps the first gradient instead of stepping."""

    gradients: list[Tensor]

    def __init__(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        super().__init__(module, optimizer)
        self.gradients = []

    def step(self) -> None:
        parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
        self.gradients = [
            torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in parameters
        ]
        self._optimizer.zero_grad()


def gradient(job: FitJob, rank: int, world_size: int) -> list[Tensor]:
    engines: list[Recorder] = []

    def make(module: nn.Module, optimizer: torch.optim.Optimizer) -> Recorder:
        engines.append(Recorder(module, optimizer))
        return engines[0]

    out = job.out.with_name(f"{rank}of{world_size}")
    fit_adapter(
        replace(job, steps=1, out=out),
        WorkerContext(rank=rank, world_size=world_size, make_engine=make),
    )
    return engines[0].gradients


@pytest.mark.parametrize("task", ["fdp", "idm"])
@pytest.mark.parametrize(
    ("world_size", "rows", "most"),
    [(2, 6, None), (2, 5, 1), (3, 5, 2), pytest.param(3, 2, None, id="a worker without rows")],
)
def test_gradients_do_not_depend_on_the_number_of_workers(
    job: FitJob, task: Any, world_size: int, rows: int, most: int | None
) -> None:
    changes = {"batch_size": rows, "micro_batch_rows": most, "recognition_weight": 1.0}
    job = replace(job, task=task, train=TRAIN.model_copy(update=changes))
    whole = gradient(job, 0, 1)
    parts = [gradient(job, rank, world_size) for rank in range(world_size)]
    for one, *shares in zip(whole, *parts, strict=True):
        # DDP averages what the workers have.
        assert torch.allclose(one, sum(shares) / world_size, atol=1e-6)


@pytest.mark.parametrize(("world_size", "rows", "most"), [(2, 5, 1), (3, 2, None), (3, 4, 1)])
def test_all_workers_take_equally_many_micro_batches(
    world_size: int, rows: int, most: int | None
) -> None:
    ids = torch.arange(rows)[:, None]
    batch = Rows(ids, ids.clone())
    contexts = [WorkerContext(rank=rank, world_size=world_size) for rank in range(world_size)]
    parts = [list(_micro_batches(batch, None, context, most)) for context in contexts]
    assert len({len(mine) for mine in parts}) == 1
    scored = [row for mine in parts for part, _ in mine for row in part.labels.flatten().tolist()]
    assert sorted(row for row in scored if row != IGNORE) == list(range(rows))


def test_both_adapters_sit_on_one_base_and_do_not_mix(job: FitJob, tmp_path: Path) -> None:
    fdp_folder = fit_adapter(job).adapter
    idm_folder = fit_adapter(replace(job, task="idm", out=tmp_path / "idm")).adapter
    shared = ModelConfig(merge_adapters=False)
    idm, fdp = load_pair(model_ref(job.base, idm_folder, fdp_folder), shared)
    codes = np.random.default_rng(1).integers(0, 500, size=(2, 2, 9))
    actions = ["push the red ring left"] * 2
    frame = fdp.frame_logprobs(codes[0], actions, codes[1])
    action = idm.action_logprobs(codes[0], codes[1], actions)
    assert (fdp.frame_logprobs(codes[0], actions, codes[1]) == frame).all()
    assert (idm.action_logprobs(codes[0], codes[1], actions) == action).all()
    captions = idm.label(codes[0], codes[1], max_action_tokens=12)
    assert all(sum(c.token_logprobs) <= 0 for c in captions)


def test_merged_adapters_compute_what_shared_ones_do(job: FitJob, tmp_path: Path) -> None:
    train = TRAIN.model_copy(update={"checkpoint_every": 999})
    job = replace(job, steps=60, train=train)
    fdp_folder = fit_adapter(job).adapter
    idm_folder = fit_adapter(replace(job, task="idm", out=tmp_path / "idm")).adapter
    models = model_ref(job.base, idm_folder, fdp_folder)
    codes = np.random.default_rng(1).integers(0, 500, size=(2, 4, 9))
    actions = ["push the red ring left"] * 4
    found = []
    for merge in (True, False):
        idm, fdp = load_pair(models, ModelConfig(merge_adapters=merge))
        action = idm.action_logprobs(codes[0], codes[1], actions)
        found.append((action, fdp.frame_logprobs(codes[0], actions, codes[1])))
    for merged, shared in zip(*found, strict=True):
        assert np.allclose(merged, shared, rtol=1e-4)


def test_full_fine_tuning_writes_a_checkpoint_that_loads_without_its_base(job: FitJob) -> None:
    full = replace(job, train=TRAIN.model_copy(update={"method": "full", "learning_rate": 1e-3}))
    folder = fit_adapter(full).adapter
    before, after = (load_network(path).state_dict() for path in (job.base, folder))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert any("q_proj" in name for name in changed)
    assert not any("vqmodel" in name for name in changed)
    elsewhere = model_ref(job.base, folder, folder)
    _, fdp = load_pair(elsewhere, ModelConfig())
    codes = np.zeros((1, 9), dtype=np.int64)
    assert fdp.frame_logprobs(codes, ["push the red ring left"], codes)[0] < 0


def test_a_killed_full_fit_resumes_to_the_same_weights(job: FitJob, tmp_path: Path) -> None:
    full = replace(job, train=TRAIN.model_copy(update={"method": "full", "learning_rate": 1e-3}))
    calm = fit_adapter(replace(full, out=tmp_path / "calm"))

    def stop(step: int, metrics: dict[str, float], checkpoint: Path | None) -> None:
        if checkpoint is not None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fit_adapter(full, WorkerContext(report=stop))
    assert checkpoint_digest(fit_adapter(full).adapter) == checkpoint_digest(calm.adapter)


def test_a_joint_fit_takes_both_tasks_in_turn(job: FitJob) -> None:
    joint = replace(job, task="joint")
    batches = Batches(joint, trainable_model(joint), objective("nll"))
    assert [batches.task_of(step) for step in range(4)] == ["idm", "fdp", "idm", "fdp"]
    lengths = [int((batches.batch(step)[0].labels != IGNORE).sum()) for step in range(2)]
    assert lengths[1] == TRAIN.batch_size * 9  # every code of every frame
    assert lengths[0] != lengths[1]
    assert fit_adapter(joint).steps == job.steps


def test_batches_hold_the_asked_share_of_the_labelled_set(job: FitJob) -> None:
    from dynamics.models import load_model
    from dynamics.training.batches import Batches

    batches = Batches(
        replace(job, train=TRAIN.model_copy(update={"labelled_fraction": 0.5})),
        load_model("chameleon", job.base),
        objective("nll"),
    )
    rows = batches.rows_of(0)
    assert (rows < 12).sum() == 3
    assert (batches.rows_of(0) == rows).all()
    assert (batches.rows_of(1) != rows).any()


def test_a_share_of_the_fdps_rows_is_trained_without_its_action(job: FitJob) -> None:
    model = trainable_model(job)
    found = {}
    for share in (0.0, 0.5):
        train = TRAIN.model_copy(update={"action_dropout": share, "batch_size": 40})
        batches = Batches(replace(job, task="fdp", train=train), model, objective("nll"))
        found[share] = batches.batch(0)[0]
        assert torch.equal(batches.batch(0)[0].ids, found[share].ids)
    changed = (found[0.0].ids != found[0.5].ids).any(1)
    assert 10 < changed.sum() < 30
    plain = model.tokens.fdp_prompt(np.zeros((1, 9), np.int64), [None])[0]
    action = slice(2, 2 + model.tokens.prompts.action_tokens)
    assert (found[0.5].ids[changed, action] == plain[action]).all()
    assert torch.equal(found[0.0].labels, found[0.5].labels)


@pytest.mark.parametrize("task", ["idm", "fdp"])
def test_batches_are_the_rows_that_the_table_has_there(
    job: FitJob, tmp_path: Path, task: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pairs, "PART_ROWS", 7)
    monkeypatch.setattr(pairs, "_ROWS_WITH_CODES", 5)
    (tmp_path / "cut").mkdir()
    weighed = TRAIN.model_copy(update={"recognition_weight": 1.0})
    job = replace(job, task=task, train=weighed, transitions=transitions(tmp_path / "cut"))
    model = trainable_model(job)
    batches = Batches(job, model, objective("nll"))
    table = read_table(job.transitions, TRANSITION_SCHEMA)
    for step in range(12):
        rows = table.take(batches.rows_of(step))
        source_BL, target_BL = (codes_matrix(rows, f"{end}_codes") for end in ("source", "target"))
        actions = rows["action"].to_pylist()
        wanted = (
            model.tokens.idm_rows(source_BL, target_BL, actions)
            if task == "idm"
            else model.tokens.fdp_rows(source_BL, actions, target_BL)
        )
        found, weights = batches.batch(step)
        for one, other in zip(astuple(found), astuple(wanted), strict=True):
            assert torch.equal(one, other)
        if task == "fdp":
            recognition = torch.tensor(rows["recognition"].to_pylist())
            assert weights is not None
            assert torch.equal(
                weights[found.labels != IGNORE], recognition_weights(recognition, 1.0).flatten()
            )


def test_adapter_files_name_no_folder_of_the_machine(job: FitJob) -> None:
    config = json.loads((fit_adapter(job).adapter / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == job.base.name


def test_recognition_weights_have_mean_one_and_share_zero_is_uniform() -> None:
    recognition = torch.tensor([[0.0, 1.0, 3.0], [0.0, 0.0, 0.0]])
    weights = recognition_weights(recognition[:1], 1.0)
    assert torch.allclose(weights, torch.tensor([[0.0, 0.75, 2.25]]))
    assert (recognition_weights(recognition, 0.0) == 1).all()


def test_an_objective_is_one_module_and_one_line(
    job: FitJob, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def labelled_only(batch: Batch, rows: Rows, task: str, train: TrainConfig) -> Tensor:
        counts = torch.from_numpy(batch.is_labelled)
        return counts[:, None].expand(rows.labels.shape).float()

    module = ModuleType("labelled_only")
    vars(module).update(weights=labelled_only, losses=objective("nll").losses)
    monkeypatch.setitem(sys.modules, "labelled_only", module)
    monkeypatch.setitem(OBJECTIVES, "labelled_only", "labelled_only")
    settings = TRAIN.model_dump() | {"objective": "labelled_only", "batch_size": 12}
    for task in ("idm", "fdp"):
        losses = []
        for share in (0.0, 0.5):
            train = TrainConfig.model_validate(settings | {"labelled_fraction": share})
            out = tmp_path / f"{task}-{share}"
            one = replace(job, task=task, train=train, steps=1, out=out)
            losses.append(fit_adapter(one).loss)
        assert losses[0] == 0 < losses[1]
    with pytest.raises(ValidationError, match="'nlll' is unknown; did you mean nll"):
        TrainConfig(objective="nlll")


def test_learning_rate_warms_up_and_ends_near_zero() -> None:
    rates = [learning_rate(TRAIN, step, 100) for step in range(100)]
    assert rates[0] < rates[1] < rates[2]
    assert max(rates) <= TRAIN.learning_rate
    assert rates[-1] < 0.01 * TRAIN.learning_rate
