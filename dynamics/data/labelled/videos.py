"""Videos below a folder by their names without suffix, as manifests name them."""

from pathlib import PurePosixPath

from dynamics.core.places import Place
from dynamics.data.labelled.paths import Refused
from dynamics.data.video.sources import VIDEO_SUFFIXES, Clip, checked_root, find_files


class Videos:
    """An index of a folder; what a manifest says is only ever looked up in it, never opened."""

    def __init__(self, folder: Place) -> None:
        self._found: dict[str, Clip] = {}
        self._refused: dict[str, str] = {}
        for found in find_files(checked_root(folder), VIDEO_SUFFIXES):
            stem = PurePosixPath(found.name).stem
            if isinstance(found, Clip):
                self._found.setdefault(stem, found)
            else:
                self._refused[stem] = found.reason

    def find(self, name: str) -> Clip:
        """The video of a name.

        Raises:
            Refused: ``missing_video``, or why it must not be opened (``symlink`` and so on).
        """
        if name in self._found:
            return self._found[name]
        raise Refused(self._refused.get(name, "missing_video"))
