"""One evaluation of a contestant: the parts that it leaves on disk, and their sum.

OUT/answers/KEY.parquet   what the models answered to a piece of the items
OUT/disc/KEY.parquet      DiscEdit of a piece
OUT/scores/KEY.parquet    scores of a piece, the contestant's and the copy's
OUT/judge/KEY.json        replies of the judge

A key hashes everything that its part depends on, so a part that exists is correct and never made
again: the same command resumes, and another model, option or encoder adds its own parts.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Literal, get_args

import pyarrow as pa

from dynamics.core.progress import Progress
from dynamics.evaluation.aurora_bench.answer import (
    ANSWER_SCHEMA,
    DISC_SCHEMA,
    Answerer,
    Decode,
    answer_key,
    disc_key,
)
from dynamics.evaluation.aurora_bench.contestant import Contestant
from dynamics.evaluation.aurora_bench.dataset import BenchData
from dynamics.evaluation.aurora_bench.encoders import EncoderFolders, load_encoders
from dynamics.evaluation.aurora_bench.score import (
    SCORE_SCHEMA,
    SENTENCE_SCORES,
    Scorer,
    score_key,
)
from dynamics.storage.shards import Shard, cut, num_rows
from dynamics.storage.streams import Done, RunStream, Stream, run_stream
from dynamics.storage.tables import read_table, write_table

Kind = Literal["answers", "disc"]

PART_ITEMS = 10
"""Items answered in one batch, and lost at most by a kill."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job(Shard):
    """A part that the models have to make: a kind and a range of items."""

    kind: Kind


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """Contestant, data and folder of an evaluation. Cheap to pickle: it holds no model."""

    contestant: Contestant
    decode: Decode
    data: BenchData
    out: Path

    def shards(self, kind: Kind) -> list[Shard]:
        """All pieces of the items, or of the DiscEdit items."""
        items = self.data.items if kind == "answers" else self.data.disc_items
        return cut(len(items), PART_ITEMS)

    def key(self, job: Job) -> str:
        """The name of a part."""
        start, stop = job.start, job.stop
        if job.kind == "answers":
            return answer_key(self.contestant, self.decode, self.data, start, stop)
        return disc_key(self.contestant, self.decode, self.data.disc_items[start:stop])

    def path(self, job: Job) -> Path:
        """File of a part."""
        return self.out / job.kind / f"{self.key(job)}.parquet"

    def jobs(self) -> list[Job]:
        """All parts of a contestant with models; none for the copy."""
        if self.contestant.model is None:
            return []
        return [
            Job(kind=kind, start=shard.start, stop=shard.stop)
            for kind in get_args(Kind)
            for shard in self.shards(kind)
        ]

    def missing(self) -> list[Job]:
        """The parts that are not there yet."""
        return [job for job in self.jobs() if not self.path(job).exists()]

    def read(self, kind: Kind) -> list[pa.Table]:
        """The finished parts of a kind, in the items' order."""
        schema = ANSWER_SCHEMA if kind == "answers" else DISC_SCHEMA
        return [read_table(self.path(job), schema) for job in self.jobs() if job.kind == kind]


class Worker:
    """A benchmark with its models loaded; makes the parts that it is given."""

    def __init__(self, benchmark: Benchmark) -> None:
        self._benchmark = benchmark
        self._answerer = Answerer(benchmark.contestant, benchmark.decode, benchmark.data)

    def run(self, item: Job, rows: pa.Table) -> Done:
        """Make a part."""
        if item.kind == "answers":
            table, schema = self._answerer.answer(item.start, item.stop), ANSWER_SCHEMA
        else:
            table, schema = self._answerer.disc_edit(item.start, item.stop), DISC_SCHEMA
        return Done(count=write_table(self._benchmark.path(item), table, schema).num_rows)


