"""One function per kind of unit: fit, evaluate, write. Analysis only reads what they wrote.

Each runs in a process of its own with one thread; a killed one is repeated, its fits resume from
their checkpoints.
"""

from collections.abc import Callable
from pathlib import Path

import torch

from dynamics.core.progress import silent
from dynamics.loop import run_rounds
from dynamics.models import load_image_tokenizer
from dynamics.pipeline.prepare import prepare
from dynamics.pipeline.stages import Stages
from dynamics.storage.run_folder import write_json
from dynamics.studies.candidates import calibrate, verify
from dynamics.studies.experiments import Unit
from dynamics.studies.fits import ablation, control, filter_labels, label_size, score_labels
from dynamics.studies.study import Study


def run_unit(study: Study, unit: Unit) -> None:
    """Do a unit's work in this process; its ``done.json`` is the last write."""
    torch.set_num_threads(1)
    folder = study.unit(unit.name)
    if study.is_done(unit.name):
        return
    folder.mkdir(parents=True, exist_ok=True)
    KINDS[unit.kind](study, unit.arm, folder)
    write_json(study.done(unit.name), {"unit": unit.name})


def _data(study: Study, arm: str, folder: Path) -> None:
    cfg = study.cfg
    images = load_image_tokenizer(cfg.model.family, cfg.base_path())
    with study.run.claimed(cfg):
        prepare(cfg, study.run, images, silent)


def _loop(study: Study, arm: str, folder: Path) -> None:
    with study.run.claimed(study.cfg):
        run_rounds(study.cfg, Stages(study.cfg, study.run.root))


KINDS: dict[str, Callable[[Study, str, Path], None]] = {
    "data": _data,
    "loop": _loop,
    "control": control,
    "size": label_size,
    "scores": score_labels,
    "filter": filter_labels,
    "ablation": ablation,
    "verify": verify,
    "calibrate": calibrate,
}
