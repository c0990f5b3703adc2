"""The plan against numbers from a pocket calculator, and against the bytes of the tiny base."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from typer.testing import CliRunner

from dynamics.cli.main import app
from dynamics.core.config import REPOSITORY_ROOT, LoopConfig, TrackConfig
from dynamics.core.config_file import load
from dynamics.core.errors import UserError
from dynamics.models.chameleon import PROMPTS as CHAMELEON_PROMPTS
from dynamics.models.liquid import PROMPTS as LIQUID_PROMPTS
from dynamics.models.tokens import Prompts
from dynamics.plan import Plan, make_plan
from dynamics.plan.cluster import Cluster, Node, read_cluster
from dynamics.plan.disk import disk_bytes
from dynamics.plan.flops import forward_flops, label_flops, task_plan, training_flops
from dynamics.plan.hours import Speed, card_speed
from dynamics.plan.memory import OVERHEAD_BYTES, Stage, Strategy, inference_memory, training_memory
from dynamics.plan.sizes import PUBLISHED, Sizes, base_sizes
from dynamics.plan.table import verdict
from dynamics.storage.run_folder import RunFolder
from dynamics.training.batches import FitJob
from dynamics.training.fit import fit_adapter
from dynamics.training.loss import RowLoss, Task
from dynamics.training.objectives import objective
from dynamics.training.trainable import adapter_config, trainable_model
from tests.runs import LocalRun
from tests.unit.training.test_fit import transitions

ROOT = REPOSITORY_ROOT
TABLETOP, CHAMELEON, LIQUID = (
    ROOT / "configs" / f"{name}.yaml" for name in ("tabletop", "chameleon7b", "liquid7b")
)
GPU_MEASURED = ROOT / "benchmarks" / "results" / "gpu-2026-11-27.json"
SPEED = Speed(tflops=790, utilisation=0.4, bandwidth=3.35e12)

LAYER = (
    4 * 4096**2 + 3 * 4096 * 11008 + 2 * 4096 + 4 * 4096
)  # matrices, two norms, norms of q and k
"""Parameters of a layer of Chameleon-7B: matrices, two norms, and norms of q and k with bias."""


_known: dict[str, Sizes] = {}


def shared_sizes(cfg: LoopConfig) -> Sizes:
    """Sizes of a base, counted once: seconds for a network of billions of parameters."""
    return _known.setdefault(cfg.model.family, _known.get(cfg.model.family) or base_sizes(cfg))


@pytest.fixture(scope="module")
def chameleon() -> tuple[LoopConfig, Sizes]:
    cfg = load(CHAMELEON)
    return cfg, shared_sizes(cfg)


def test_chameleon_has_the_parameters_of_its_shapes(chameleon: tuple[LoopConfig, Sizes]) -> None:
    _, sizes = chameleon
    assert sizes.layers == 32 * LAYER == 6_476_791_808
    assert sizes.total == 32 * LAYER + 2 * 65536 * 4096 + 4096 + sizes.image_tokenizer
    assert sizes.image_tokenizer == 29_423_616  # what the published VQ encoder has
    # LoRA of rank 16: 16 x (in + out) on four matrices of 4096 x 4096 and three of 4096 x 11008.
    lora = 32 * 16 * (4 * 2 * 4096 + 3 * (4096 + 11008))
    assert sizes.trainable == sizes.adapter_linear == lora == 39_976_960
    assert sizes.largest_layer == LAYER + lora // 32


def test_trained_embeddings_and_head_are_counted() -> None:
    sizes = base_sizes(load(CHAMELEON, ["train.lora.train_embeddings=true"]))
    assert sizes.saved_modules == 2 * 65536 * 4096
    assert sizes.trainable == 39_976_960 + 2 * 65536 * 4096


def test_liquid_counts_its_tied_embeddings_once() -> None:
    sizes = base_sizes(load(LIQUID))
    layer = 4 * 3072 * 4096 + 3 * 3072 * 24576 + 2 * 3072
    assert sizes.total == 28 * layer + 264192 * 3072 + 3072 == 8_562_846_720
    assert sizes.attention_width == 4096


def test_a_chameleon_row_is_two_frames_and_the_words(chameleon: tuple[LoopConfig, Sizes]) -> None:
    cfg, sizes = chameleon
    assert sizes.fdp_tokens == 21 + 40 + 1026 + 1 + 1023
    assert sizes.idm_tokens == 21 + 2 * 1026 + 40
    assert task_plan(cfg, sizes, "fdp", 4).tokens_per_step == 96 * 2111
    assert task_plan(cfg, sizes, "idm", 4).steps == 23309 + 26591


@pytest.mark.parametrize(
    ("base", "prompts"),
    [
        ("anole-7b", CHAMELEON_PROMPTS),
        ("chameleon-7b", CHAMELEON_PROMPTS),
        ("liquid-7b", LIQUID_PROMPTS),
    ],
)
def test_published_sizes_have_the_words_of_the_prompts(base: str, prompts: Prompts) -> None:
    """A word, a mark, a line break and a control token are a token each; bos comes before them."""
    sizes = json.loads((PUBLISHED / f"{base}.json").read_text())
    assert sizes["action_tokens"] == prompts.action_tokens
    texts = [re.sub(r"{source}|{target}|{action}", "", text) for text in prompts.idm]
    longest = max(len(re.findall(r"{<\w+>}|\w+|[^\w ]", text)) for text in texts)
    assert sizes["instruction_tokens"] == 1 + longest


def test_flops_are_the_ones_worked_out_by_hand(chameleon: tuple[LoopConfig, Sizes]) -> None:
    cfg, sizes = chameleon
    # Two per weight; attention 4 x 32 layers x 4096 x half of the row.
    assert forward_flops(sizes, 2100) / 2100 == pytest.approx(2 * 6.4768e9 + 0.5505e9, rel=1e-4)
    assert forward_flops(sizes, 2060) == pytest.approx(27.8e12, rel=0.01)  # a prompt of two frames
    # Forward 13.5, the gradient of the layers' inputs 12.95 + 2 x 0.55, adapters 3 x 0.08, and a
    # head that sees 1,024 positions and 8,192 columns: 28 GFLOP a token.
    trained = training_flops(cfg, sizes, "fdp") / sizes.fdp_tokens
    assert trained == pytest.approx(13.507e9 + 14.06e9 + 0.24e9 + 0.065e9, rel=2e-3)
    again = cfg.model_copy(
        update={"train": cfg.train.model_copy(update={"gradient_checkpointing": True})}
    )
    more = training_flops(again, sizes, "fdp") - training_flops(cfg, sizes, "fdp")
    assert more == forward_flops(sizes, sizes.fdp_tokens)


def test_full_fine_tuning_costs_three_forwards(chameleon: tuple[LoopConfig, Sizes]) -> None:
    cfg, _ = chameleon
    full = cfg.model_copy(update={"train": cfg.train.model_copy(update={"method": "full"})})
    sizes = base_sizes(full)
    assert sizes.trainable == sizes.total - sizes.image_tokenizer
    forward = forward_flops(sizes, sizes.fdp_tokens) + 2 * 1024 * 4096 * 8192
    assert training_flops(full, sizes, "fdp") == pytest.approx(3 * forward)


@pytest.mark.parametrize(
    ("strategy", "weights", "states"),
    [
        # 7,043,090,432 frozen parameters of 2 bytes, 39,976,960 trained ones of 4.
        ("ddp", 14_086_180_864 + 159_907_840, 479_723_520),
        ("deepspeed_zero2", 14_086_180_864 + 159_907_840, 239_861_760),
        # Halves, and two whole layers in bfloat16: 2 x 2 x (202,399,744 + 1,249,280).
        ("deepspeed_zero3", 7_123_044_352 + 814_596_096, 239_861_760),
        # The same, and embeddings, head and image tokenizer whole: 2 x 566,298,624.
        ("fsdp2", 7_123_044_352 + 814_596_096 + 1_132_597_248, 239_861_760),
    ],
)
def test_memory_of_two_workers_by_hand(
    chameleon: tuple[LoopConfig, Sizes], strategy: Strategy, weights: int, states: int
) -> None:
    cfg, sizes = chameleon
    plan = task_plan(cfg, sizes, "fdp", 2)
    found = training_memory(cfg, sizes, plan, strategy, 2)
    assert found.weights == weights
    assert found.gradients + found.optimizer == states
    # 8.8 MB a token, and the logits of a row: 1,024 x 8,192 x 10 bytes.
    layer = 2 * (10 * 4096 + 4 * 11008) + 12 * 4096 + round(1.6 * (6 * 4096 + 11008))
    a_row = 2111 * 32 * layer + 1024 * 8192 * 10
    assert found.activations == 3 * a_row
    assert found.total == found.activations + weights + states + OVERHEAD_BYTES


def machines(text: str) -> Cluster:
    found = read_cluster(text)
    assert found is not None
    return found


def planned(config: str, cluster: str, *overrides: str) -> Plan:
    card = machines(cluster).card
    assert card is not None
    return planned_at(load(ROOT / "configs" / config, overrides), cluster, card_speed(card))


def planned_at(cfg: LoopConfig, cluster: str, speed: Speed = SPEED) -> Plan:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamics.plan.base_sizes", shared_sizes)
        return make_plan(cfg, machines(cluster), speed)


@pytest.mark.parametrize(
    ("config", "cluster"),
    [
        ("chameleon7b.yaml", "4xp5.4xlarge"),
        ("liquid7b.yaml", "4xp5.4xlarge"),
        ("chameleon7b-80gb.yaml", "p5.4xlarge"),
        ("chameleon7b-24gb.yaml", "g6.2xlarge"),
    ],
)
def test_a_config_fits_the_machines_that_it_is_for(config: str, cluster: str) -> None:
    made = planned(config, cluster)
    assert not made.lacking
    assert verdict(made).startswith(f"fits {cluster}: ")


def test_the_overrides_of_the_verdict_make_it_fit() -> None:
    made = planned("chameleon7b.yaml", "g6e.12xlarge")
    assert {check.what for check in made.lacking} == {"train"}
    overrides = [override for check in made.lacking for override in check.overrides]
    assert all(override in verdict(made) for override in overrides)
    assert not planned("chameleon7b.yaml", "g6e.12xlarge", *overrides).lacking
    section, largest = overrides[0].split("=")
    more = [f"{section}={int(largest) + 1}", *overrides[1:]]
    assert planned("chameleon7b.yaml", "g6e.12xlarge", *more).lacking


def test_batches_are_those_that_the_budgets_cut_to_the_card(
    chameleon: tuple[LoopConfig, Sizes],
) -> None:
    cfg, sizes = chameleon
    room = 44 * 2**30
    stages: tuple[Stage, ...] = "label", "evaluate", "serve"
    for stage in stages:
        assert (
            inference_memory(cfg, sizes, stage, room) <= room < inference_memory(cfg, sizes, stage)
        )
    one, many = (
        planned("chameleon7b.yaml", "g6e.12xlarge", f"label.batch_size={rows}").hours["label"].wall
        for rows in (64, 512)
    )
    assert one == many


def test_a_float32_network_on_a_cpu_lies_in_memory_once_more_for_each_adapter(
    chameleon: tuple[LoopConfig, Sizes], monkeypatch: pytest.MonkeyPatch
) -> None:
    cfg, sizes = chameleon
    cfg = cfg.model_copy(update={"model": cfg.model.model_copy(update={"device": "cpu"})})
    small = replace(sizes, width=512, layers=40_000_000, total=60_000_000, weight_bytes=4)

    def more_than_unpacked(sizes: Sizes) -> int:
        found = inference_memory(cfg, sizes, "evaluate")
        with monkeypatch.context() as patch:
            patch.setattr("dynamics.plan.memory.MOST", 0)
            return found - inference_memory(cfg, sizes, "evaluate")

    assert more_than_unpacked(small) == 2 * 4 * 40_000_000
    assert more_than_unpacked(replace(small, width=96)) == 0
    assert more_than_unpacked(replace(small, weight_bytes=2)) == 0


def test_what_no_setting_mends_is_said(chameleon: tuple[LoopConfig, Sizes]) -> None:
    says = verdict(planned("chameleon7b.yaml", "g4dn.xlarge"))
    assert "evaluate: fewer samples in evaluate.best_of, or a larger card" in says
    assert "RAM (g4dn.xlarge)" not in verdict(planned("chameleon7b.yaml", "g5.12xlarge"))


def test_stages_take_the_memory_that_a_gpu_measured(chameleon: tuple[LoopConfig, Sizes]) -> None:
    """Chameleon-7B's shape with one adapter on an H100, `benchmarks/gpu.py`."""
    cfg, sizes = chameleon
    measured = json.loads(GPU_MEASURED.read_text())
    adapter = 4 * sizes.trainable

    def planned_bytes(stage: Stage, *overrides: str) -> float:
        one = load(CHAMELEON, overrides)
        held = {"label": 0, "evaluate": adapter, "ingest": 0}[stage]
        return inference_memory(one, sizes, stage) - OVERHEAD_BYTES - held

    for rows in (1, 2, 3):
        plan = replace(task_plan(cfg, sizes, "fdp", 1), micro_batch_rows=rows)
        found = training_memory(cfg, sizes, plan, "ddp", 1)
        # The benchmark takes no optimizer step.
        total = found.total - found.optimizer - OVERHEAD_BYTES
        assert total == pytest.approx(measured[f"train {rows} rows"]["bytes"], rel=0.03)
    for pairs in (8, 32):
        found_bytes = planned_bytes("label", f"label.batch_size={pairs}")
        assert found_bytes == pytest.approx(
            measured[f"label {pairs} pairs, 16 tokens"]["bytes"], rel=0.05
        )
    assert planned_bytes("ingest") == pytest.approx(measured["encode 16 frames"]["bytes"], rel=0.05)


