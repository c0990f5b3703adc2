"""LeRobot datasets, v3: episodes packed into mp4 and Parquet files, with tasks in words.

Format: https://huggingface.co/docs/lerobot/lerobot-dataset-v3. ``meta/info.json`` names the files;
``meta/episodes/*/*.parquet`` says which part of which video an episode is; the words are, the
finest first,

- ``language_persistent`` rows of style ``subtask``, each in force from its timestamp on (v3.1),
- ``subtask_index`` per frame, named by ``meta/subtasks.parquet``,
- ``task_index`` per frame, named by ``meta/tasks.parquet``.

Frames with the same words in a row are one segment; its first and last frame are the pair. One
camera is used: the named one (``labelled.camera``), else the first with videos that info.json
lists, else the first whose pictures lie in the data files.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from dynamics.core.errors import UserError, check_machine
from dynamics.core.places import Place, matching
from dynamics.core.pointers import HEAD_BYTES, pointer_kind
from dynamics.core.text_files import read_json_object
from dynamics.data.labelled.listing import (
    Collector,
    Labelled,
    LabelledPair,
    Segment,
    Stills,
    plain_action,
)
from dynamics.data.labelled.paths import Refused, Root
from dynamics.data.labelled.table import PictureTable, TablePicture, open_parquet

ORIGIN = "datasets of this format: https://huggingface.co/datasets?other=LeRobot"
_OLD = (
    "convert it: python -m lerobot.scripts.convert_dataset_v21_to_v30 --repo-id NAME --root FOLDER "
    "--push-to-hub=false"  # without it the data set is changed on the hub, too
)
_FRAME_COLUMNS = ("episode_index", "timestamp", "task_index", "subtask_index")
_LANGUAGE = "language_persistent"


def list_lerobot(path: Place, camera: str | None = None) -> Labelled:
    """One pair a segment of an episode.

    Args:
        path: the dataset's folder, which holds ``meta``.
        camera: key of a feature in info.json; None = the first.

    Raises:
        UserError: no v3 dataset with a camera there, a damaged one, or no segment can be used.
    """
    dataset = _Dataset(path, camera)
    others = f", not {', '.join(dataset.others)}" if dataset.others else ""
    collector = Collector(f"lerobot in {path} (camera {dataset.camera}{others})", ORIGIN)
    for episode in dataset.episodes():
        name = f"episode {episode.get('episode_index')}"
        try:
            spans = dataset.spans(episode)
            source, frames = dataset.frames(episode)
        except Refused as error:
            collector.reject(name, str(error))
            continue
        except (KeyError, TypeError, ValueError):
            collector.reject(name, "damaged_metadata")
            continue
        if not spans:
            collector.reject(name, "no_action")
        for span in spans:
            try:
                action = plain_action(span.words)
                if span.last_s <= span.first_s:
                    raise Refused("empty_segment")
            except Refused as error:
                collector.reject(f"{name} at {span.first_s:.2f} s", str(error))
                continue
            collector.add(
                LabelledPair(
                    name=dataset.root.name_of(source),
                    frames=frames(span, name),
                    action=action,
                    clip_class=action,
                    sources=(name,),
                )
            )
    return collector.done()


@dataclass(frozen=True, slots=True)
class _Span:
    """Frames of an episode with the same words, in seconds from the episode's beginning."""

    words: object
    first_s: float
    last_s: float
    first_row: int
    """Row of the data file."""
    last_row: int


_Frames = Callable[[_Span, str], Segment | Stills]
"""The two frames of a span of the episode with this name."""


