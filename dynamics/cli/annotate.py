"""``dynamics annotate``: some actions named by hand, in the browser."""

import getpass
import re
import sys
import webbrowser
from collections.abc import Iterator
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dynamics.cli.shared import PlaceName, console, local, named, open_run
from dynamics.core.config import KeyframeConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place, as_place

if TYPE_CHECKING:
    from dynamics.annotate.session import Session
    from dynamics.evaluation.audit import LabelAudit

_NAME = re.compile(r"[\w-]{1,40}")


def annotate(
    folder: Annotated[
        PlaceName, typer.Argument(help="Folder of videos.", metavar="CLIPS", parser=as_place)
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="Labelled set to write, a Parquet file; the answers lie beside it.",
            callback=local,
        ),
    ] = Path("labels.parquet"),
    run: Annotated[
        PlaceName | None,
        typer.Option(
            help="Run folder whose IDM offers sentences; what it is least sure of comes first.",
            metavar="RUN",
            parser=as_place,
        ),
    ] = None,
    audit: Annotated[
        bool,
        typer.Option(
            "--audit",
            help="Ask about labels that the last promoted round of --run accepted, drawn at random "
            "and not shown: what share of them is wrong?",
        ),
    ] = False,
    name: Annotated[
        str | None, typer.Option(help="Your name, which every answer keeps; default: your login.")
    ] = None,
    source: Annotated[str, named("dynamics.data.video.sources:SOURCES", "Layout")] = "folder",
    top_k: Annotated[
        int | None, typer.Option(help="Key frames a clip; default: the run's, or 6.", min=2)
    ] = None,
    spacing: Annotated[
        int | None,
        typer.Option(
            help="Least distance of key frames, in frames; default: the run's, or 20.", min=1
        ),
    ] = None,
    repeat_every: Annotated[
        int,
        typer.Option(
            help="Ask again about an earlier pair, or another annotator's, every so many answers, "
            "to measure agreement; 0: never.",
            min=0,
        ),
    ] = 10,
    port: Annotated[int, typer.Option(help="Port on this machine.", min=1, max=65535)] = 8001,
    show: Annotated[
        bool | None,
        typer.Option("--open/--no-open", help="Open the page; default: in a terminal only."),
    ] = None,
) -> None:
    """Name some actions in the browser, by keyboard: a labelled set for a run.

    The page plays the clip around a pair of frames and takes a sentence; one
    that was used before costs a key. Varied pairs come first, or with --run
    those that its IDM is least sure of. Every answer is on the disk at once:
    end with Ctrl-C at any time, the same command goes on. Several people may
    annotate into one file, each with a --name of their own.

    The first labels: dynamics annotate CLIPS --out labels.parquet
    """
    from dynamics.annotate.server import check_port, serve
    from dynamics.annotate.session import open_session

    if out.suffix != ".parquet":
        raise UserError(f"--out {out} must end in .parquet")
    who = name or getpass.getuser()
    if not _NAME.fullmatch(who):
        raise UserError(f"--name {who}: letters, digits, _ and -, at most 40")
    check_port(port)
    namer, asked, keyframes = None, None, KeyframeConfig()
    if audit:
        if run is None:
            raise UserError("--audit needs --run RUN, whose labels it is about")
        from dynamics.annotate.audit import Audit

        asked = Audit(open_run(run))
    elif run is not None:
        from dynamics.annotate.namer import RunNamer

        namer = RunNamer(open_run(run))
        keyframes = namer.keyframes
    chosen = {"top_k": top_k, "spacing_frames": spacing}
    given = {key: value for key, value in chosen.items() if value is not None}
    keyframes = keyframes.model_copy(update=given)
    with open_session(folder, source, out, who, keyframes, namer, repeat_every, asked) as session:
        url = f"http://127.0.0.1:{port}/"
        console.print(
            f"{len(session.clips):,} clips; {who} has answered {len(session.answers):,} times",
            markup=False,
        )
        console.print(f"annotate at {url} - Ctrl-C ends and keeps everything", markup=False)
        if sys.stdout.isatty() if show is None else show:
            webbrowser.open(url)
        serve(session, port)
    found = _audited(asked.keep(session.everybody()), run) if asked and run else ()
    for line in chain(found, _summary(session, folder, out)):
        console.print(line, markup=False)


def _audited(found: "LabelAudit", run: Place) -> Iterator[str]:
    if found.wrong is None:
        yield "no label was judged yet; the same command goes on"
        return
    low, high = (f"{100 * bound:.1f}" for bound in (found.wrong.low, found.wrong.high))
    yield (
        f"of {found.num_accepted:,} labels that round {found.round_id} accepted "
        f"{100 * found.wrong.value:.1f} % [{low}, {high}] are wrong, by {found.wrong.num_items:,} "
        f"drawn at random; {found.num_unsure:,} more could not be judged"
    )
    yield f"sentence by sentence: dynamics report {run}"


def _summary(session: "Session", folder: Place, out: Path) -> Iterator[str]:
    own, others = session.agreement()
    for said, whom in ((own, "you agree with yourself"), (others, "annotators agree")):
        if said.asked:
            yield f"{whom} in {said.same} of {said.asked} pairs that were asked twice"
    if others.alpha is not None:
        yield f"Krippendorff's alpha {others.alpha:.2f}: 1 is full agreement, 0 that of chance"
    if not session.num_labels:
        yield f"no label yet; go on with: dynamics annotate {folder} --out {out}"
        return
    yield f"{session.num_labels:,} labels of {session.num_sentences:,} sentences in {out}"
    yield f"next: dynamics new my-robot --videos {folder} --labels {out}"
