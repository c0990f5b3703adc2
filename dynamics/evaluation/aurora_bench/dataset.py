"""Reading AURORA-BENCH in AURORA's own layout: ``test.json`` and the pictures below ``data/``.

DiscEdit items (a prompt that already holds and one that asks for a change) come from rows of
``test.json`` that carry them and from ``disc_edit_data/``, where it is present.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from dynamics.core.errors import UserError
from dynamics.core.images import PictureError, read_picture
from dynamics.core.records import stable_hash
from dynamics.storage.files import sha256_file

SUBSETS = ("magicbrush", "ag", "something", "whatsup", "kubric")
"""The five scored subsets, in the paper's order; the other three of AURORA's have no targets."""

_MAX_MANIFEST_BYTES = 50_000_000
_SCHEME = re.compile(r"^[A-Za-z][A-Za-z0-9+.-]*:")


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A source picture, an instruction, the picture that should come out."""

    item_id: str
    """Subset and row in the manifest, e.g. ``ag-0012``."""
    subset: str
    source: Path
    target: Path
    instruction: str
    """One line; of several wordings the first."""
    caption: str
    """Caption of the target, "" where the benchmark has none."""
    digest: str
    """Over the bytes of both pictures and the texts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscItem:
    """A picture with a prompt that it already fulfils and one that it does not."""

    subset: str
    source: Path
    fulfilled: str
    """AURORA's "pos": asks for what is so already, so little should change."""
    wanted: str
    """AURORA's "neg", or the plain prompt: asks for a real change."""
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchData:
    """Usable items of a benchmark folder, and counts of the other rows."""

    root: Path
    items: tuple[Item, ...]
    disc_items: tuple[DiscItem, ...]
    rejects: dict[str, int]
    """Rows per reason, e.g. ``missing_file``."""

    def partner(self, position: int, number: int) -> Item | None:
        """Another item than the one at ``position``, chosen by ``number``; None when alone."""
        others = len(self.items) - 1
        if others < 1:
            return None
        return self.items[(position + 1 + number % others) % len(self.items)]


class _RejectedError(Exception):
    """A row that is counted and left out."""


def read_benchmark(root: Path) -> BenchData:
    """Read the manifest and look at every picture once.

    Rows that cannot be used are counted by reason: ``malformed_row``, ``other_subset``,
    ``no_instruction``, ``no_target``, ``missing_file`` (the full set lacks two of Something's),
    or what `read_picture` refuses.

    Raises:
        UserError: no manifest, not JSON, no usable row, or a path that leaves ``root``.
    """
    manifest = root / "test.json"
    if not manifest.is_file():
        raise UserError(f"{manifest} does not exist; name a folder in AURORA's layout with --data")
    rejects: Counter[str] = Counter()
    items: list[Item] = []
    disc_items: list[DiscItem] = []
    for number, row in enumerate(_rows(manifest)):
        where = f"{manifest}, row {number}"
        try:
            items.append(_item(root, row, number, where))
            if isinstance(row, dict) and "pos" in row:
                disc_items.append(_disc_item(root, row, items[-1].subset, where))
        except _RejectedError as error:
            rejects[str(error)] += 1
    for subset, path in _disc_manifests(root):
        for number, row in enumerate(_rows(path)):
            try:
                disc_items.append(_disc_item(root, row, subset, f"{path}, row {number}"))
            except _RejectedError as error:
                rejects[f"disc_edit: {error}"] += 1
    if not items:
        counted = ", ".join(f"{reason} {count}" for reason, count in sorted(rejects.items()))
        raise UserError(f"{manifest} has no usable pair ({counted or 'it is empty'})")
    return BenchData(
        root=root,
        items=tuple(items),
        disc_items=tuple(disc_items),
        rejects=dict(sorted(rejects.items())),
    )


def inside(root: Path, text: str, where: str) -> Path:
    """The file that a manifest names, which never lies outside ``root``.

    Raises:
        UserError: an absolute path, a URL, one with ``..``, or a link that leads out.
    """
    named = PurePosixPath(text)
    strange = "\\" in text or "\x00" in text or _SCHEME.match(text)
    if strange or named.is_absolute() or ".." in named.parts:
        raise UserError(f"{where}: {text[:80]!r} is not a relative path below {root}; correct it")
    path = root / named
    if not path.resolve().is_relative_to(root.resolve()):
        raise UserError(f"{where}: {text[:80]!r} is a link that leads out of {root}; copy the file")
    return path


def _rows(manifest: Path) -> list[Any]:
    if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
        raise UserError(
            f"{manifest} is larger than {_MAX_MANIFEST_BYTES:,} bytes; is it a manifest?"
        )
    try:
        rows = json.loads(manifest.read_bytes())
    except (ValueError, RecursionError) as error:
        raise UserError(f"{manifest} is not valid JSON; download it again") from error
    if not isinstance(rows, list):
        raise UserError(f"{manifest} must hold a list of rows, not a {type(rows).__name__}")
    return rows


def _disc_manifests(root: Path) -> Iterator[tuple[str, Path]]:
    folder = root / "disc_edit_data"
    for path in sorted([*folder.glob("*/valid.json"), *folder.glob("*/itm_test.json")]):
        yield path.parent.name, inside(root, path.relative_to(root).as_posix(), str(folder))


def _item(root: Path, row: Any, number: int, where: str) -> Item:
    if not isinstance(row, dict):
        raise _RejectedError("malformed_row")
    subset = row.get("task")
    if subset not in SUBSETS:
        raise _RejectedError("other_subset" if isinstance(subset, str) else "malformed_row")
    instruction = _text(row.get("instruction"))
    if not instruction:
        raise _RejectedError("no_instruction")
    if not row.get("output"):
        raise _RejectedError("no_target")
    source = _picture(root, row, "input", where)
    target = _picture(root, row, "output", where)
    caption = _text(row.get("caption"))
    return Item(
        item_id=f"{subset}-{number:04d}",
        subset=subset,
        source=source,
        target=target,
        instruction=instruction,
        caption=caption,
        digest=stable_hash(sha256_file(source), sha256_file(target), instruction, caption),
    )


def _disc_item(root: Path, row: Any, subset: str, where: str) -> DiscItem:
    if not isinstance(row, dict):
        raise _RejectedError("malformed_row")
    fulfilled = _text(row.get("pos"))
    wanted = _text(row.get("neg") or row.get("prompt") or row.get("instruction"))
    if not fulfilled or not wanted:
        raise _RejectedError("no_instruction")
    source = _picture(root, row, "input" if "input" in row else "image", where)
    digest = stable_hash(sha256_file(source), fulfilled, wanted)
    return DiscItem(subset=subset, source=source, fulfilled=fulfilled, wanted=wanted, digest=digest)


def _picture(root: Path, row: Mapping[str, Any], key: str, where: str) -> Path:
    text = row.get(key)
    if not isinstance(text, str) or not text:
        raise _RejectedError("malformed_row")
    path = inside(root, text, where)
    if not path.is_file():
        raise _RejectedError("missing_file")
    try:
        read_picture(path)
    except PictureError as error:
        raise _RejectedError(error.reason) from error
    return path


def _text(value: Any) -> str:
    """One line; of a list of wordings the first, "" for anything else."""
    first = value[0] if isinstance(value, list) and value else value
    return " ".join(first.split()) if isinstance(first, str) else ""
