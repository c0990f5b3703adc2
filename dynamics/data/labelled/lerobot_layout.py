"""What every LeRobot v3 dataset that is written here has in common."""

import json

import pyarrow as pa

CAMERA = "observation.images.scene"
CHUNK_FILES = 1000
"""Files per chunk folder, LeRobot's own number."""
PATH = "chunk-{chunk_index:03d}/file-{file_index:03d}.parquet"


def place(number: int) -> str:
    """Path of the numbered Parquet file below ``data`` or ``meta/episodes``."""
    return PATH.format(chunk_index=number // CHUNK_FILES, file_index=number % CHUNK_FILES)


def task_table(tasks: list[str]) -> pa.Table:
    """``meta/tasks.parquet``, a pandas frame for LeRobot, indexed by the task's text."""
    table = pa.table({"task_index": pa.array(range(len(tasks)), pa.int64()), "task": tasks})
    columns = [
        {"name": "task_index", "pandas_type": "int64", "numpy_type": "int64"},
        {"name": "task", "pandas_type": "unicode", "numpy_type": "object"},
    ]
    described = {
        "index_columns": ["task"],
        "column_indexes": [],
        "columns": [{**one, "field_name": one["name"], "metadata": None} for one in columns],
        "pandas_version": "2.0.0",
    }
    return table.replace_schema_metadata({"pandas": json.dumps(described)})
