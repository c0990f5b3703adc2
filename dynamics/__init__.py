"""Forward dynamics bootstrapped from inverse dynamics, in one unified vision-language model.

    import dynamics

    run = dynamics.open("runs/tabletop")
    model = run.round(3)
    model.predict("table.png", "remove the red ring", n=8).image.show()

What `__all__` names, here, in `dynamics.client` and in `dynamics.env`, is the Python API: it stays,
or changes with a line in CHANGELOG.md that says how to move. All else may change in any version.
Importing this package loads nothing heavy, opening a run loads no model; PyTorch and the weights
load when a round is first asked.

Nothing in this package imports ray, mlflow or deepspeed; a lint rule keeps it so.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dynamics.runs import Episode, Round, Run, open

__all__ = ["Episode", "Round", "Run", "open"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'dynamics' has no attribute {name!r}")
    from dynamics import runs

    return getattr(runs, name)
