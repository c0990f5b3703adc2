"""Claim (c): what choosing the best of N buys, by verifier, from one set of candidates a scene.

A scene's 32 candidates are cut into disjoint groups of N and the choices' success is averaged over
the groups: fewer, larger groups would waste what was sampled.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamics.evaluation.candidates import CANDIDATE_SCHEMA, evidence_of, scores_of
from dynamics.evaluation.metrics import HEADLINE_VERIFIER, ORACLE
from dynamics.inference.verifiers import VERIFIERS, label_of, weighted
from dynamics.storage.run_folder import read_json
from dynamics.storage.tables import read_table
from dynamics.studies.candidates import CANDIDATES_FILE
from dynamics.studies.results import Number, Row, Strata, Table, difference, mean, share_of_gap
from dynamics.studies.study import Study

# B scenes, N candidates each, G groups of candidates.
CALIBRATED = "calibrated"
COLUMNS = {name: label_of(name) for name in VERIFIERS if name != "idm_contrast"} | {
    CALIBRATED: "IDM, weighted, + FDP"
}
"""What can choose. IDM contrast is left out: the term that it subtracts is the same for all
candidates of a scene, so it picks what the IDM picks."""

RANDOM, GREEDY = "random", "greedy"


class Verified:
    """One seed's candidates of a round at one temperature."""

    def __init__(self, study: Study, round_id: int, temperature: float) -> None:
        path = study.unit(f"verify/{round_id}") / CANDIDATES_FILE
        table = read_table(path, CANDIDATE_SCHEMA).sort_by("pair_id")
        drawn_at = np.array(table["temperature"].to_pylist())
        rows, greedy = table.filter(drawn_at == temperature), table.filter(drawn_at == 0)
        self.right_BN = np.array(rows["correct"].to_pylist(), dtype=bool)
        self.copy_BN = np.array(rows["copied"].to_pylist(), dtype=bool)
        self.greedy_B = np.array(greedy["correct"].to_pylist(), dtype=np.float64)[:, 0]
        weight = float(read_json(study.unit("calibrate") / "weight.json")["weight"])
        self._scores = scores_of(rows) | {CALIBRATED: weighted(weight)(evidence_of(rows))}

    def chosen(self, verifier: str, n: int, what_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Share of the groups of ``n`` whose chosen candidate has a property, [B]."""
        picked_BG1 = _groups(self._scores[verifier], n).argmax(-1)[..., None]
        of_picked_BG1 = np.take_along_axis(_groups(what_BN, n), picked_BG1, -1)
        share_B: NDArray[np.float64] = of_picked_BG1[..., 0].mean(-1)
        return share_B

    def oracle(self, n: int) -> NDArray[np.float64]:
        """Share of the groups of ``n`` with a right candidate, [B]."""
        held: NDArray[np.float64] = _groups(self.right_BN, n).any(-1).mean(-1)
        return held


def _groups(values_BN: NDArray[Any], n: int) -> NDArray[Any]:
    """[B, N // n, n]."""
    usable = values_BN.shape[1] // n * n
    return values_BN[:, :usable].reshape(len(values_BN), -1, n)


def tables(studies: Sequence[Study]) -> dict[str, Table]:
    """One table per round and temperature that all seeds have."""
    found = {}
    for round_id, temperature, verified in _settings(studies):
        rows = [_row(verified, n, f"{round_id} {temperature}") for n in studies[0].plan.best_of]
        found[f"verification-round-{round_id}-t-{temperature}"] = Table(
            title=f"(c) Best of N in round {round_id}, temperature {temperature}",
            note="The share of scenes whose chosen frame is right. Random: one sample. Oracle: "
            "some candidate is right, the most that any verifier could reach. IDM contrast picks "
            "what the IDM picks. The weight is fitted on pairs of the labelled set.",
            columns=(*COLUMNS.values(), RANDOM, GREEDY, ORACLE, "copies chosen by IDM + FDP"),
            rows=tuple(rows),
        )
    return found


def checks(
    studies: Sequence[Study],
) -> Iterator[tuple[str, str, Number, Callable[[Number], bool]]]:
    """Claim, what was asked, the number, and whether it suffices; of the last round at T = 1."""
    for round_id, temperature, verified in _settings(studies):
        sizes = studies[0].plan.best_of
        if round_id != studies[0].cfg.rounds or temperature != 1.0 or 8 not in sizes:
            continue
        at_8 = _success(verified, HEADLINE_VERIFIER, 8)
        one = [one.right_BN.mean(-1) for one in verified]
        best = [one.oracle(8) for one in verified]
        gap = share_of_gap(at_8, one, best, "verification gap")
        yield (
            "(c) best of 8: share of the gap from one sample to the oracle",
            "75 %",
            gap,
            lambda n: n.value >= 0.75,
        )
        greedy = [one.greedy_B for one in verified]
        more = difference(at_8, greedy, "verification greedy")
        yield "(c) best of 8 against greedy", "5 points more", more, lambda n: n.value >= 0.05
        if 16 in sizes:
            at_16 = _success(verified, HEADLINE_VERIFIER, 16)
            step = difference(at_16, at_8, "verification 16")
            yield "(c) best of 16 against best of 8", "not below, beyond noise", step, _not_below


def _not_below(number: Number) -> bool:
    return number.high >= 0


def _settings(studies: Sequence[Study]) -> Iterator[tuple[int, float, list[Verified]]]:
    """Rounds and temperatures that every seed has finished."""
    for round_id in sorted({0, studies[0].cfg.rounds}):
        needed = (f"verify/{round_id}", "calibrate")
        if all(study.is_done(name) for study in studies for name in needed):
            for temperature in studies[0].plan.temperatures:
                yield (
                    round_id,
                    temperature,
                    [Verified(study, round_id, temperature) for study in studies],
                )


def _row(verified: Sequence[Verified], n: int, where: str) -> Row:
    name = f"N = {n}"
    cells = {
        column: mean(_success(verified, verifier, n), f"{where} {name} {verifier}")
        for verifier, column in COLUMNS.items()
    }
    cells[RANDOM] = mean([one.right_BN.mean(-1) for one in verified], f"{where} random")
    cells[GREEDY] = mean([one.greedy_B for one in verified], f"{where} greedy")
    cells[ORACLE] = mean([one.oracle(n) for one in verified], f"{where} {name} oracle")
    copies = [one.chosen(HEADLINE_VERIFIER, n, one.copy_BN) for one in verified]
    cells["copies chosen by IDM + FDP"] = mean(copies, f"{where} {name} copies")
    return Row(name=name, cells=cells)


def _success(verified: Sequence[Verified], verifier: str, n: int) -> Strata:
    return [one.chosen(verifier, n, one.right_BN) for one in verified]
