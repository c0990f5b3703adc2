"""DDP, FSDP2 and DeepSpeed on two workers: the adapters of one process, however often killed."""

import json
from pathlib import Path

import pytest
from ray.train import RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer
from safetensors.torch import load_file

from dynamics.training.batches import FitJob
from dynamics.training.fit import fit_adapter
from tests.strategies import KINDS, STRATEGIES, Case, run_cases
from tests.unit.training.test_fit import TRAIN, fit_job

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def one(local_ray: None, untrained_base: Path, tmp_path_factory: pytest.TempPathFactory) -> FitJob:
    """A fit of 6 steps, in whose folder all cases have been run."""
    folder = tmp_path_factory.mktemp("strategies")
    one = fit_job(untrained_base, folder, TRAIN, steps=6)
    for method, precision in KINDS:
        fit_adapter(Case("ddp", method, precision).job(one, "alone"))
    TorchTrainer(
        run_cases,
        train_loop_config={"job": one},
        torch_config=TorchConfig(backend="gloo"),
        scaling_config=ScalingConfig(num_workers=2),
        run_config=RunConfig(name="cases", storage_path=str(folder / "ray")),
    ).fit()
    return one


def difference(first: FitJob, second: FitJob) -> float:
    file = "adapter_model.safetensors" if first.train.method == "lora" else "model.safetensors"
    one, other = load_file(first.out / file), load_file(second.out / file)
    assert set(one) == set(other)
    return max(float((one[name] - other[name]).abs().max()) for name in one)


def loss(job: FitJob) -> float:
    return json.loads((job.out / "fit.json").read_text())["loss"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("method", ["lora", "full"])
def test_one_or_two_workers_killed_between_train_what_one_process_does(
    one: FitJob, strategy: str, method: str
) -> None:
    case, alone = Case(strategy, method, "float32"), Case("ddp", method, "float32")
    wanted = loss(alone.job(one, "alone"))
    for name in ("killed", "elastic"):
        assert abs(loss(case.job(one, name)) - wanted) < 1e-5
        assert difference(case.job(one, name), alone.job(one, "alone")) < 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_killed_fit_resumes_to_the_adapter_of_an_unbroken_one(one: FitJob, strategy: str) -> None:
    case = Case(strategy, "lora", "float32")
    assert difference(case.job(one, "killed"), case.job(one, "calm")) == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_bfloat16_is_one_precision_whatever_the_strategy(one: FitJob, strategy: str) -> None:
    case, ddp = Case(strategy, "lora", "bfloat16"), Case("ddp", "lora", "bfloat16")
    assert loss(case.job(one, "calm")) == pytest.approx(loss(ddp.job(one, "calm")), abs=1e-6)
    assert loss(case.job(one, "calm")) != loss(Case(strategy, "lora", "float32").job(one, "calm"))
    assert abs(loss(case.job(one, "calm")) - loss(ddp.job(one, "alone"))) < 1e-3