def test_steps_take_the_time_that_a_gpu_measured(chameleon: tuple[LoopConfig, Sizes]) -> None:
    cfg, sizes = chameleon
    measured = json.loads(GPU_MEASURED.read_text())
    (node,) = machines("p5.4xlarge").nodes
    assert node.card is not None
    reached = card_speed(node.card).reached
    row = training_flops(cfg, sizes, "fdp") / reached
    assert 3 * row == pytest.approx(measured["train 3 rows"]["seconds"], rel=0.05)
    prefill = 32 * forward_flops(sizes, 2093) / reached
    assert prefill == pytest.approx(measured["label 32 pairs, 1 tokens"]["seconds"], rel=0.1)


def test_hours_follow_from_flops(chameleon: tuple[LoopConfig, Sizes]) -> None:
    cfg, sizes = chameleon
    made = planned_at(cfg, "4xp5.4xlarge")
    starts = 2 * 16
    fdp = (62158 + 70908) * 96 * training_flops(cfg, sizes, "fdp")
    idm = (23309 + 26591) * 64 * training_flops(cfg, sizes, "idm")
    reached = 0.4 * 790e12
    assert made.training["together"] == pytest.approx((fdp / 2 / reached + starts) / 3600)
    assert made.training["sequence"] == pytest.approx(((fdp + idm) / 4 / reached + starts) / 3600)
    assert made.hours["train"].wall == made.training["sequence"]
    assert made.hours["train"].gpu_hours == 4 * made.training["sequence"]
    # Prefills of 57,582 pairs, and 41 tokens of every batch of 32: 32 layers of 1.65 ms each.
    labels = 57582 * label_flops(cfg, sizes) / reached + 1800 * 41 * 32 * 1.65e-3
    assert made.hours["label"].wall == pytest.approx((labels / 4 + 9) / 3600, rel=1e-3)
    # One encoding of 554 GFLOP for each frame, 0.065 bytes a FLOP; six key frames make five pairs.
    frames = 69099 + 2 * 149180 + 2 * 250
    encoding = frames * 0.554e12 * 0.065 / 3.35e12
    assert made.hours["ingest"].wall == pytest.approx((encoding / 4 + 15) / 3600, rel=1e-3)


