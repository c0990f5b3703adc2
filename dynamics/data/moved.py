"""Check that files at another path are those that a run's tables were made from."""

from collections import defaultdict
from functools import cache

import pyarrow as pa

from dynamics.core.config import LabelledConfig, LoopConfig, PoolPart
from dynamics.core.errors import UserError, check_machine
from dynamics.core.places import Place
from dynamics.core.records import PAIR_SCHEMA, TRANSITION_SCHEMA
from dynamics.data.labelled import listed
from dynamics.data.labelled.listing import Segment, Stills
from dynamics.data.labelled.mirror import mirrored
from dynamics.data.labelled.paths import Refused
from dynamics.data.labelled.read import file_digests
from dynamics.data.video.sources import list_clips
from dynamics.data.video.unpack import as_file
from dynamics.storage.files import sha256_file
from dynamics.storage.pairs import is_whole
from dynamics.storage.run_folder import RunFolder
from dynamics.storage.tables import iter_table


def check_moved(folder: RunFolder, stored: LoopConfig, cfg: LoopConfig) -> None:
    """Compare the clips that the tables name with the files below paths that changed.

    Files that no table names, and paths that no table was made from yet, are not looked at.

    Args:
        folder: the run.
        stored: the run's config.
        cfg: of equally many pool folders and the same data set, at the same or other paths.

    Raises:
        UserError: names the first file that is missing or has other bytes.
    """
    for old, new in zip(stored.pool.parts, cfg.pool.parts, strict=True):
        if old.path != new.path and is_whole(folder.pool):
            if cfg.pool.more and old.name != new.name:
                raise _other(old.path, new.path, "clips are told apart by the folder's name")
            _check_videos(folder.pool, old, new, f"{old.name}/" if cfg.pool.more else "")
    was, now = stored.labelled, cfg.labelled
    for table, lay_in, lies_in in (
        (folder.labelled, was.path, now.path),
        (folder.heldout, was.heldout_path or was.path, now.heldout_path or now.path),
    ):
        if now.dataset and lay_in and lies_in and lay_in != lies_in and is_whole(table):
            _check_labelled(table, now, lay_in, lies_in)


def _check_videos(table: Place, old: PoolPart, new: PoolPart, prefix: str) -> None:
    """Compare the clips whose names begin with ``prefix``."""
    clips = {prefix + clip.name: clip for clip in list_clips(new)}
    for name, sha256 in _rows(table, PAIR_SCHEMA, "clip_path", "clip_sha256"):
        if not name.startswith(prefix):
            continue
        if name not in clips:
            raise _other(old.path, new.path, f"{name} is missing")
        with as_file(clips[name]) as path:
            if sha256_file(path) != sha256:
                raise _other(old.path, new.path, f"{name} differs")


def _check_labelled(table: Place, cfg: LabelledConfig, old: Place, new: Place) -> None:
    found: dict[tuple[str, str], list[Stills | Segment]] = defaultdict(list)
    for pair in listed(cfg, new).pairs:
        for action in {pair.action, mirrored(pair.action, cfg.mirror or {})}:
            found[pair.name, action].append(pair.frames)
    digest = cache(_readable_sha256)
    for name, action, sha256 in _rows(
        table, TRANSITION_SCHEMA, "clip_path", "action", "clip_sha256"
    ):
        if not (frames := found.get((name, action))):
            raise _other(old, new, f"{name} ({action}) is missing")
        # A long video has many segments and is read once.
        files = [Segment(one.path) if isinstance(one, Segment) else one for one in frames]
        if all(digest(one) != sha256 for one in files):
            raise _other(old, new, f"{name} ({action}) differs")


def _readable_sha256(frames: Stills | Segment) -> str:
    """The digest of a pair's files, empty when one cannot be read."""
    try:
        return file_digests(frames)[0]
    except (OSError, Refused) as error:
        check_machine(error)
        return ""


def _rows(table: Place, schema: pa.Schema, *columns: str) -> list[tuple[str, ...]]:
    """The distinct values of the columns, sorted."""
    found: set[tuple[str, ...]] = set()
    for rows in iter_table(table, schema, columns):
        found.update(zip(*(rows[name].to_pylist() for name in columns), strict=True))
    return sorted(found)


def _other(old: Place, new: Place, what: str) -> UserError:
    return UserError(
        f"{new} does not hold what the run was made from, which lay in {old}: {what}; "
        "restore it, or choose another run_dir"
    )
