"""From rows to figures: every metric per subset and as the mean over subsets, with intervals.

Intervals are 95 % bootstraps over items, resampled within their subset; the spread between
training seeds is not in them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any, Literal, get_args

import numpy as np
import pyarrow as pa

from dynamics.core.records import Estimate
from dynamics.core.seeds import derive_seed
from dynamics.evaluation.aurora_bench.answer import PREFERENCES
from dynamics.evaluation.aurora_bench.benchmark import Benchmark, Measured
from dynamics.evaluation.aurora_bench.dataset import SUBSETS
from dynamics.evaluation.aurora_bench.language import corpus_bleu
from dynamics.evaluation.aurora_bench.score import PICTURE_SCORES, SENTENCE_SCORES
from dynamics.evaluation.intervals import bootstrap_strata, mean_of_strata

MEAN = "mean"
"""Stands beside the subsets: the mean over them, each weighing the same."""

Who = Literal["model", "copy"]
Group = Literal["against the target", "a copy cannot win", "sentences", "preference", "judge"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """A row of the table."""

    title: str
    group: Group
    better: Literal["higher", "lower"] = "higher"
    digits: int = 3
    """After the point, as papers print it."""


def _preference_title(name: str) -> str:
    task, negative = name.split("_prefers_")
    return f"{task.upper()} over {negative.replace('_', ' ')}"


METRICS: dict[str, Metric] = {
    "l1": Metric(title="L1", group="against the target", better="lower", digits=4),
    "ssim": Metric(title="SSIM", group="against the target"),
    "clip_i": Metric(title="CLIP-I", group="against the target"),
    "clip_t": Metric(title="CLIP-T", group="against the target"),
    "dino": Metric(title="DINO", group="against the target"),
    "nearer_target_vq": Metric(title="nearer target, VQ", group="a copy cannot win"),
    "nearer_target_clip": Metric(title="nearer target, CLIP", group="a copy cannot win"),
    "change_iou": Metric(title="change IoU", group="a copy cannot win"),
    "disc_edit": Metric(title="DiscEdit", group="a copy cannot win"),
    "copy_rate": Metric(title="copies", group="a copy cannot win", better="lower"),
    "bleu": Metric(title="BLEU", group="sentences"),
    "rouge_l": Metric(title="ROUGE-L", group="sentences"),
    "rouge_l_stemmed": Metric(title="ROUGE-L of stems", group="sentences"),
    "bert_score": Metric(title="BERTScore", group="sentences"),
    **{name: Metric(title=_preference_title(name), group="preference") for name in PREFERENCES},
    "judge": Metric(title="judge, of answered", group="judge"),
    "judge_success": Metric(title="success of the edit", group="judge"),
    "judge_restraint": Metric(title="minimal editing", group="judge"),
    "judge_worst": Metric(title="judge, unparsable = 0", group="judge"),
}

Values = Mapping[str, Sequence[Any]]
"""Known values per subset."""
Figures = dict[str, Estimate]
"""Per subset, and MEAN."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """All figures of an evaluation."""

    model: str
    model_digest: str
    decode: str
    num_items: dict[str, int]
    """Usable pairs per subset."""
    rejects: dict[str, int]
    """Rows of the manifests that could not be used, per reason."""
    instructions: dict[str, int]
    """Items per problem: ``truncated``, ``with_unknown_words``, ``unanswered``."""
    metrics: dict[str, dict[Who, Figures]]
    """By name of `METRICS`; what was not measured is not there."""
    left_out: list[str]
    """One line per encoder that is missing."""
    judge: dict[str, Any] = field(default_factory=dict)
    """The judge's model and its cases per outcome; empty without a judge."""

    def to_json(self) -> dict[str, Any]:
        """A plain dict for JSON."""
        return asdict(self)


