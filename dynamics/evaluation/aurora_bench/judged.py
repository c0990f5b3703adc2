"""AURORA-BENCH before the LLM judge: its cases, and the figures of its scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
from PIL import Image

from dynamics.core.images import read_picture
from dynamics.core.progress import Progress
from dynamics.evaluation.aurora_bench.benchmark import Benchmark
from dynamics.evaluation.aurora_bench.contestant import COPY
from dynamics.evaluation.aurora_bench.dataset import Item
from dynamics.evaluation.aurora_bench.pictures import fitted
from dynamics.evaluation.aurora_bench.summary import BenchReport, Values, Who, by_subset, figures
from dynamics.evaluation.judge.client import Budget, ChatClient, Endpoint
from dynamics.evaluation.judge.judge import Case, Judgement, ReplyStore, estimate, judge, outcomes
from dynamics.evaluation.judge.protocol import PROMPT_VERSION


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSettings:
    """Endpoint, key and budget of the judge."""

    endpoint: Endpoint
    key: str | None
    budget: int | None
    """Most calls, retries included; None: no limit."""


def with_judge(
    report: BenchReport,
    benchmark: Benchmark,
    answers: pa.Table | None,
    settings: JudgeSettings,
    progress: Progress,
    say: Callable[[str], None],
) -> BenchReport:
    """The report with the judge's figures; the cost is said before the first call.

    Raises:
        UserError: the endpoint's settings are wrong.
    """
    cases = _cases(benchmark, answers)
    store = ReplyStore(folder=benchmark.out / "judge", model=settings.endpoint.model)
    cost = estimate(cases, store, settings.budget)
    say(cost.text())
    budget = Budget(left=settings.budget)
    with ChatClient(settings.endpoint, settings.key, budget) as client:
        judgements = judge(cases, client, store, progress)
    who: Who = "copy" if benchmark.contestant.name == COPY else "model"
    metrics = dict(report.metrics)
    for name, found in _scores(judgements).items():
        if found:
            metrics[name] = {who: figures(name, found)}
    counted = {"model": settings.endpoint.model, "prompt": PROMPT_VERSION, "calls": budget.spent}
    return replace(report, metrics=metrics, judge={**counted, **outcomes(judgements)})


def _scores(judgements: Sequence[Judgement]) -> dict[str, Values]:
    subsets = [judgement.subset for judgement in judgements]
    verdicts = [judgement.verdict for judgement in judgements]
    scores = [verdict and verdict.score for verdict in verdicts]
    worst = [
        0.0 if judgement.outcome == "unparsable" else score
        for judgement, score in zip(judgements, scores, strict=True)
    ]
    return {
        "judge": by_subset(subsets, scores),
        "judge_worst": by_subset(subsets, worst),
        "judge_success": by_subset(subsets, [v and v.success for v in verdicts]),
        "judge_restraint": by_subset(subsets, [v and v.restraint for v in verdicts]),
    }


def _cases(benchmark: Benchmark, answers: pa.Table | None) -> list[Case]:
    """A case per picture that there is; an unanswered item has none and is counted elsewhere."""
    items = benchmark.data.items
    predictions = [None] * len(items) if answers is None else answers["prediction"].to_pylist()
    return [
        Case(
            item_id=item.item_id,
            subset=item.subset,
            instruction=item.instruction,
            pictures=partial(_pictures, item, prediction),
        )
        for item, prediction in zip(items, predictions, strict=True)
        if prediction is not None or answers is None
    ]


def _pictures(item: Item, prediction: bytes | None) -> tuple[Image.Image, Image.Image]:
    """Source and prediction, both of the source's size; the target is never shown."""
    source = read_picture(item.source)
    return source, source if prediction is None else fitted(read_picture(prediction), source.size)
