"""A page with two runs side by side: what differs in their configs, and what came of it.

No request and the one script, as `report.page`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dynamics.core.places import Place
from dynamics.core.records import Estimate, RoundReport
from dynamics.evaluation.metrics import best_of_sizes
from dynamics.report.figures import versus_chart
from dynamics.report.page import environment
from dynamics.storage.files import write_bytes
from dynamics.storage.run_folder import RunFolder, flatten

_LEFT_OUT = {"run_dir", "track", "serve", "cluster"}
"""Sections that neither decide results nor are for others to read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A measure of one round in both runs."""

    round_id: int
    name: str
    values: tuple[Estimate | None, Estimate | None]

    @property
    def gain(self) -> float | None:
        """The second run's value minus the first one's."""
        first, second = self.values
        return None if first is None or second is None else second.value - first.value


def write_versus(first: RunFolder, second: RunFolder) -> Place:
    """Write ``versus-NAME.html`` into the first run's folder; returns its path.

    Raises:
        UserError: a folder holds no run, or one of its files is damaged.
    """
    names = _names(first, second)
    runs = [(run, run.config()) for run in (first, second)]
    reports = [run.reports(cfg.rounds) for run, cfg in runs]
    configs = [flatten(cfg.model_dump(mode="json", exclude=_LEFT_OUT)) for _, cfg in runs]
    differing = {
        key: tuple(config.get(key) for config in configs)
        for key in {**configs[0], **configs[1]}
        if configs[0].get(key) != configs[1].get(key)
    }
    page = (
        environment()
        .get_template("versus.html.j2")
        .render(
            names=names,
            differing=differing,
            rows=list(_rows(reports)),
            chart=versus_chart(dict(zip(names, reports, strict=True))),
        )
    )
    out = first.root / f"versus-{second.root.name}.html"
    write_bytes(out, page.encode())
    return out


def _names(first: RunFolder, second: RunFolder) -> tuple[str, str]:
    """The folders' names, with those of their parents where they are equal."""
    one, two = first.root, second.root
    if one.name != two.name:
        return one.name, two.name
    return f"{one.parent.name}/{one.name}", f"{two.parent.name}/{two.name}"


def _rows(reports: Sequence[Sequence[RoundReport]]) -> Sequence[Row]:
    by_round: list[Mapping[int, RoundReport]] = [
        {report.round_id: report for report in one} for one in reports
    ]
    rows = []
    for round_id in sorted({*by_round[0], *by_round[1]}):
        found = [one[round_id].metrics if round_id in one else {} for one in by_round]
        measures = {
            "FDP success": "eval/fdp_success",
            "IDM accuracy": "eval/idm_accuracy",
            "labels right, of those kept": "label/accuracy_accepted",
        }
        if not any("eval/fdp_success" in metrics for metrics in found):  # no oracle
            measures = {
                "IDM exact": "eval/idm_exact",
                "changed codes": "eval/code_accuracy_changed",
            }
        for size in best_of_sizes({**found[0], **found[1]})[-1:]:
            measures[f"best of {size}"] = f"eval/best_of_{size}"
        for name, key in measures.items():
            values = (found[0].get(key), found[1].get(key))
            if any(values):
                rows.append(Row(round_id=round_id, name=name, values=values))
    return rows
