"""A round's two adapters for sharing: peft folders with a model card each.

``peft.PeftModel.from_pretrained(base, folder / "idm")`` loads one onto its base.
"""

import shutil
from pathlib import Path
from typing import get_args

from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.exports.cards import model_card
from dynamics.exports.rounds import ExportedRound, finished_round, inside
from dynamics.models.checkpoint import is_checkpoint
from dynamics.storage.files import adapter_digest, local_copy
from dynamics.storage.run_folder import RunFolder, json_bytes
from dynamics.training.loss import Task


def write(run: RunFolder, round_id: int | None, folder: Path, progress: Progress) -> str:
    """See `dynamics.exports.Format.write`."""
    origin = finished_round(run, round_id, first=0)
    tasks = get_args(Task)
    for done, task in enumerate(tasks):
        progress(done, len(tasks), "export adapters")
        _copy(origin, task, folder / task)
        (folder / task / "README.md").write_text(model_card(origin, task))
    digests = {f"{task}_digest": origin.report.models[f"{task}_digest"] for task in tasks}
    lineage = {"format": "adapters", **origin.parents(), **digests}
    (folder / "lineage.json").write_bytes(json_bytes(lineage))
    return f"adapters idm and fdp of round {origin.round_id}, for the base {origin.cfg.base_path()}"


def _copy(origin: ExportedRound, task: Task, out: Path) -> None:
    """Copy the adapter's files unchanged, so that their digest stays the one in the labels.

    Raises:
        UserError: no adapter, or not the one that the round's report names.
    """
    source = inside(
        origin.run.root, origin.report.models[task], origin.run.report_path(origin.round_id).name
    )
    if not source.is_dir():
        raise UserError(f"{source} does not exist; the round's adapters were removed")
    if is_checkpoint(source):
        raise UserError(
            f"the run was fully fine-tuned (train.method full): {source} is a whole checkpoint; "
            "copy that folder"
        )
    found = adapter_digest(origin.cfg.base_path(), source)
    if found != origin.report.models[f"{task}_digest"]:
        raise UserError(f"{source} is damaged or was changed: its digest is not the round's")
    out.mkdir()
    for path in sorted(local_copy(source).iterdir()):
        if path.suffix in (".json", ".safetensors"):
            shutil.copyfile(path, out / path.name)
