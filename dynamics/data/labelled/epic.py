"""EPIC-KITCHENS-100: narrated segments of long videos, in a CSV file.

Format: https://github.com/epic-kitchens/epic-kitchens-100-annotations. Used columns: video_id,
start_timestamp and stop_timestamp (HH:MM:SS.ss), narration, and, where there, narration_id and
verb. The pair is the first and the last frame of the segment (paper, section 3.1).
"""

import csv
import io
import re
from collections.abc import Iterator

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.data.labelled.listing import (
    Collector,
    Labelled,
    LabelledPair,
    Segment,
    plain_action,
    printable,
)
from dynamics.data.labelled.paths import Refused, first_file
from dynamics.data.labelled.videos import Videos
from dynamics.data.text import read_text

ORIGIN = (
    "https://github.com/epic-kitchens/epic-kitchens-100-annotations has the annotations, "
    "https://github.com/epic-kitchens/epic-kitchens-download-scripts gets the videos"
)
COLUMNS = ("video_id", "start_timestamp", "stop_timestamp", "narration")
_NAMES = (
    "EPIC_100_train.csv",
    "epic-kitchens-100-annotations/EPIC_100_train.csv",
    "annotations/EPIC_100_train.csv",
)
_CLOCK = re.compile(r"(\d{1,3}):(\d{2}):(\d{2}(?:\.\d{1,9})?)")


def list_epic(path: Place) -> Labelled:
    """One pair a narrated segment.

    Args:
        path: the folder that holds annotations and videos, whose EPIC_100_train.csv is read, or an
            annotation file, whose videos lie anywhere below its folder.

    Raises:
        UserError: no annotations, damaged ones, or no row can be used.
    """
    collector = Collector(f"epic in {path}", ORIGIN)
    manifest = path
    if not path.is_file():
        places = [path / name for name in _NAMES]
        manifest = first_file(places, f"annotations of EPIC-KITCHENS-100 in {path}; {ORIGIN}")
    videos = Videos(manifest.parent if path.is_file() else path)
    for number, row in enumerate(_rows(manifest)):
        name = row.get("narration_id") or f"{manifest.name} row {number}"
        try:
            action = plain_action(row["narration"])
            span_s = (_seconds(row["start_timestamp"]), _seconds(row["stop_timestamp"]))
            if span_s[0] >= span_s[1]:
                raise Refused("empty_segment")
            found = videos.find(row["video_id"])
        except Refused as error:
            collector.reject(name, str(error))
            continue
        collector.add(
            LabelledPair(
                name=found.name,
                frames=Segment(found.path, span_s),
                action=action,
                clip_class=row.get("verb", "")[:200],
                sources=(row["video_id"],),
            )
        )
    videos.explain(collector)
    return collector.done()


def _rows(manifest: Place) -> Iterator[dict[str, str]]:
    """Rows whose missing cells are empty."""
    text = io.StringIO(read_text(manifest), newline="")
    reader = csv.DictReader(text, restval="", skipinitialspace=True)
    try:
        missing = [name for name in COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise UserError(
                f"{manifest} has no column {', '.join(missing)}{_found(reader)}; {ORIGIN}"
            )
        for row in reader:
            yield {key: value for key, value in row.items() if key is not None}
    except csv.Error as error:
        raise UserError(f"{manifest} is no valid CSV file ({error}); get it again") from error


def _found(reader: "csv.DictReader[str]") -> str:
    """What stands in the first line in place of the columns."""
    names = list(reader.fieldnames or ())
    for separator, called in ((";", "semicolons"), ("\t", "tabs"), ("|", "bars")):
        if len(names) < 2 and separator in "".join(names):
            return f", since its columns are separated by {called}; separate them by commas"
    return f" but {printable(', '.join(names))}" if names else " and is empty"


def _seconds(clock: str) -> float:
    match = _CLOCK.fullmatch(clock.strip())
    if match is None:
        raise Refused("no_timestamp")
    hours, minutes, seconds = match.groups()
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)