def test_a_core_that_is_busy_starts_stages_as_much_later_as_it_computes() -> None:
    cfg, here = load(TABLETOP), Cluster(source="", nodes=(Node(name="", count=1, cpus=2),))
    quiet, busy, quick = (
        make_plan(cfg, here, Speed(tflops=tflops, utilisation=0.33, bandwidth=None)).wall
        for tflops in (0.1, 0.05, 0.2)
    )
    assert busy == pytest.approx(2 * quiet, rel=1e-6)
    assert quiet / 2 < quick < quiet


def test_fewer_cards_than_asked_take_longer_and_none_take_none(
    chameleon: tuple[LoopConfig, Sizes],
) -> None:
    cfg, _ = chameleon
    two = planned_at(cfg, "2xp5.4xlarge")
    assert two.hours["label"].workers == two.hours["train"].workers == 2
    one = planned_at(cfg, "p5.4xlarge")
    assert one.training["together"] == math.inf
    assert one.hours["train"].wall == one.training["sequence"]


def test_candidates_that_the_fdp_judges_cost_its_rows(
    chameleon: tuple[LoopConfig, Sizes],
) -> None:
    cfg, sizes = chameleon
    judged = load(CHAMELEON, ["filter.score=noisy_channel", "label.candidates=4"])
    assert label_flops(judged, sizes) > 4 * forward_flops(sizes, sizes.fdp_tokens)
    assert label_flops(cfg, sizes) < 1.1 * forward_flops(sizes, sizes.idm_tokens)


