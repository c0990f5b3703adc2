"""Videos below a folder by their names without suffix, as manifests name them."""

from pathlib import PurePosixPath

from dynamics.core.places import Place
from dynamics.data.labelled.listing import Collector
from dynamics.data.labelled.paths import Refused, alike
from dynamics.data.refusals import ARCHIVES, way_out
from dynamics.data.video.sources import (
    VIDEO_SUFFIXES,
    Clip,
    Found,
    Skipped,
    checked_root,
    find_files,
)


class Videos:
    """An index of a folder; what a manifest says is only ever looked up in it, never opened."""

    def __init__(self, folder: Place) -> None:
        self._found: dict[str, Found] = {}
        self._alike: dict[str, list[Found]] = {}
        self._archives: list[str] = []
        for found in find_files(checked_root(folder), VIDEO_SUFFIXES):
            path = PurePosixPath(found.name)
            if path.suffix.lower() in ARCHIVES:
                self._archives.append(found.name)
            stem = _stem(path.name)
            if isinstance(found, Skipped) and way_out(found.reason):
                stem = path.stem  # what to do about 1.wmv says more than that there is no video 1
            if not isinstance(self._found.get(stem), Clip):
                self._found[stem] = found
        for stem, found in self._found.items():
            self._alike.setdefault(alike(stem), []).append(found)

    def find(self, name: str) -> Clip:
        """The video of a name, which may have folders, a video's suffix, other case or accents.

        Raises:
            Refused: ``missing_video``, ``ambiguous_name``, or why it must not be opened
                (``symlink`` and so on).
        """
        path = PurePosixPath(name.replace("\\", "/"))
        for wanted in (name, _stem(name if ".." in path.parts else path.name)):
            exact = self._found.get(wanted)
            found = [exact] if exact else self._alike.get(alike(wanted), [])
            if len(found) > 1:
                raise Refused("ambiguous_name")
            for one in found:
                if isinstance(one, Clip):
                    return one
                raise Refused(one.reason)
        raise Refused("missing_video")

    def explain(self, collector: Collector) -> None:
        """Add the folder's archives to what is left out, when a video is missing."""
        if collector.lacks("missing_video"):
            for name in self._archives:
                collector.reject(name, "archive")


def _stem(name: str) -> str:
    """A name without a video's suffix; other dots belong to it."""
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in VIDEO_SUFFIXES else name