class _Dataset:
    """The metadata of a dataset; a data file's columns are read once."""

    def __init__(self, folder: Place, camera: str | None) -> None:
        self.root = Root(folder)
        info = _info(folder)
        self._video_path = str(info.get("video_path"))
        self._data_path = str(info.get("data_path"))
        cameras = _cameras(folder, info)
        self.camera = next(iter(cameras)) if camera is None else camera
        if self.camera not in cameras:
            raise UserError(
                f"{folder} has no camera {camera}; labelled.camera can be {', '.join(cameras)}"
            )
        self.others = [name for name in cameras if name != self.camera]
        self._in_videos = cameras[self.camera]
        self._words = {
            column: _names(folder / "meta" / f"{stem}.parquet", column)
            for column, stem in (("subtask_index", "subtasks"), ("task_index", "tasks"))
        }
        self._data: tuple[Place, dict[int, _Episode]] | None = None
        self._pictures: PictureTable | None = None

    def episodes(self) -> Iterator[dict[str, Any]]:
        files = matching(self.root.folder / "meta" / "episodes", "*/*.parquet")
        if not files:
            raise UserError(f"{self.root.folder} has no meta/episodes/*/*.parquet; get it again")
        for file in files:
            table = open_parquet(file)
            # Statistics are most of the file, and not needed.
            names = [n for n in table.schema_arrow.names if not n.startswith("stats/")]
            try:
                yield from table.read(columns=names).to_pylist()
            except (pa.ArrowInvalid, OSError) as error:
                raise UserError(f"{file} is damaged; get it again") from error

    def frames(self, episode: dict[str, Any]) -> tuple[Place, _Frames]:
        """The file with the episode's frames, and how to find them there."""
        if self._in_videos:
            place = self._place(self._video_path, f"videos/{self.camera}", episode)
            video = self.root.find(place, "missing_video")
            start_s = float(episode[f"videos/{self.camera}/from_timestamp"])
            return video, lambda span, _: Segment(
                video, (start_s + span.first_s, start_s + span.last_s)
            )
        file = self.root.find(self._place(self._data_path, "data", episode), "missing_data")
        if self._pictures is None or self._pictures.path != file:
            self._pictures = PictureTable(file, (self.camera,))
        table = self._pictures

        def stills(span: _Span, name: str) -> Stills:
            ends = ((span.first_row, span.first_s), (span.last_row, span.last_s))
            return Stills(
                *(TablePicture(table, row, self.camera, f"{name} at {s:.2f} s") for row, s in ends)
            )

        return file, stills

    def spans(self, episode: dict[str, Any]) -> list[_Span]:
        """Segments in the order of time."""
        file = self.root.find(self._place(self._data_path, "data", episode), "missing_data")
        if self._data is None or self._data[0] != file:
            self._data = (file, _by_episode(file))
        found = self._data[1].get(episode["episode_index"])
        return [] if found is None else _spans(found, self._words)

    def _place(self, template: str, prefix: str, episode: dict[str, Any]) -> str:
        """A path of info.json with its fields filled in; other format syntax stays as it is."""
        fields = {
            "video_key": self.camera,
            "chunk_index": f"{int(episode[f'{prefix}/chunk_index']):03d}",
            "file_index": f"{int(episode[f'{prefix}/file_index']):03d}",
        }
        for name, value in fields.items():
            template = template.replace(f"{{{name}:03d}}", value).replace(f"{{{name}}}", value)
        return template


def _info(folder: Place) -> dict[str, Any]:
    path = folder / "meta" / "info.json"
    try:
        info = read_json_object(path)
    except OSError as error:
        raise UserError(f"{folder} is no LeRobot dataset (no meta/info.json); {ORIGIN}") from error
    version = info.get("codebase_version")
    if not str(version).startswith("v3."):
        raise UserError(f"{folder} is a LeRobot dataset of version {version}, not v3; {_OLD}")
    return info


def _cameras(folder: Place, info: dict[str, Any]) -> dict[str, bool]:
    """Names of the cameras and whether their frames are in videos, those with videos first."""
    features = info.get("features")
    cameras = {
        str(name): feature.get("dtype")
        for name, feature in (features.items() if isinstance(features, dict) else ())
        if isinstance(feature, dict) and not _is_depth(feature)
    }
    found = {
        name: kind == "video"
        for kind in ("video", "image")
        for name in cameras
        if cameras[name] == kind
    }
    if not found:
        raise UserError(f"{folder} has no camera (a feature of dtype video or image); {ORIGIN}")
    return found


