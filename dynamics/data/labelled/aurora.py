"""AURORA: ``data/TASK/train.json`` with rows ``{instruction, input, output}``.

Format: https://github.com/McGill-NLP/AURORA, `edit_dataset.py` there. Image paths count from the
repository's root; an instruction may be a list of wordings, of which AURORA, too, takes the first.
The paper's tasks are MagicBrush, Action-Genome, Something and Kubric (section 3.1).
"""

import re

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.data.labelled.listing import (
    Collector,
    Labelled,
    LabelledPair,
    Stills,
    plain_action,
    printable,
)
from dynamics.data.labelled.manifest import read_rows
from dynamics.data.labelled.paths import ImageFile, Refused, Root

TASKS = ("magicbrush", "ag", "something", "kubric")
ORIGIN = (
    "https://github.com/McGill-NLP/AURORA has the manifests, "
    "https://zenodo.org/records/11552426 the pictures of magicbrush, ag and kubric; something "
    "needs the videos of Something-Something v2"
)
# Action-Genome: VIDEO.mp4_27_left.png and VIDEO.mp4_27_right.png are frames of one video.
_SIDE = re.compile(r"_\d+_(left|right)$")


def list_aurora(path: Place) -> Labelled:
    """Pairs of a checkout of AURORA, or of one of its manifests.

    Args:
        path: the checkout, whose ``data/TASK/train.json`` are read, or a json file of such rows
            (``test.json`` and others, too). Paths in ``data/TASK/NAME.json`` count from the folder
            that holds ``data``, in others from their own folder.

    Raises:
        UserError: no manifest there, one is damaged, or no row can be used.
    """
    collector = Collector(f"aurora in {path}", ORIGIN)
    if path.is_file():
        _add(collector, path, Root(_root_of(path)))
        return collector.done()
    manifests = {task: path / "data" / task / "train.json" for task in TASKS}
    if not any(manifest.is_file() for manifest in manifests.values()):
        raise UserError(
            f"{path} has no data/TASK/train.json of AURORA (TASK: {', '.join(TASKS)}); {ORIGIN}"
        )
    root = Root(path)
    for task, manifest in manifests.items():
        if manifest.is_file():
            _add(collector, manifest, root)
        else:
            collector.reject(f"data/{task}/train.json", "missing_manifest")
    return collector.done()


def _root_of(manifest: Place) -> Place:
    manifest = manifest.absolute()
    data = manifest.parent.parent
    return data.parent if data.name == "data" else manifest.parent


def _add(collector: Collector, manifest: Place, root: Root) -> None:
    for number, row in enumerate(read_rows(manifest)):
        name = row.get("input")
        try:
            images = [_image(root, row.get(end)) for end in ("input", "output")]
            pair = LabelledPair(
                name=printable(name),
                frames=Stills(*images),
                action=plain_action(row.get("instruction", row.get("prompt"))),
                clip_class=_task(row),
                sources=tuple(dict.fromkeys(_source(image.name) for image in images)),
            )
        except _Unusable as error:
            collector.reject(error.name, str(error))
        except Refused as error:
            collector.reject(f"{manifest.name} row {number}", str(error))
        else:
            collector.add(pair)


class _Unusable(Refused):
    """A refused image."""

    def __init__(self, name: object, reason: str) -> None:
        super().__init__(reason)
        self.name = name


def _image(root: Root, name: object) -> ImageFile:
    try:
        return ImageFile(root.find(name, "missing_image"), str(name).replace("\\", "/"))
    except Refused as error:
        raise _Unusable(name, str(error)) from error


def _task(row: dict[str, object]) -> str:
    task = row.get("task")
    if isinstance(task, str):
        return printable(task)
    parts = str(row["input"]).split("/")
    return parts[1] if parts[0] == "data" and len(parts) > 2 else ""


def _source(name: str) -> str:
    """The video or picture that an image was made from.

    MagicBrush, Something and Kubric keep what belongs together in a folder of its own; the others
    keep all images of a task in one, named ``images``.
    """
    folder, _, file_name = name.rpartition("/")
    if folder.rpartition("/")[2] not in ("images", ""):
        return folder
    return f"{folder}/{_SIDE.sub('', file_name.rpartition('.')[0])}"
