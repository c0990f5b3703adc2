"""Scenes that a person may begin with."""

from dynamics.core.domain import Domain, ExampleScene
from dynamics.core.images import frame_of
from dynamics.core.records import PICTURE_SCHEMA, TRANSITION_SCHEMA
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import read_table


def example_scenes(domain: Domain, run: RunFolder) -> list[ExampleScene]:
    """The domain's own scenes; on real video the camera's frames of the first held-out pairs.

    Those have one action each, the pair's own. Nothing was trained on them.
    """
    if own := domain.examples(run.data):
        return own
    if not run.pictures.exists():
        return []
    columns = ["pair_id", "action"]
    heldout = read_table(run.heldout, TRANSITION_SCHEMA, columns).to_pylist()
    actions = {row["pair_id"]: row["action"] for row in heldout}
    return [
        ExampleScene(
            name=f"held out {number}",
            frame=frame_of(row["source"]),
            actions=[actions[row["pair_id"]]],
        )
        for number, row in enumerate(read_table(run.pictures, PICTURE_SCHEMA).to_pylist(), 1)
    ]
