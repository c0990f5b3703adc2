"""The labelled set and the held-out set of a run, from a real data set."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.core.records import PICTURE_SCHEMA, TRANSITION_SCHEMA, DatasetRef
from dynamics.data.labelled import listed
from dynamics.data.labelled.listing import Labelled, LabelledPair
from dynamics.data.labelled.read import LabelledRows, PairReader, read_pairs, shown_pictures
from dynamics.data.labelled.split import capped, drawn, split
from dynamics.data.units import Encoding, UnitFolder
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.storage.pairs import TableWriter, is_whole
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.streams import RunStream
from dynamics.storage.tables import dataset_ref, write_table

_EXAMPLES = 20
"""Rejects of each reason that are named in ingest.json; all are counted."""


def build_labelled(
    cfg: LoopConfig,
    folder: RunFolder,
    images: ImageTokenizer,
    encoding: Encoding,
    fits: Callable[[str], bool],
    run: RunStream,
    progress: Progress,
) -> tuple[dict[str, DatasetRef], dict[str, Any]]:
    """Write the tables ``labelled`` and ``heldout`` (TRANSITION_SCHEMA).

    The held-out set is read first; no picture or video behind it gets into the labelled set, under
    whatever name (reject ``in_heldout``). Both are written last, so that they belong together.

    Args:
        cfg: with ``labelled.dataset``.
        folder: of the run; the tables go among its data.
        images: says how large frames are; it encodes none.
        encoding: encodes the frames.
        fits: whether an action sentence fits the model's prompts.
        run: runs the work.
        progress: called while pairs are read.

    Returns:
        The tables, and their counts for ingest.json, by ``labelled`` and ``heldout``.

    Raises:
        UserError: no usable pair for one of the two, or a full disk.
    """
    found, held = listings(cfg, progress)
    labelled_pairs, heldout_pairs = divided(cfg, found, held)
    wanted = cfg.labelled
    labelled_pairs = capped(labelled_pairs, wanted.max_pairs)
    reader = PairReader(
        frame_px=images.frame_px,
        bars=images.bars,
        memory_mb=cfg.pool.decode_memory_mb,
        timeout_s=cfg.pool.decode_timeout_s,
        cpu_per_s=cfg.pool.decode_cpu_per_s,
    )
    units = {
        name: UnitFolder(folder.table(name) / "units", TRANSITION_SCHEMA)
        for name in ("heldout", "labelled")
    }
    read = partial(
        read_pairs,
        fits=fits,
        encoding=encoding,
        part_pairs=cfg.ingest.part_clips,
        run=run,
        progress=progress,
    )
    held_out = read(
        heldout_pairs, wanted.num_heldout, read=reader, units=units["heldout"], what="heldout"
    )
    labelled = read(
        labelled_pairs,
        wanted.num_pairs,
        read=replace(reader, mirror=wanted.mirror),
        units=units["labelled"],
        what="labelled",
        heldout_digests=held_out.digests,
    )
    counted = {
        "labelled": _counted(found, labelled_pairs, labelled),
        "heldout": _counted(held or found, heldout_pairs, held_out),
    }
    _check_usable({"heldout": held_out, "labelled": labelled}, counted)
    pictures = shown_pictures(heldout_pairs, held_out.table, reader)
    write_table(folder.pictures, pictures, PICTURE_SCHEMA)
    refs = _written(folder, {"heldout": held_out, "labelled": labelled})
    for one in units.values():
        one.remove()
    return refs, counted


def _check_usable(parts: dict[str, LabelledRows], counted: dict[str, dict[str, Any]]) -> None:
    for name, rows in parts.items():
        if not rows.table.num_rows:
            rejects = ", ".join(f"{n:,} {why}" for why, n in counted[name]["rejects"].items())
            raise UserError(
                f"no pair can be used for the {name} set: {counted[name]['listed']}; then left "
                f"out: {rejects}; see labelled.path and labelled.heldout_fraction"
            )


def _written(folder: RunFolder, parts: dict[str, LabelledRows]) -> dict[str, DatasetRef]:
    refs = {}
    for name, rows in parts.items():
        writer = TableWriter(folder.table(name), TRANSITION_SCHEMA, folder.codes)
        writer.append(rows.table)
        refs[name] = writer.finish()
    return refs


def built(folder: RunFolder) -> dict[str, DatasetRef] | None:
    """The tables that `build_labelled` wrote, None unless both are there."""
    paths = {name: folder.table(name) for name in ("labelled", "heldout")}
    if not all(map(is_whole, paths.values())):
        return None
    return {name: dataset_ref(path) for name, path in paths.items()}


def divided(
    cfg: LoopConfig, found: Labelled, held: Labelled | None
) -> tuple[list[LabelledPair], list[LabelledPair]]:
    """Labelled and held-out pairs of `listings`, each in a drawn order."""
    if held is None:
        return split(found.pairs, cfg.labelled.heldout_fraction, cfg.seed)
    return drawn(found.pairs, cfg.seed), drawn(held.pairs, cfg.seed)


def listings(cfg: LoopConfig, progress: Progress) -> tuple[Labelled, Labelled | None]:
    """The data set, and its held-out part where that has a path of its own."""
    labelled = cfg.labelled
    assert labelled.dataset is not None
    assert labelled.path is not None
    listings: list[Labelled] = []
    for path in (labelled.path, labelled.heldout_path):
        if path is None:
            return listings[0], None
        if not path.exists():
            raise UserError(f"{labelled.dataset} data set {path} does not exist; see labelled.path")
        progress(0, 0, f"list {labelled.dataset}")
        listings.append(listed(labelled, path))
        progress(0, 0, listings[-1].summary())
    return listings[0], listings[1]


def _counted(found: Labelled, pairs: Sequence[LabelledPair], rows: LabelledRows) -> dict[str, Any]:
    """Counts for ingest.json: rows listed, used, and rejected by reason."""
    reasons: dict[str, list[str]] = {}
    for name, reason in (*found.rejects, *rows.rejects):
        reasons.setdefault(reason, []).append(name)
    return {
        "listed": found.summary(),
        "num_candidates": len(pairs),
        "num_pairs": rows.table.num_rows,
        "rejects": {reason: len(names) for reason, names in sorted(reasons.items())},
        "examples": {
            reason: list(islice(names, _EXAMPLES)) for reason, names in sorted(reasons.items())
        },
    }
