"""The campaign of faults in small: its list, its table, and a few damaged files in every use."""

import re
from collections.abc import Callable
from pathlib import Path

import yaml

from benchmarks.faults import LIST, RESULTS, TABLE, Campaign, table
from dynamics.core.config import LoopConfig
from dynamics.storage.run_folder import read_json
from tests.runs import LocalRun


class InThisProcess(Campaign):
    def _forked(self, work: Callable[[], None]) -> int:
        work()
        return 0


def test_damaged_files_are_named_and_of_no_effect(
    small: LoopConfig, local_run: LocalRun, tmp_path: Path
) -> None:
    campaign = InThisProcess(tmp_path, small, {"flips": 1, "cuts": 1, "every": 60})
    campaign.take_calm(local_run.folder)
    found = campaign.damage()
    assert found.lost == []
    assert found.held == found.tried >= 3


def test_the_table_has_all_faults_with_figures_or_the_reason_why_not() -> None:
    faults = yaml.safe_load(LIST.read_text())
    assert list(faults) == list(range(1, 44))
    assert all(fault.keys() & {"own", "tests", "open"} for fault in faults.values())
    assert TABLE.read_text() == table(faults, read_json(RESULTS))
    for row in re.findall(r"^\| \d+ .*", TABLE.read_text(), re.MULTILINE):
        _, _, tried, held, lost, date, _ = (cell.strip() for cell in row.strip("|").split("|"))
        assert tried == "not measured" or (int(tried) == int(held) + int(lost) and date)