def test_disk_by_hand(chameleon: tuple[LoopConfig, Sizes]) -> None:
    found = disk_bytes(*chameleon)
    # Two bytes a code of every frame, and of every pair's recognition weights, once.
    frames, pairs = 69099 + 2 * (149180 + 250), 57582 + 149180 + 250
    assert found["codes"] == (frames + pairs) * 1024 * 2
    # Seed, held-out pairs, pool; a training set each for round 0 (seed) and 1 (seed and pool).
    assert found["rows"] == 150 * (149180 + 250 + 57582 + 149180 + 149180 + 57582)
    # Two adapters, rounds 0 and 1; MLflow's copies; two checkpoints, each weights and two moments.
    assert found["adapters"] == found["mlflow"] == 2 * 4 * 39_976_960 * 2
    assert found["checkpoints"] == 2 * 4 * 39_976_960 * 2 * 3


# The tiny base, whose files are there.


@pytest.fixture
def tiny(untrained_base: Path) -> LoopConfig:
    return load(ROOT / "tests" / "test-3x3.yaml", [f"model.base={untrained_base}"])


def fit_job(cfg: LoopConfig, folder: Path, task: Task = "fdp") -> FitJob:
    return FitJob(
        task=task,
        family=cfg.model.family,
        base=cfg.base_path(),
        device="cpu",
        transitions=transitions(folder),
        steps=1,
        train=cfg.train,
        seed=0,
        init_from=None,
        out=folder / task,
        checkpoint_dir=folder / "checkpoint",
    )


