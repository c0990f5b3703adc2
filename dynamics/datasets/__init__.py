"""Labelled sets: real pictures and videos with an action sentence.

To add one: a module with a function from a path to a `Labelled`, one line in DATASETS, one name in
`DatasetName`. A function reads manifests only; pixels are read when a pair is used
(`dynamics.datasets.read`).
"""

from collections.abc import Callable
from pathlib import Path

from dynamics.datasets.aurora import list_aurora
from dynamics.datasets.epic import list_epic
from dynamics.datasets.lerobot import list_lerobot
from dynamics.datasets.listing import Labelled
from dynamics.datasets.something import list_something
from dynamics.datasets.table import list_parquet

DATASETS: dict[str, Callable[[Path], Labelled]] = {
    "aurora": list_aurora,
    "something": list_something,
    "epic": list_epic,
    "parquet": list_parquet,
    "lerobot": list_lerobot,
}
