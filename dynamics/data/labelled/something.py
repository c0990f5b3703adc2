"""Something-Something v2: a json of ``{id, label, template, placeholders}``, one webm an id.

The pair is the first and the last frame of the clip, the action its label, as in AURORA's
`data/something/extract_frames.py`. The videos need a licence:
https://www.qualcomm.com/developer/software/something-something-v-2-dataset
"""

from dynamics.core.places import Place
from dynamics.data.labelled.listing import Collector, Labelled, LabelledPair, Segment, plain_action
from dynamics.data.labelled.manifest import read_rows
from dynamics.data.labelled.paths import Refused, first_file
from dynamics.data.labelled.videos import Videos

ORIGIN = (
    "labels and videos of Something-Something v2, "
    "https://www.qualcomm.com/developer/software/something-something-v-2-dataset"
)
_NAMES = (
    "labels/train.json",
    "train.json",
    "something-something-v2-train.json",
    "labels/something-something-v2-train.json",
)


def list_something(path: Place) -> Labelled:
    """One pair a clip.

    Args:
        path: the folder that holds labels and videos, whose training labels are read, or a label
            file; its videos lie anywhere below its folder, or below the parent of ``labels``.

    Raises:
        UserError: no labels, damaged ones, or no row can be used.
    """
    collector = Collector(f"something in {path}", ORIGIN)
    manifest = path
    if not path.is_file():
        places = [path / name for name in _NAMES]
        manifest = first_file(places, f"label file of Something-Something v2 in {path}; {ORIGIN}")
    folder = manifest.absolute().parent
    videos = Videos(folder.parent if folder.name == "labels" else folder)
    for number, row in enumerate(read_rows(manifest)):
        clip = str(row.get("id", ""))
        try:
            action = plain_action(row.get("label"))
            found = videos.find(clip)
        except Refused as error:
            collector.reject(clip or f"{manifest.name} row {number}", str(error))
            continue
        collector.add(
            LabelledPair(
                name=found.name,
                frames=Segment(found.path),
                action=action,
                clip_class=_template(row),
                sources=(clip,),
            )
        )
    videos.explain(collector)
    return collector.done()


def _template(row: dict[str, object]) -> str:
    """The kind of action: ``Putting [something] on [something]`` without its brackets."""
    try:
        return plain_action(row.get("template")).replace("[", "").replace("]", "")
    except Refused:
        return ""
