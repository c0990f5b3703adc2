"""Labelled sets: real pictures and videos with an action sentence.

To add one: a module with a function from a path to a `Labelled`, and one line in DATASETS. A
function reads manifests only; pixels are read when a pair is used (`dynamics.data.labelled.read`).
"""

from collections.abc import Callable

from dynamics.core.config import LabelledConfig
from dynamics.core.places import Place
from dynamics.data.labelled.aurora import list_aurora
from dynamics.data.labelled.epic import list_epic
from dynamics.data.labelled.lerobot import list_lerobot
from dynamics.data.labelled.listing import Labelled
from dynamics.data.labelled.something import list_something
from dynamics.data.labelled.table import list_parquet

DATASETS: dict[str, Callable[..., Labelled]] = {
    "aurora": list_aurora,
    "something": list_something,
    "epic": list_epic,
    "parquet": list_parquet,
    "lerobot": list_lerobot,
}


def listed(cfg: LabelledConfig, path: Place) -> Labelled:
    """The listing of the config's data set at a path.

    Raises:
        UserError: nothing there can be used.
    """
    assert cfg.dataset is not None
    chosen = {} if cfg.camera is None else {"camera": cfg.camera}
    return DATASETS[cfg.dataset](path, **chosen)
