"""Reading AURORA-BENCH in AURORA's own layout: ``test.json`` and the pictures below ``data/``.

DiscEdit items (a prompt that already holds and one that asks for a change) come from rows of
``test.json`` that carry them and from ``disc_edit_data/``, where it is present.
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dynamics.core.errors import UserError
from dynamics.core.images import PictureError, read_picture
from dynamics.core.places import Place
from dynamics.core.records import stable_hash
from dynamics.data.labelled.manifest import read_rows
from dynamics.data.labelled.paths import ImageFile, Refused, Root
from dynamics.data.refusals import way_out
from dynamics.storage.files import sha256_file

SUBSETS = ("magicbrush", "ag", "something", "whatsup", "kubric")
"""The five scored subsets, in the paper's order; the other three of AURORA's have no targets."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """A source picture, an instruction, the picture that should come out."""

    item_id: str
    """Subset and row in the manifest, e.g. ``ag-0012``."""
    subset: str
    source: Place
    target: Place
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
    source: Place
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

    Manifest, names and pictures are read as in labelled sets. Rows that cannot be used are counted
    by reason: ``malformed_row``, ``other_subset``, ``no_instruction``, ``no_target``,
    ``missing_file`` (the full set lacks two of Something's), or what `Root.find`,
    `ImageFile.read` or `read_picture` refuse.

    Raises:
        UserError: no manifest, not JSON, no usable row, or a path that leaves ``root``.
    """
    manifest = root / "test.json"
    if not manifest.is_file():
        raise UserError(f"{manifest} does not exist; name a folder in AURORA's layout with --data")
    rejects: Counter[str] = Counter()
    items: list[Item] = []
    disc_items: list[DiscItem] = []
    named = Root(root)
    for number, row in enumerate(read_rows(manifest)):
        where = f"{manifest}, row {number}"
        try:
            items.append(_item(named, row, number, where))
            if "pos" in row:
                disc_items.append(_disc_item(named, row, items[-1].subset, where))
        except _RejectedError as error:
            rejects[str(error)] += 1
    for subset, path in _disc_manifests(named):
        for number, row in enumerate(read_rows(path)):
            try:
                disc_items.append(_disc_item(named, row, subset, f"{path}, row {number}"))
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


def _named(root: Root, name: str, where: str) -> Place:
    """The file that a manifest names, which never lies outside the root.

    Raises:
        UserError: an absolute path, a URL, one with ``..``, or a link that leads out.
    """
    try:
        return root.find(name)
    except Refused as error:
        reason = str(error)
    if reason == "path_outside":
        raise UserError(
            f"{where}: {name[:80]!r} is not a relative path below {root.folder}; correct it"
        )
    if reason == "symlink":
        raise UserError(
            f"{where}: {name[:80]!r} is a link that leads out of {root.folder}{way_out(reason)}"
        )
    raise _RejectedError(reason)


def _disc_manifests(root: Root) -> Iterator[tuple[str, Place]]:
    folder = root.folder / "disc_edit_data"
    for path in sorted([*folder.glob("*/valid.json"), *folder.glob("*/itm_test.json")]):
        yield path.parent.name, _named(root, root.name_of(path), str(folder))


def _item(root: Root, row: Mapping[str, Any], number: int, where: str) -> Item:
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


def _disc_item(root: Root, row: Mapping[str, Any], subset: str, where: str) -> DiscItem:
    fulfilled = _text(row.get("pos"))
    wanted = _text(row.get("neg") or row.get("prompt") or row.get("instruction"))
    if not fulfilled or not wanted:
        raise _RejectedError("no_instruction")
    source = _picture(root, row, "input" if "input" in row else "image", where)
    digest = stable_hash(sha256_file(source), fulfilled, wanted)
    return DiscItem(subset=subset, source=source, fulfilled=fulfilled, wanted=wanted, digest=digest)


def _picture(root: Root, row: Mapping[str, Any], key: str, where: str) -> Place:
    text = row.get(key)
    if not isinstance(text, str) or not text:
        raise _RejectedError("malformed_row")
    path = _named(root, text, where)
    try:
        read_picture(ImageFile(path, text).read())
    except PictureError as error:
        raise _RejectedError(error.reason) from error
    except Refused as error:
        raise _RejectedError(str(error)) from error
    return path


def _text(value: Any) -> str:
    """One line; of a list of wordings the first, "" for anything else."""
    first = value[0] if isinstance(value, list) and value else value
    return " ".join(first.split()) if isinstance(first, str) else ""
