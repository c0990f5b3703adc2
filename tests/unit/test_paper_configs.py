"""The configurations of the paper's recipe hold the figures that it prints."""

import pytest

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.core.config_file import load
from dynamics.labelling.filter import StratifiedTopKRule

CONFIGS = REPOSITORY_ROOT / "configs"


@pytest.fixture(params=["chameleon7b", "liquid7b"])
def cfg(request: pytest.FixtureRequest) -> LoopConfig:
    return load(CONFIGS / f"{request.param}.yaml")


def test_key_frames_and_filter_are_the_papers(cfg: LoopConfig) -> None:
    assert (cfg.pool.keyframes.top_k, cfg.pool.keyframes.spacing_frames) == (6, 20)
    assert [part.source for part in cfg.pool.parts] == ["moments", "kinetics700", "ucf101"]
    assert cfg.pool.most_pairs == 19658 + 26959 + 10965
    assert cfg.filter.rule == StratifiedTopKRule(k=7000)


def test_training_is_the_papers(cfg: LoopConfig) -> None:
    lora = cfg.train.lora
    assert (lora.r, lora.alpha, lora.dropout, lora.train_embeddings) == (16, 32, 0.05, False)
    assert (cfg.train.precision, cfg.train.recognition_weight) == ("bfloat16", 1.0)
    idm, fdp = cfg.train.of("idm"), cfg.train.of("fdp")
    assert (idm.learning_rate, idm.batch_size, idm.warmup_steps) == (2e-4, 64, 500)
    assert (fdp.learning_rate, fdp.batch_size, fdp.warmup_steps) == (5e-4, 96, 400)


def test_steps_are_the_papers_epochs(cfg: LoopConfig) -> None:
    seed, labels = cfg.labelled.num_pairs, 3 * 7000
    assert seed == 8807 + 11373 + 119_000 + 10_000
    for task, epochs in (("idm", 10), ("fdp", 40)):
        train = cfg.train.of(task)  # type: ignore[arg-type]
        assert train.first_steps == round(epochs * seed / train.batch_size)
        assert train.round_steps == round(epochs * (seed + labels) / train.batch_size)
    assert cfg.train.labelled_fraction == pytest.approx(seed / (seed + labels), abs=1e-3)


def test_every_choice_says_whose_it_is(cfg: LoopConfig) -> None:
    text = (CONFIGS / f"{cfg.name}.yaml").read_text()
    assert text.count("paper") > 15
    assert text.count("ours") > 10