@pytest.mark.parametrize(
    "override", ["train.lora.r=4", "train.lora.train_embeddings=false", "train.method=full"]
)
def test_trained_parameters_are_those_of_a_fit(
    tiny: LoopConfig, tmp_path: Path, override: str
) -> None:
    cfg = load(ROOT / "tests" / "test-3x3.yaml", [f"model.base={tiny.base_path()}", override])
    network = trainable_model(fit_job(cfg, tmp_path)).network
    sizes = base_sizes(cfg)
    assert sizes.trainable == sum(p.numel() for p in network.parameters() if p.requires_grad)
    frozen = sum(p.numel() for p in network.parameters() if not p.requires_grad)
    assert sizes.total == frozen + (sizes.trainable if cfg.train.method == "full" else 0)


def test_an_adapter_has_the_planned_size(tiny: LoopConfig, tmp_path: Path) -> None:
    folder = fit_adapter(fit_job(tiny, tmp_path)).adapter
    real = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert real == pytest.approx(4 * base_sizes(tiny).trainable, rel=0.1)  # the header is 5 kB


def test_the_shipped_adapter_has_the_planned_size(tmp_path: Path) -> None:
    cfg = load(TABLETOP)
    from peft import get_peft_model

    from dynamics.models.chameleon import load_network

    network = get_peft_model(load_network(cfg.base_path()), adapter_config(cfg.train.lora))
    network.save_pretrained(str(tmp_path), save_embedding_layers=False)
    real = (tmp_path / "adapter_model.safetensors").stat().st_size
    assert real == pytest.approx(4 * base_sizes(cfg).trainable, rel=0.02)


