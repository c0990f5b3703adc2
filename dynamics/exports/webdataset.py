"""WebDataset: tar files whose samples are ``<label_id>.before.png``, ``.after.png``, ``.json``."""

import io
import json
import tarfile
from pathlib import Path

from dynamics.core.images import encode_png
from dynamics.core.progress import Progress
from dynamics.exports.labels import ExportRow, accepted_labels
from dynamics.storage.run_folder import RunFolder

SHARD_BYTES = 256 * 2**20
"""Size at which a shard is closed: few files, yet enough to spread over workers."""


def write(run: RunFolder, round_id: int | None, folder: Path, progress: Progress) -> str:
    """See `dynamics.exports.Format.write`."""
    labels = accepted_labels(run, round_id)
    shards = _Shards(folder)
    for row in labels.rows(progress):
        shards.add(row)
    shards.close()
    return labels.finish(folder, "webdataset")


class _Shards:
    """Tar files ``train-000000.tar``, ... without times or owners: equal rows, equal bytes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._number = 0
        self._tar: tarfile.TarFile | None = None
        self._bytes = 0

    def add(self, row: ExportRow) -> None:
        """All files of a sample go into one shard, one after the other, as readers expect."""
        if self._tar is None:
            path = self._folder / f"train-{self._number:06d}.tar"
            self._tar = tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115 - closed by `close`
            self._number, self._bytes = self._number + 1, 0
        content = {"action": row.action, **row.lineage}
        files = {
            "before.png": encode_png(row.source),
            "after.png": encode_png(row.target),
            "json": json.dumps(content, ensure_ascii=False).encode(),
        }
        for suffix, payload in files.items():
            entry = tarfile.TarInfo(f"{row.key}.{suffix}")
            entry.size = len(payload)
            self._tar.addfile(entry, io.BytesIO(payload))
            self._bytes += len(payload)
        if self._bytes >= SHARD_BYTES:
            self.close()

    def close(self) -> None:
        """End the shard."""
        if self._tar is not None:
            self._tar.close()
            self._tar = None
