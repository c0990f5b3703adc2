"""What benchmarks write: one line a measurement, as JSON and as a short page."""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
_VERDICTS = {True: "holds", False: "missed", None: ""}


@dataclass
class Measure:
    """One line of the result."""

    section: str
    what: str
    value: str
    wanted: str = ""
    holds: bool | None = None


def write(
    stem: str,
    title: str,
    command: str,
    lines: Sequence[Measure],
    out: Path,
    *,
    more: Mapping[str, Any] | None = None,
    text: str = "",
) -> None:
    """Write ``STEM-DATE.json`` and ``STEM-DATE.md``.

    Args:
        stem: of the files' names.
        title: of the page.
        command: that made the result.
        lines: the measurements.
        out: folder.
        more: further keys of the JSON file.
        text: closes the page.
    """
    out.mkdir(parents=True, exist_ok=True)
    machine = f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}"
    load = "load average {:.1f} {:.1f} {:.1f} at the end".format(*os.getloadavg())
    path = out / f"{stem}-{date.today().isoformat()}"
    head = {"date": date.today().isoformat(), "machine": machine, "load": load, "command": command}
    content = head | {"lines": [asdict(line) for line in lines]} | dict(more or {})
    path.with_suffix(".json").write_text(json.dumps(content, indent=2) + "\n")
    rows = [
        f"| {x.section} | {x.what} | {x.value} | {x.wanted} | {_VERDICTS[x.holds]} |" for x in lines
    ]
    table = ["| section | what | measured | wanted | |", "| --- | --- | --- | --- | --- |", *rows]
    page = f"# {title}, {head['date']}\n\n{machine}; {load}.\n\n`{command}`\n\n"
    path.with_suffix(".md").write_text(page + "\n".join(table) + f"\n{text}")
    print(f"written: {path}.json, {path}.md")
