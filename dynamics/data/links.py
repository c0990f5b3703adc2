"""Links in folders of videos and labelled sets: one rule for all of them.

A link is followed when its target lies

- below the folder that the user named,
- in the store of the cache or repository that this folder belongs to: ``blobs`` beside
  ``snapshots`` (Hugging Face), ``.dvc/cache`` (DVC), ``.git/annex/objects`` (git-annex),
- or below a folder that ``DYNAMICS_LINKS`` names, several as in ``PATH``.

All other links are refused, and so is every link within an archive.
"""

import os
from collections.abc import Iterator
from pathlib import Path

ALLOWED = "DYNAMICS_LINKS"


class Links:
    """The targets that links of a folder may have.

    Args:
        root: the folder, resolved.
    """

    def __init__(self, root: Path) -> None:
        named = filter(None, os.environ.get(ALLOWED, "").split(os.pathsep))
        folders = (str(root), *map(str, _stores(root)), *named)
        self._root = _prefix(root)
        self._prefixes = tuple(map(_prefix, folders))

    def allow(self, target: str) -> bool:
        """True when a resolved path is one that a link may lead to."""
        return f"{target}{os.sep}".startswith(self._prefixes)

    def lists(self, target: str) -> bool:
        """True when a resolved folder lies below the root, not hidden: it is listed there."""
        inside = f"{target}{os.sep}".removeprefix(self._root)
        return not os.path.isabs(inside) and not any(
            part.startswith(".") for part in inside.split(os.sep)
        )


def _stores(root: Path) -> Iterator[Path]:
    for folder in (root, *root.parents):
        if folder.name == "snapshots":
            yield folder.parent / "blobs"
        yield folder / ".dvc" / "cache"
        yield folder / ".git" / "annex" / "objects"


def _prefix(folder: str | Path) -> str:
    return f"{os.path.realpath(folder).rstrip(os.sep)}{os.sep}"