@pytest.mark.parametrize("override", ["train.batch_size=48", "train.precision=bfloat16"])
@pytest.mark.parametrize("task", ["idm", "fdp"])
def test_activations_are_what_autograd_keeps(task: Task, override: str) -> None:
    """The bytes that a forward of the shipped base saves for its backward, parameters left out."""
    cfg = load(TABLETOP, [override])
    sizes = base_sizes(cfg)
    plan = task_plan(cfg, sizes, task, 1)
    job = FitJob(
        task=task, family=cfg.model.family, base=cfg.base_path(), device="cpu",
        transitions=Path(), steps=1, train=cfg.train, seed=0, init_from=None, out=Path(),
        checkpoint_dir=Path(),
    )  # fmt: skip
    model = trainable_model(job)
    codes = np.random.default_rng(0).integers(0, sizes.num_codes, (2, 48, sizes.image_tokens))
    actions = ["push the red ring left"] * 48
    rows = (
        model.tokens.idm_rows(codes[0], codes[1], actions)
        if task == "idm"
        else model.tokens.fdp_rows(codes[0], actions, codes[1])
    )
    assert rows.ids.shape == (48, plan.tokens_per_row)
    loss = RowLoss(model, objective("nll"))
    weights = {p.untyped_storage().data_ptr() for p in model.network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    lower = cfg.train.precision == "bfloat16"
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=lower),
    ):
        loss(rows.ids, rows.labels, None, task)
    activations = training_memory(cfg, sizes, plan, "ddp", 1).activations
    assert sum(kept.values()) == pytest.approx(activations, rel=0.15)


def test_the_plan_of_a_finished_run_has_its_bytes(local_run: LocalRun) -> None:
    run = RunFolder(local_run.folder)
    found = disk_bytes(run.config(), base_sizes(run.config()))
    clips = sum(path.stat().st_size for path in (run.data).glob("*/clips/*.mp4"))
    assert found["clips"] == pytest.approx(clips, rel=0.6)
    adapters = sum(path.stat().st_size for path in run.root.glob("rounds/*/*/*.safetensors"))
    assert found["adapters"] == pytest.approx(adapters, rel=0.1)
    lab = run.config().model_copy(update={"track": TrackConfig(uri="http://lab:5000")})
    assert disk_bytes(lab, base_sizes(lab)) == found | {"mlflow": 0}


def test_a_base_that_nobody_knows_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no published sizes under that name \\(anole-7b, "):
        base_sizes(load(TABLETOP, [f"model.base={tmp_path / 'some-13b'}"]))


def command(*arguments: str) -> Result:
    return CliRunner().invoke(app, ["plan", *arguments], env={"COLUMNS": "200"})


def test_the_command_prints_what_was_computed() -> None:
    done = command("--config", str(CHAMELEON), "--json", "--cluster", "4xp5.4xlarge")
    assert done.exit_code == 0, done.output
    printed: dict[str, Any] = json.loads(done.stdout)
    made = planned("chameleon7b.yaml", "4xp5.4xlarge")
    assert printed == json.loads(json.dumps(made.to_json()))
    assert printed["memory"]["fdp"]["ddp"]["total"] == made.memory["fdp"]["ddp"].total
    assert printed["fits"]


def test_the_command_prints_tables_and_a_verdict() -> None:
    done = command("--set", "train.num_workers=2", "--tflops", "0.1", "--utilisation", "0.5")
    assert done.exit_code == 0, done.output
    for said in (
        "229,056",
        "fsdp2",
        "zero3",
        "time at 50 % of 0.1",
        "one after the other",
        "disk",
    ):
        assert said in done.stdout
    assert done.stdout.splitlines()[-1].startswith("fits this machine: ")


def test_the_command_fails_when_something_does_not_fit() -> None:
    done = command("--config", str(CHAMELEON), "--cluster", "g6.2xlarge")
    assert done.exit_code == 1
    assert done.stdout.splitlines()[-1].startswith("does not fit g6.2xlarge: train")


def test_a_cluster_that_nobody_knows_is_named() -> None:
    done = command("--cluster", "p9.unheard")
    assert isinstance(done.exception, UserError)
    assert "is no file, no address" in str(done.exception)
