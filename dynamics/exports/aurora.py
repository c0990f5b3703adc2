"""AURORA's training layout (arXiv 2407.03471): ``data/<task>/train.json`` and images.

Its loader reads ``input``, ``output`` and ``instruction`` of every entry, paths relative to the
folder that holds ``data/``, and takes the task's name from the path. Further keys, here the
lineage, are left alone. Run it in the exported folder, or copy ``data/<task>`` into its own.
"""

import json
from pathlib import Path

from dynamics.core.images import encode_png
from dynamics.core.progress import Progress
from dynamics.exports.labels import accepted_labels
from dynamics.storage.run_folder import RunFolder


def write(run: RunFolder, round_id: int | None, folder: Path, progress: Progress) -> str:
    """See `dynamics.exports.Format.write`."""
    labels = accepted_labels(run, round_id)
    task = f"dynamics-{labels.origin.cfg.name}"
    images = folder / "data" / task / "images"
    images.mkdir(parents=True)
    entries = []
    for row in labels.rows(progress):
        names = {"input": f"{row.key}_before.png", "output": f"{row.key}_after.png"}
        (images / names["input"]).write_bytes(encode_png(row.source))
        (images / names["output"]).write_bytes(encode_png(row.target))
        paths = {key: f"data/{task}/images/{name}" for key, name in names.items()}
        entries.append({"instruction": row.action, **paths, **row.lineage})
    text = json.dumps(entries, indent=1, ensure_ascii=False)
    (folder / "data" / task / "train.json").write_text(text + "\n")
    return labels.finish(folder, "aurora")