def answer_stream(benchmark: Benchmark, jobs: Sequence[Job]) -> Stream[Job]:
    """Parts that the models have to make; each worker reads the pictures that it looks at."""
    return Stream(
        what="answer",
        items=jobs,
        total=num_rows(jobs),
        read=lambda job: pa.table({"start": [job.start]}),
        make_worker=partial(Worker, benchmark),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """All rows of an evaluation."""

    answers: pa.Table | None
    """ANSWER_SCHEMA; None for the copy as contestant."""
    disc: pa.Table | None
    """DISC_SCHEMA; None where there are no such items, or no models."""
    scores: pa.Table | None
    """SCORE_SCHEMA of the contestant; None for the copy, which is the next."""
    copy_scores: pa.Table
    """SCORE_SCHEMA of the copy: its pictures, and the IDM's sentences on unchanged frames."""
    num_made: int
    """Parts that this call made; 0 when everything was there."""


def measure(
    benchmark: Benchmark,
    folders: EncoderFolders,
    progress: Progress,
    run: RunStream = run_stream,
) -> Measured:
    """Make what is missing, read the rest.

    Raises:
        UserError: an encoder's folder or a part on disk is damaged.
    """
    scored = _Scores(benchmark, folders, progress)
    missing = benchmark.missing()
    if missing:
        progress(0, 0, "load the models")
        for _ in run(answer_stream(benchmark, missing), progress):
            pass
    answers, disc = benchmark.read("answers"), benchmark.read("disc")
    scores = None
    copy_scores = scored.table("copy", None)
    if answers:
        scores = scored.table("answer", answers)
        unchanged = scored.table("sentence of copy", answers)
        for name in (*SENTENCE_SCORES, "bleu_statistics"):
            column = copy_scores.schema.get_field_index(name)
            field = copy_scores.schema.field(name)
            copy_scores = copy_scores.set_column(column, field, unchanged[name])
    return Measured(
        answers=pa.concat_tables(answers) if answers else None,
        disc=pa.concat_tables(disc) if disc else None,
        scores=scores,
        copy_scores=copy_scores,
        num_made=len(missing) + scored.num_made,
    )


Scored = Literal["copy", "answer", "sentence of copy"]


class _Scores:
    """Score parts: read where they are, made where not."""

    def __init__(self, benchmark: Benchmark, folders: EncoderFolders, progress: Progress) -> None:
        self._benchmark = benchmark
        self._folders = folders
        self._digest = folders.digest()
        self._progress = progress
        self.num_made = 0

    @cached_property
    def _scorer(self) -> Scorer:
        """Loaded only when a part is missing."""
        return Scorer(load_encoders(self._folders))

    def table(self, what: Scored, answers: Sequence[pa.Table] | None) -> pa.Table:
        """SCORE_SCHEMA rows of all items; ``answers`` are the parts that are scored."""
        shards = self._benchmark.shards("answers")
        tables = []
        for number, shard in enumerate(shards):
            self._progress(shard.start, len(self._benchmark.data.items), f"score {what}")
            tables.append(self._part(what, shard, answers[number] if answers else None))
        return pa.concat_tables(tables)

    def _part(self, what: Scored, shard: Shard, answers: pa.Table | None) -> pa.Table:
        items = self._benchmark.data.items[shard.start : shard.stop]
        # The copy's scores are the same beside every model.
        job = Job(kind="answers", start=shard.start, stop=shard.stop)
        whose = self._benchmark.key(job) if answers else ""
        key = score_key(f"{what} {whose}", self._digest, items)
        path = self._benchmark.out / "scores" / f"{key}.parquet"
        if path.exists():
            return read_table(path, SCORE_SCHEMA)
        self.num_made += 1
        if what == "copy":
            table = self._scorer.copies(items)
        elif what == "answer":
            table = self._scorer.answers(items, answers)
        else:
            table = self._scorer.sentences_of_copies(items, answers)
        return read_table(write_table(path, table, SCORE_SCHEMA), SCORE_SCHEMA)
