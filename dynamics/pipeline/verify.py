"""Verification of a run: every file against the digest that its maker left, and what must be there.

A digest stands in the name of codes, parts of tables, shards, attempts and checkpoints, inside
records, manifests, lines of logs and tables of one file, in `SUMS` beside fitted models, and in the
rows of a table for the videos that were filmed for it.
"""

import json
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import PurePosixPath

from PIL import Image

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.storage.files import (
    SUMS,
    adapter_digest,
    damaged_files,
    fetched,
    list_files,
    sha256_file,
)
from dynamics.storage.ledger import Ledger
from dynamics.storage.pairs import PARTS, files_of, is_whole
from dynamics.storage.parquet import check_seal
from dynamics.storage.run_folder import RunFolder, read_json
from dynamics.storage.sealed import manifest_content, unsealed
from dynamics.storage.tables import iter_table

_NAMED = re.compile(r"(?:.*-)?[0-9a-f]{64}\.(?:parquet|safetensors)")
_OTHERS = ("mlflow.db", "mlartifacts", "report.html", "study", "ledger", "lock")
"""Of the run folder: made anew from what is verified, MLflow's own, or verified on their own."""

Check = Callable[[Place], None]
"""Raises an error when a file is not what its maker left."""


def verify(folder: RunFolder) -> tuple[int, list[str]]:
    """The number of files with a digest, and one line for each problem.

    Raises:
        UserError: no run lies there, or run.json is damaged.
    """
    cfg, count = folder.config(), 0
    problems = Ledger(folder.ledger).verify(folder.pool)
    for path in list_files(folder.root):
        inside = PurePosixPath(path.as_posix().removeprefix(f"{folder.root.as_posix()}/"))
        hidden = any(part.startswith(".") for part in inside.parts)
        if not hidden and inside.parts[0] not in _OTHERS and (check := _check_of(path)):
            count += 1
            problems += _said(path, check)
    if (last := _last_round(folder, cfg)) >= 0:
        problems += _absent(_needed_data(folder, cfg))
        for split in ("labelled", "pool", "heldout"):
            problems += _changed_videos(folder, split)
    for round_id in range(last + 1):
        problems += _absent(_needed_of_round(folder, round_id))
        problems += _said(folder.report_path(round_id), partial(_models, folder, cfg, round_id))
        problems += _said(folder.fit_summary(round_id), partial(_curves, folder, round_id))
    return count, sorted({*problems})


def _said(path: Place, check: Check) -> Iterator[str]:
    """What is wrong with a file, in one line."""
    try:
        check(path)
    except UserError as error:
        yield str(error)
    # What the readers of pictures, Parquet and JSON make of damaged bytes.
    except (OSError, ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        yield f"{path} is damaged: {(str(error).splitlines() or [type(error).__name__])[0]}"


def _check_of(path: Place) -> Check | None:
    """What compares a file with its digest; None for a file without one."""
    if _NAMED.fullmatch(path.name):
        return _check_name
    return _CHECKS.get(path.name) or _CHECKS.get(path.suffix)


def _check_name(path: Place) -> None:
    if not path.stem.endswith(sha256_file(path)):
        raise UserError(f"{path} is damaged: its name is not its digest")


def _check_manifest(path: Place) -> None:
    manifest_content(path.read_bytes(), where=path)


def _check_record(path: Place) -> None:
    read_json(path)


def _check_lines(path: Place) -> None:
    for line in path.read_bytes().splitlines():
        found = json.loads(line)
        unsealed(found)
        # A digit that makes no other number is a changed byte, too.
        if json.dumps(found).encode() != line:
            raise ValueError("a line is not as it was written")


def _check_table(path: Place) -> None:
    check_seal(path.read_bytes())


def _check_picture(path: Place) -> None:
    with fetched(path) as file, Image.open(file) as picture:
        picture.verify()  # the checksums of a PNG


def _check_sums(path: Place) -> None:
    if names := damaged_files(path.parent):
        files = ", ".join(str(path.parent / name) for name in names)
        raise UserError(f"{files} missing, or not as in {path}: damaged")


_CHECKS: dict[str, Check] = {
    "manifest.json": _check_manifest,
    "labels.json": _check_manifest,
    SUMS: _check_sums,
    ".json": _check_record,
    ".jsonl": _check_lines,
    ".parquet": _check_table,
    ".png": _check_picture,
}
"""By a file's name, or its suffix."""


def _last_round(folder: RunFolder, cfg: LoopConfig) -> int:
    """The last round that was finished, by any file that says so; -1 before the first."""
    done = int(read_json(folder.done)["rounds"]) if folder.done.exists() else -1
    begun = [*Ledger(folder.ledger).rounds(), 0]
    there = [n for n in range(cfg.rounds + 1) if folder.report_path(n).exists()]
    return max(done, max(begun) - 1, *there, -1)


def _needed_data(folder: RunFolder, cfg: LoopConfig) -> Iterable[Place]:
    yield from (folder.labelled, folder.pool, folder.heldout, folder.ingest, folder.leakage)
    if cfg.labelled.dataset is None:
        yield folder.truth


def _needed_of_round(folder: RunFolder, round_id: int) -> Iterable[Place]:
    yield from (folder.report_path(round_id), folder.results(round_id))
    yield from (folder.training_set(round_id), folder.fit_summary(round_id))
    yield from (folder.training_log(round_id, task).path for task in ("idm", "fdp"))
    yield folder.timings_path(round_id)
    if round_id:
        yield folder.ledger / "rounds" / f"round-{round_id:02d}.json"


def _absent(needed: Iterable[Place]) -> Iterator[str]:
    """A line for each file, or for each file of a table, that is not there."""
    for place in needed:
        if not is_whole(place):
            yield f"{place} is missing; restore it from a copy of the run"
        elif place.suffix == PARTS:
            try:
                files = files_of(place)
            except UserError as error:
                yield str(error)
                continue
            for path in sorted(files):
                if not path.exists():
                    yield f"{path} is missing; restore it from a copy of the run"


def _models(folder: RunFolder, cfg: LoopConfig, round_id: int, path: Place) -> None:
    """Compare the round's models with the digests of its report."""
    if (report := folder.report(round_id)) is not None:
        models = folder.models(report, cfg.base_path())
        for fitted, digest in ((models.idm, models.idm_digest), (models.fdp, models.fdp_digest)):
            if not fitted.is_dir() or adapter_digest(models.base, fitted) != digest:
                raise UserError(
                    f"{fitted} is not what {path} names: it or {models.base} is missing, damaged "
                    "or replaced"
                )


def _curves(folder: RunFolder, round_id: int, _: Place) -> None:
    """Compare the length of the loss curves with the steps of the fits."""
    for task in ("idm", "fdp"):
        folder.loss_curve(round_id, task)


def _changed_videos(folder: RunFolder, split: str) -> Iterator[str]:
    """A line for each video that was filmed for a table and is not the one of its rows."""
    clips = folder.data / split / "clips"
    if not clips.is_dir() or not is_whole(folder.table(split)):
        return
    schema = PAIR_SCHEMA if split == "pool" else TRANSITION_SCHEMA
    columns = ("clip_path", "clip_sha256")
    try:
        tables = list(iter_table(folder.table(split), schema, columns))
    except UserError as error:
        yield str(error)
        return
    for name, sha256 in {
        row for rows in tables for row in zip(*(rows[c].to_pylist() for c in columns), strict=True)
    }:
        if not (clips / name).is_file() or sha256_file(clips / name) != sha256:
            yield f"{clips / name} is missing or was changed; exports draw its frames from codes"
