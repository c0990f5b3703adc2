"""A Hugging Face dataset folder: Parquet with embedded pictures, and a card.

``datasets.load_dataset(folder)`` gives ``before`` and ``after`` as pictures, ``action`` and the
lineage as columns.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa

from dynamics.core.images import encode_png
from dynamics.core.progress import Progress
from dynamics.exports.cards import dataset_card
from dynamics.exports.labels import LINEAGE_SCHEMA, accepted_labels
from dynamics.exports.parquet import IMAGE_TYPE, ParquetShards, image_cell
from dynamics.storage.run_folder import RunFolder

_IMAGES = ("before", "after")
_SCHEMA = pa.schema(
    [
        *(pa.field(name, IMAGE_TYPE) for name in _IMAGES),
        pa.field("action", pa.string()),
        *LINEAGE_SCHEMA,
    ]
)


def write(run: RunFolder, round_id: int | None, folder: Path, progress: Progress) -> str:
    """See `dynamics.exports.Format.write`."""
    labels = accepted_labels(run, round_id)
    schema = _SCHEMA.with_metadata({"huggingface": json.dumps({"info": {"features": _features()}})})
    shards = ParquetShards(schema, lambda number: folder / "data" / f"train-{number:05d}.parquet")
    for row in labels.rows(progress):
        before, after = encode_png(row.source), encode_png(row.target)
        cells = {
            "before": image_cell(before, f"{row.key}_before.png"),
            "after": image_cell(after, f"{row.key}_after.png"),
            "action": row.action,
            **row.lineage,
        }
        shards.add([cells], len(before) + len(after))
    shards.close()
    card = dataset_card(
        labels,
        layout="hf",
        header={
            "configs": [
                {
                    "config_name": "default",
                    "data_files": [{"split": "train", "path": "data/train-*.parquet"}],
                }
            ]
        },
    )
    (folder / "README.md").write_text(card)
    return labels.finish(folder, "hf")


def _features() -> dict[str, Any]:
    """The schema as ``datasets`` writes it into Parquet: without it pictures stay raw bytes."""
    kinds = {"double": "float64"}
    values = {
        field.name: {"dtype": kinds.get(str(field.type), str(field.type)), "_type": "Value"}
        for field in _SCHEMA
    }
    return {**values, **{name: {"_type": "Image"} for name in _IMAGES}}
