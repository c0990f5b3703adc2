"""Exports: a round's accepted labels, or its adapters, as a folder for other programs.

To add a format: a module with ``write(run, round_id, folder, progress) -> str``, and one line in
EXPORTS.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

from dynamics.exports.folder import new_folder

if TYPE_CHECKING:
    from dynamics.core.progress import Progress
    from dynamics.storage.run_folder import RunFolder

EXPORTS: dict[str, str] = {
    "aurora": "dynamics.exports.aurora",
    "hf": "dynamics.exports.hf",
    "lerobot": "dynamics.exports.lerobot",
    "webdataset": "dynamics.exports.webdataset",
    "adapters": "dynamics.exports.adapters",
}
"""Name to module; import strings, so that the command starts quickly."""


class Format(Protocol):
    """Protocol of the modules in EXPORTS."""

    def write(
        self, run: "RunFolder", round_id: int | None, folder: Path, progress: "Progress"
    ) -> str:
        """Fill ``folder``; returns a line that names the content.

        ``round_id`` None is the last promoted round that has what the format needs.

        Raises:
            UserError: the run has no such round, or a file is missing or damaged.
        """


def export_run(
    run: "RunFolder", name: str, out: Path, round_id: int | None, progress: "Progress"
) -> str:
    """Write a round of ``run`` as format ``name`` into the new folder ``out``; returns a summary.

    Raises:
        UserError: ``out`` is not empty, no such round, a damaged file, full disk.
    """
    with new_folder(out) as folder:
        return cast(Format, import_module(EXPORTS[name])).write(run, round_id, folder, progress)