def _is_depth(feature: dict[str, Any]) -> bool:
    details = feature.get("info")
    found = details if isinstance(details, dict) else {}
    return bool(found.get("is_depth_map") or found.get("video.is_depth_map"))


def _names(path: Place, column: str) -> dict[int, str]:
    """Index to words; pandas wrote the words as the table's index, whose column's name varies."""
    if not path.is_file():
        return {}
    try:
        table = open_parquet(path).read()
    except (pa.ArrowInvalid, OSError) as error:
        raise UserError(f"{path} is damaged; get it again") from error
    texts = [name for name in table.column_names if name != column]
    if column not in table.column_names or not texts:
        raise UserError(f"{path} has no column {column} with its words; get it again")
    return dict(zip(table[column].to_pylist(), table[texts[0]].to_pylist(), strict=True))


@dataclass(slots=True)
class _Episode:
    """The rows of a data file for an episode."""

    language: list[dict[str, Any]]
    """Its ``language_persistent`` rows, which every frame repeats."""
    frames: list[dict[str, Any]] = field(default_factory=list)


def _by_episode(file: Place) -> dict[int, _Episode]:
    """A data file by episode, without sensor readings."""
    with file.open("rb") as stream:
        if kind := pointer_kind(stream.read(HEAD_BYTES)):
            raise Refused(kind)
    try:
        table = pq.ParquetFile(file.open("rb"))
        wanted = (*_FRAME_COLUMNS, _LANGUAGE)
        rows = table.read(columns=[name for name in table.schema_arrow.names if name in wanted])
    except (pa.ArrowInvalid, OSError) as error:
        check_machine(error)
        raise Refused("damaged_data") from error
    said = rows[_LANGUAGE] if _LANGUAGE in rows.column_names else None
    small = rows.select([name for name in rows.column_names if name != _LANGUAGE])
    found: dict[int, _Episode] = {}
    for number, row in enumerate(small.to_pylist()):
        episode = row["episode_index"]
        if episode not in found:
            found[episode] = _Episode(said[number].as_py() or [] if said is not None else [])
        found[episode].frames.append(row | {"row": number})
    return found


def _spans(episode: _Episode, words: dict[str, dict[int, str]]) -> list[_Span]:
    if subtasks := _subtasks(episode.language):
        said = [_in_force(subtasks, frame["timestamp"]) for frame in episode.frames]
    else:
        said = [_indexed(frame, words) for frame in episode.frames]
    spans = []
    pairs = zip(said, episode.frames, strict=True)
    for words_said, group in groupby(pairs, key=lambda pair: pair[0]):
        ends = [(float(frame["timestamp"]), frame["row"]) for _, frame in group]
        if words_said is not None:
            (first_s, first), (last_s, last) = ends[0], ends[-1]
            spans.append(_Span(words_said, first_s, last_s, first, last))
    return spans


def _subtasks(rows: Iterable[dict[str, Any]]) -> list[tuple[float, str]]:
    """(seconds, words) in the order of time."""
    found = [(float(r["timestamp"]), r["content"]) for r in rows if r.get("style") == "subtask"]
    return sorted((time, words) for time, words in found if words)


def _in_force(subtasks: list[tuple[float, str]], time_s: float) -> str | None:
    """The last words that begin by ``time_s``."""
    # Both are float32 of the same clock, so equal moments are equal.
    started = [words for start, words in subtasks if start <= time_s]
    return started[-1] if started else None


def _indexed(frame: dict[str, Any], words: dict[str, dict[int, str]]) -> str | None:
    for column, names in words.items():
        found = names.get(frame.get(column, -1))
        if found is not None:
            return found
    return None
