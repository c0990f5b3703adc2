"""Claim (c): the gain from choosing the best of N, by verifier, from one set of candidates a scene.

A scene's 32 candidates are cut into disjoint groups of N and the choices' success is averaged over
the groups: fewer, larger groups would waste what was sampled.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dynamics.evaluation.candidates import CANDIDATE_SCHEMA, evidence_of, scores_of
from dynamics.evaluation.metrics import HEADLINE_VERIFIER, ORACLE
from dynamics.inference.verifiers import VERIFIERS, label_of, weighted
from dynamics.storage.run_folder import read_json
from dynamics.storage.tables import read_table
from dynamics.studies.candidates import CANDIDATES_FILE, WEIGHT_FILE
from dynamics.studies.experiments import CALIBRATE, candidates
from dynamics.studies.results import (
    Check,
    Row,
    Strata,
    Table,
    checked,
    difference,
    mean,
)
from dynamics.studies.study import Study

# B scenes, N candidates each, G groups of candidates.
CALIBRATED = "calibrated"
COLUMNS = {name: label_of(name) for name in VERIFIERS if name != "idm_contrast"} | {
    CALIBRATED: "IDM, weighted, + FDP"
}
"""Verifier to its column. IDM contrast is left out: the term that it subtracts is the same for all
candidates of a scene, so it picks what the IDM picks."""

RANDOM, GREEDY = "random", "greedy"
REGRET, COPIES = "regret", "copies chosen by IDM + FDP"


class Candidates:
    """One seed's candidates of a round at one temperature."""

    def __init__(self, study: Study, round_id: int, temperature: float) -> None:
        path = study.folder(candidates(round_id)) / CANDIDATES_FILE
        table = read_table(path, CANDIDATE_SCHEMA).sort_by("pair_id")
        drawn_at = np.array(table["temperature"].to_pylist())
        rows, greedy = table.filter(drawn_at == temperature), table.filter(drawn_at == 0)
        self.correct_BN = np.array(rows["correct"].to_pylist(), dtype=bool)
        self.copied_BN = np.array(rows["copied"].to_pylist(), dtype=bool)
        self.greedy_B = np.array(greedy["correct"].to_pylist(), dtype=bool)[:, 0]
        weight = float(read_json(study.folder(CALIBRATE) / WEIGHT_FILE)["weight"])
        self._scores = scores_of(rows) | {CALIBRATED: weighted(weight)(evidence_of(rows))}

    def chosen(self, verifier: str, n: int, has_BN: NDArray[np.bool_]) -> NDArray[np.float64]:
        """Share of the groups of ``n`` whose chosen candidate has a property, [B]."""
        picked_BG1 = _groups(self._scores[verifier], n).argmax(-1)[..., None]
        has_BG1 = np.take_along_axis(_groups(has_BN, n), picked_BG1, -1)
        share_B: NDArray[np.float64] = has_BG1[..., 0].mean(-1)
        return share_B

    def oracle(self, n: int) -> NDArray[np.float64]:
        """Share of the groups of ``n`` with a correct candidate, [B]."""
        share_B: NDArray[np.float64] = _groups(self.correct_BN, n).any(-1).mean(-1)
        return share_B


def _groups(values_BN: NDArray[Any], n: int) -> NDArray[Any]:
    """Disjoint groups of n candidates, [B, N // n, n]."""
    usable = values_BN.shape[1] // n * n
    return values_BN[:, :usable].reshape(len(values_BN), -1, n)


def tables(studies: Sequence[Study]) -> dict[str, Table]:
    """Table per round and temperature that all seeds have."""
    found = {}
    for round_id, temperature, seeds in _settings(studies):
        rows = [_row(seeds, n, f"{round_id} {temperature}") for n in studies[0].plan.best_of]
        found[f"verification-round-{round_id}-t-{temperature}"] = Table(
            title=f"(c) Best of N in round {round_id}, temperature {temperature}",
            note="The share of scenes whose chosen frame is correct. Random: one sample. Oracle: "
            "some candidate is correct, the most that any verifier could reach. Regret: what IDM + "
            "FDP miss of that. IDM contrast picks what the IDM picks. The weight is fitted on the "
            "labelled set.",
            columns=(*COLUMNS.values(), RANDOM, GREEDY, ORACLE, REGRET, COPIES),
            rows=tuple(rows),
        )
    return found


def checks(studies: Sequence[Study]) -> list[Check]:
    """Bars of claim (c) for the last round at temperature 1."""
    found: list[Check] = []
    for round_id, temperature, seeds in _settings(studies):
        sizes = studies[0].plan.best_of
        if round_id != studies[0].cfg.rounds or temperature != 1.0 or 8 not in sizes:
            continue
        at_8 = _success(seeds, HEADLINE_VERIFIER, 8)
        success = mean(at_8, "verification success")
        found += checked("(c) best of 8", "78 %", success, lambda n: n.value >= 0.78)
        greedy = [one.greedy_B for one in seeds]
        more = difference(at_8, greedy, "verification greedy")
        found += checked(
            "(c) best of 8 against greedy", "5 points more", more, lambda n: n.value >= 0.05
        )
        if 16 in sizes:
            at_16 = _success(seeds, HEADLINE_VERIFIER, 16)
            step = difference(at_16, at_8, "verification 16")
            bar = "not below, beyond noise"
            found += checked("(c) best of 16 against best of 8", bar, step, lambda n: n.high >= 0)
    return found


def _settings(studies: Sequence[Study]) -> Iterator[tuple[int, float, list[Candidates]]]:
    """Round, temperature and the candidates of every seed, where all seeds have finished."""
    for round_id in sorted({0, studies[0].cfg.rounds}):
        needed = (candidates(round_id), CALIBRATE)
        if all(study.is_done(one) for study in studies for one in needed):
            for temperature in studies[0].plan.temperatures:
                yield (
                    round_id,
                    temperature,
                    [Candidates(study, round_id, temperature) for study in studies],
                )


def _row(seeds: Sequence[Candidates], n: int, where: str) -> Row:
    name = f"N = {n}"
    chosen = {verifier: _success(seeds, verifier, n) for verifier in COLUMNS}
    oracle = [one.oracle(n) for one in seeds]
    cells = {
        column: mean(chosen[verifier], f"{where} {name} {verifier}")
        for verifier, column in COLUMNS.items()
    }
    cells[RANDOM] = mean([one.correct_BN.mean(-1) for one in seeds], f"{where} random")
    cells[GREEDY] = mean([one.greedy_B for one in seeds], f"{where} greedy")
    cells[ORACLE] = mean(oracle, f"{where} {name} oracle")
    cells[REGRET] = difference(oracle, chosen[HEADLINE_VERIFIER], f"{where} {name} regret")
    copies = [one.chosen(HEADLINE_VERIFIER, n, one.copied_BN) for one in seeds]
    cells[COPIES] = mean(copies, f"{where} {name} copies")
    return Row(name=name, cells=cells)


def _success(seeds: Sequence[Candidates], verifier: str, n: int) -> Strata:
    return [one.chosen(verifier, n, one.correct_BN) for one in seeds]
