"""Which schedule `auto` takes."""

import pytest

from dynamics.core.config import TaskTraining, TrainConfig
from dynamics.core.config_file import validate
from dynamics.core.errors import UserError
from dynamics.training.schedule import schedule_of

GPUS = TrainConfig(num_gpus_per_worker=1, num_workers=2, batch_size=48)


def test_uneven_fits_follow_each_other_on_gpus_and_even_ones_run_together() -> None:
    assert schedule_of(GPUS, {"idm": 100, "fdp": 400}) == "sequence"
    assert schedule_of(GPUS, {"idm": 400, "fdp": 400}) == "together"
    smaller = GPUS.model_copy(update={"idm": TaskTraining(batch_size=12)})
    assert schedule_of(smaller, {"idm": 400, "fdp": 400}) == "sequence"


def test_workers_that_would_have_no_rows_make_no_sequence() -> None:
    single = GPUS.model_copy(update={"batch_size": 2})
    assert schedule_of(single, {"idm": 100, "fdp": 400}) == "together"


def test_cpus_run_fits_together_and_deepspeed_never_does() -> None:
    uneven = {"idm": 100, "fdp": 400}
    assert schedule_of(TrainConfig(), uneven) == "together"
    assert schedule_of(TrainConfig(schedule="sequence"), uneven) == "sequence"
    assert schedule_of(TrainConfig(strategy="deepspeed_zero2"), uneven) == "sequence"
    with pytest.raises(UserError, match="set schedule to auto"):
        validate({"train": {"strategy": "deepspeed_zero3", "schedule": "together"}}, where="here")