def report(benchmark: Benchmark, measured: Measured, left_out: Sequence[str]) -> BenchReport:
    """The figures of all rows."""
    columns: dict[Who, dict[str, Values]] = {
        "model": _columns(measured.scores) | _answered(measured),
        "copy": _columns(measured.copy_scores) | _answered_by_copy(measured),
    }
    metrics: dict[str, dict[Who, Figures]] = {}
    for name in METRICS:
        found = {who: figures(name, columns[who].get(name, {})) for who in get_args(Who)}
        if there := {who: known for who, known in found.items() if known}:
            metrics[name] = there
    data = benchmark.data
    return BenchReport(
        model=benchmark.contestant.name,
        model_digest=benchmark.contestant.digest,
        decode=benchmark.decode.text(),
        num_items={s: sum(item.subset == s for item in data.items) for s in SUBSETS},
        rejects=data.rejects,
        instructions=_instructions(measured.answers),
        metrics=metrics,
        left_out=list(left_out),
    )


def by_subset(subsets: Sequence[str], values: Sequence[Any]) -> Values:
    """The values that are known, per subset, in the paper's order."""
    found: dict[str, list[Any]] = {subset: [] for subset in dict.fromkeys([*SUBSETS, *subsets])}
    for subset, value in zip(subsets, values, strict=True):
        if value is not None:
            found[subset].append(value)
    return {subset: known for subset, known in found.items() if known}


def figures(name: str, values: Values) -> Figures:
    """A metric per subset and over all; empty without values."""
    found = {subset: _estimate(name, subset, [known]) for subset, known in values.items()}
    if found:
        found[MEAN] = _estimate(name, MEAN, list(values.values()))
    return found


def _estimate(name: str, where: str, strata: Sequence[Sequence[Any]]) -> Estimate:
    seed = derive_seed("aurora-bench", name, where)
    if name != "bleu":
        return mean_of_strata(strata, seed)
    rows = [np.asarray(values, dtype=np.float64) for values in strata]
    # Over subsets, BLEU is that of the corpus in which every subset weighs the same.
    return bootstrap_strata(rows, partial(corpus_bleu, num_items=sum(map(len, rows))), seed)


def _columns(scores: pa.Table | None) -> dict[str, Values]:
    if scores is None:
        return {}
    subsets = scores["subset"].to_pylist()
    named = {name: scores[name] for name in (*PICTURE_SCORES, *SENTENCE_SCORES)}
    named["bleu"] = scores["bleu_statistics"]
    return {name: by_subset(subsets, column.to_pylist()) for name, column in named.items()}


def _answered(measured: Measured) -> dict[str, Values]:
    found: dict[str, Values] = {}
    if measured.answers is not None:
        subsets = measured.answers["subset"].to_pylist()
        for name, column in (
            ("nearer_target_vq", "nearer_target_vq"),
            ("copy_rate", "copied"),
            *((name, name) for name in PREFERENCES),
        ):
            found[name] = by_subset(subsets, measured.answers[column].to_pylist())
    if measured.disc is not None:
        found["disc_edit"] = by_subset(
            measured.disc["subset"].to_pylist(), measured.disc["success"].to_pylist()
        )
    return found


def _answered_by_copy(measured: Measured) -> dict[str, Values]:
    """Answers of a copy, known without a model.

    It never leaves its source: it is never nearer the target, and of DiscEdit's prompts neither
    moves it less than the other.
    """
    model = _answered(measured)
    certain = {"nearer_target_vq": 0.0, "disc_edit": 0.0, "copy_rate": 1.0}
    return {
        name: {subset: [value] * len(known) for subset, known in model[name].items()}
        for name, value in certain.items()
        if name in model
    }


def _instructions(answers: pa.Table | None) -> dict[str, int]:
    if answers is None:
        return {}
    return {
        "truncated": sum(answers["truncated"].to_pylist()),
        "with_unknown_words": sum(n > 0 for n in answers["num_unknown"].to_pylist()),
        "unanswered": answers["prediction"].null_count,
    }
