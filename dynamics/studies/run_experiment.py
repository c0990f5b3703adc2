"""One function per kind of experiment: fit, evaluate, write. The tables only read what they wrote.

Each runs in a process of its own with one thread; a killed one is repeated, its fits resume from
their checkpoints.
"""

from collections.abc import Callable

from dynamics.core.progress import silent
from dynamics.loop import run_rounds
from dynamics.models import load_image_tokenizer
from dynamics.pipeline.prepare import prepare
from dynamics.pipeline.stages import Stages
from dynamics.storage.files import make_folder
from dynamics.storage.run_folder import write_json
from dynamics.storage.streams import run_stream
from dynamics.studies.candidates import draw_candidates, fit_weight
from dynamics.studies.experiments import Experiment
from dynamics.studies.fits import (
    fit_ablation,
    fit_control,
    fit_filtered,
    fit_labelled,
    score_labels,
)
from dynamics.studies.study import Study


def run_experiment(study: Study, experiment: Experiment) -> None:
    """Run an experiment in this process; its ``done.json`` is the last write."""
    if study.is_done(experiment):
        return
    make_folder(study.folder(experiment))
    KINDS[experiment.kind](study, experiment)
    write_json(study.done(experiment), {"experiment": experiment.name})


def _data(study: Study, experiment: Experiment) -> None:
    cfg = study.cfg
    images = load_image_tokenizer(cfg.model.family, cfg.base_path())
    with study.run.claimed(cfg):
        prepare(cfg, study.run, images, run_stream, silent)


def _loop(study: Study, experiment: Experiment) -> None:
    with study.run.claimed(study.cfg):
        run_rounds(study.cfg, Stages(study.cfg, study.run.root))


KINDS: dict[str, Callable[[Study, Experiment], None]] = {
    "data": _data,
    "loop": _loop,
    "control": fit_control,
    "size": fit_labelled,
    "scores": score_labels,
    "filter": fit_filtered,
    "ablation": fit_ablation,
    "verify": draw_candidates,
    "calibrate": fit_weight,
}
