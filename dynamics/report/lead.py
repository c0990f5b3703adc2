"""A run in three sentences: how well it draws, what its labels were worth, what a verifier adds."""

from collections.abc import Sequence

from dynamics.core.records import Estimate, RoundReport
from dynamics.evaluation.audit import LabelAudit
from dynamics.evaluation.metrics import HEADLINE_VERIFIER, best_of_sizes
from dynamics.inference.verifiers import label_of


def lead(reports: Sequence[RoundReport], audit: LabelAudit | None = None) -> list[str]:
    """The sentences that the finished rounds have numbers for; plain text."""
    if not reports:
        return []
    first, last = reports[0], reports[-1]
    sentences = (_success(first, last), _labels(last, audit), _best_of(last))
    return [sentence for sentence in sentences if sentence]


def _success(first: RoundReport, last: RoundReport) -> str:
    now, before = (report.metrics.get("eval/fdp_success") for report in (last, first))
    if now is None:
        return _without_oracle(last)
    pairs = f"{_rate(now)} of {now.num_items:,} held-out pairs"
    if first.round_id == last.round_id:
        return f"After round {last.round_id} the FDP draws the right next frame for {pairs}."
    rounds = f"{last.round_id} round{'s' if last.round_id > 1 else ''}"
    labelled_only = (
        "" if before is None else f", against {_rate(before)} with the labelled set alone"
    )
    return (
        f"After {rounds} of training on the IDM's labels the FDP draws the right next frame for "
        f"{pairs}{labelled_only}."
    )


def _without_oracle(last: RoundReport) -> str:
    """What is known of a run on real video, whose next states nobody has written down."""
    names = ("eval/idm_exact", "eval/majority_exact", "eval/code_accuracy_changed")
    exact, majority, changed = (last.metrics.get(name) for name in names)
    if exact is None or majority is None:
        return ""
    drawn = "" if changed is None else f"; the FDP has {_rate(changed)} of the changed codes right"
    return (
        f"After round {last.round_id} the IDM writes the right sentence for {_rate(exact)} of "
        f"{exact.num_items:,} held-out pairs, where the labelled set's commonest one is right for "
        f"{_rate(majority)}{drawn}."
    )


def _labels(last: RoundReport, audit: LabelAudit | None) -> str:
    if not last.num_labelled:
        return ""
    written = (
        f"In round {last.round_id} the IDM labelled {last.num_labelled:,} pairs of the pool "
        f"and the filter accepted {last.num_accepted:,}"
    )
    found, accepted = (last.metrics.get(f"label/accuracy{part}") for part in ("", "_accepted"))
    if found is None and audit is not None and audit.wrong and audit.round_id == last.round_id:
        return (
            f"{written}; of the accepted ones {_rate(audit.wrong)} are wrong, by people who named "
            f"{audit.wrong.num_items:,} of them without seeing the label."
        )
    if found is None:
        return f"{written}; how many of these labels are correct is not known."
    of_accepted = "" if accepted is None else f", of the accepted ones {_rate(accepted)}"
    return f"{written}: of all labels {_rate(found)} are correct{of_accepted}."


def _best_of(last: RoundReport) -> str:
    sizes = best_of_sizes(last.metrics)
    greedy = last.metrics.get("eval/best_of_greedy")
    if not sizes or greedy is None:
        return ""
    best = last.metrics[f"eval/best_of_{sizes[-1]}"]
    oracle = last.metrics.get(f"eval/oracle_best_of_{sizes[-1]}")
    limit = "" if oracle is None else f"; a perfect verifier would reach {_rate(oracle)}"
    return (
        f"On {best.num_items:,} of the held-out pairs, the best of {sizes[-1]} samples by "
        f"{label_of(HEADLINE_VERIFIER)} is right for {_rate(best)}, greedy decoding for "
        f"{_rate(greedy)}{limit}."
    )


def _rate(estimate: Estimate) -> str:
    low, high = (f"{100 * bound:.1f}" for bound in (estimate.low, estimate.high))
    # No line breaks between a number and its interval.
    return f"{100 * estimate.value:.1f} % [{low}, {high}]".replace(" ", "\N{NO-BREAK SPACE}")
