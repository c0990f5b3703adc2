"""What rounds will bring, by what more labels bring."""

from dynamics.evaluation.more_labels import MoreLabels
from dynamics.plan.findings.finding import Finding

WORTH = 0.05
"""Gain of the FDP from four times the labels below which rounds have shown none."""
_FULL = 0.95
"""Share from which on there is nothing left to gain."""
_WHAT = {
    "eval/fdp_success": "frames right",
    "eval/code_accuracy_changed": "changed codes right",
    "eval/idm_accuracy": "sentences right",
    "eval/idm_exact": "sentences right",
}


def expected_of_rounds(measured: MoreLabels) -> Finding:
    """Would more labels help the FDP, and can the IDM write them?"""
    fdp, idm = measured.gain
    few, many = measured.num_labels
    quarter, whole = measured.arms
    said = [
        f"{name} {_WHAT[metric]} {100 * quarter[metric].value:.1f} -> {whole[metric].percent()} %"
        for name, metric in (("FDP", fdp), ("IDM", idm))
    ]
    gain = measured.gain[fdp]
    line = (
        f"from {few:,} to {many:,} labels, trained as in round 0: {'; '.join(said)}; the FDP gains "
        f"{gain.percent()} points. On three worlds two or three rounds brought 30 to 60 % of that"
    )
    common = whole.get("eval/majority_exact")
    if common is not None and whole[idm].low <= common.value:
        return Finding(
            level="warn",
            found=f"{line}; the IDM is no better than always saying the commonest sentence",
            remedy="more labels (dynamics annotate), or a longer pretraining of the base "
            "(pretrain.steps): labels of this IDM would teach the FDP nothing",
        )
    if gain.low > 0 and gain.value >= WORTH:
        return Finding(level="fine", found=line)
    remedy = (
        "nothing is left for rounds to gain: fewer labels would have done"
        if whole[fdp].value >= _FULL
        else "labels are not what this FDP lacks: see whether its pairs can be foretold at all "
        "(frames closer together, sentences that say more), then the base (more pretrain.steps)"
    )
    return Finding(level="warn", found=line, remedy=remedy)
