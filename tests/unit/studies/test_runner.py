"""The whole study on the smallest world: every kind of experiment really runs."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import with_overrides
from dynamics.core.errors import UserError
from dynamics.core.progress import silent
from dynamics.storage.run_folder import read_json, write_json
from dynamics.studies import runner
from dynamics.studies.experiments import (
    LOOP,
    Experiment,
    StudyPlan,
    candidates,
    fitted_to,
    ready,
    schedule,
)
from dynamics.studies.markdown import to_markdown
from dynamics.studies.results import Results
from dynamics.studies.run_experiment import run_experiment
from dynamics.studies.runner import RESULTS_FILE, publish, run_study
from dynamics.studies.study import Study, study_of
from tests.made_data import write_aurora, write_clip

PLAN = StudyPlan(
    seeds=(7,), label_sizes=(24, 60), best_of=(1, 2, 4), temperatures=(1.0, 0.7), num_verified=6
)


@pytest.fixture(scope="module")
def tiny(small: LoopConfig) -> LoopConfig:
    train = small.train.model_copy(update={"first_steps": 60, "round_steps": 4})
    return small.model_copy(update={"train": train})


def run_here(
    planned: list[tuple[int, Experiment]],
    studies: dict[int, Study],
    num_workers: int,
    progress: object,
) -> None:
    """In this process: a spawned one imports torch again."""
    for seed, experiment in planned:
        run_experiment(studies[seed], experiment)


@pytest.fixture(scope="module")
def folder(tiny: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_run_all", run_here)
        run_study(tiny, PLAN, out, num_workers=1, progress=silent)
    return out


def test_every_experiment_of_the_plan_leaves_its_mark(folder: Path, tiny: LoopConfig) -> None:
    study = study_of(tiny, PLAN, folder, 7)
    assert all(study.is_done(experiment) for _, experiment in schedule(PLAN, tiny))


def test_the_results_hold_every_table(folder: Path) -> None:
    results = Results.from_json(read_json(folder / RESULTS_FILE))
    assert {name.partition("-round")[0] for name in results.tables} == {
        "ease", "rounds", "labels", "filters", "risk-coverage", "reliability", "verification",
        "ablations",
    }  # fmt: skip
    assert len(results.tables["filters"].rows) == 10
    assert len(results.tables["ease"].rows) == 4
    assert len(results.checks) >= 4


def test_a_curve_is_drawn_from_the_json_but_not_printed(folder: Path) -> None:
    results = Results.from_json(read_json(folder / RESULTS_FILE))
    curve = results.tables["reliability"]
    assert not curve.printed
    text = to_markdown(results, ["study/reliability.png"])
    assert "![reliability](study/reliability.png)" in text
    assert not any(row.name in text for row in curve.rows)


def test_all_labels_are_as_right_by_every_score(folder: Path) -> None:
    """At full coverage the order no longer matters."""
    results = Results.from_json(read_json(folder / RESULTS_FILE))
    last = results.tables["risk-coverage"].rows[-1]
    assert last.name == "best 100 %"
    assert len({round(cell.value, 9) for cell in last.cells.values()}) == 1


def test_the_guards_are_held_against_every_round_and_a_copier(folder: Path) -> None:
    """The untrained base's codes hardly change, so whether they block is no matter here."""
    checks = Results.from_json(read_json(folder / RESULTS_FILE)).checks
    guards = [check for check in checks if check.claim.startswith("guards ")]
    assert [check.measured.partition(" of ")[2] for check in guards] == ["2 rounds"] * 2


def test_analysing_again_gives_the_same_results(folder: Path, tiny: LoopConfig) -> None:
    before = (folder / RESULTS_FILE).read_text()
    run_study(tiny, PLAN, folder, num_workers=1, progress=silent)
    assert (folder / RESULTS_FILE).read_text() == before


def test_another_world_is_published_as_a_row_beside_the_tabletop(
    folder: Path, tmp_path: Path
) -> None:
    publish(folder, tmp_path)
    payload = read_json(folder / RESULTS_FILE)
    payload["settings"]["config"]["name"] = "elsewhere"
    (tmp_path / "other").mkdir()
    write_json(tmp_path / "other" / RESULTS_FILE, payload)
    text = publish(tmp_path / "other", tmp_path).read_text()
    (row,) = [line for line in text.splitlines() if line.startswith("| elsewhere")]
    number = payload["tables"]["rounds"]["rows"][-1]["cells"]["FDP, greedy"]
    assert f"{100 * number['value']:.1f} [" in row
    assert publish(folder, tmp_path).read_text() == text


def test_notes_by_hand_stay_at_the_end_of_the_published_page(folder: Path, tmp_path: Path) -> None:
    text = publish(folder, tmp_path).read_text()
    (tmp_path / "study" / "notes.md").write_text("## Tried\n")
    assert publish(folder, tmp_path).read_text() == f"{text}\n## Tried\n"


@pytest.fixture(scope="module")
def clips(tiny: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a study of a world of which only clips and labelled pairs are known."""
    out = tmp_path_factory.mktemp("clips")
    for number in range(6):
        write_clip(out / "clips" / f"clip-{number}.mp4", range(9 * number, 9 * number + 6))
    overrides = (
        "name=rings",
        "domain=open_video",
        "labelled.dataset=aurora",
        f"labelled.path={write_aurora(out / 'aurora', 24)}",
        "labelled.num_pairs=24",
        "labelled.num_heldout=12",
        f"pool.path={out / 'clips'}",
        "pool.num_pairs=12",
        "pool.keyframes.spacing_frames=4",
        "model.base=dynamics/assets/tiny-4x4",  # the untrained one's codes do not change
        "train.first_steps=4",
    )
    cfg = with_overrides(tiny, overrides)
    plan = replace(PLAN, label_sizes=(6, 24, 60), ablations=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "_run_all", run_here)
        run_study(cfg, plan, out / "study", num_workers=1, progress=silent)
    return out / "study"


def test_a_world_whose_rules_nobody_knows_is_measured_by_its_codes(
    clips: Path, folder: Path, tmp_path: Path
) -> None:
    results = Results.from_json(read_json(clips / RESULTS_FILE))
    assert set(results.tables) == {"ease", "rounds"}
    assert [row.name for row in results.tables["ease"].rows] == ["6 labels", "24 labels"]
    rounds = results.tables["rounds"]
    assert [row.name for row in rounds.rows] == [
        "round 0: the labelled set", "round 1", "labelled set only, as many steps",
    ]  # fmt: skip
    assert rounds.cell("round 1", "FDP, more than labelled set only") is not None
    assert rounds.cell("round 1", "share of the gap closed") is None
    assert "share of the changed codes" in rounds.note
    measured = {check.claim: check.measured for check in results.checks if "twice" in check.claim}
    assert len(measured) == 2
    assert not any("nan" in text or "inf" in text for text in measured.values())
    publish(folder, tmp_path)
    text = publish(clips, tmp_path).read_text()
    assert "| rings, 24 labels \\* |" in text
    assert "\n\\* Nothing is known of this world's rules" in text


def test_label_sizes_go_with_the_labelled_set(tiny: LoopConfig) -> None:
    labelled = tiny.labelled.model_copy(update={"num_pairs": 1024})
    small = tiny.model_copy(update={"labelled": labelled})
    assert fitted_to(StudyPlan(), small).label_sizes == (64, 256, 512, 1024, 2048)
    assert fitted_to(StudyPlan(), LoopConfig()) == StudyPlan()


def test_published_results_match_their_json(folder: Path, tmp_path: Path) -> None:
    text = publish(folder, tmp_path).read_text()
    payload = json.loads((tmp_path / "study" / RESULTS_FILE).read_text())
    number = payload["tables"]["rounds"]["rows"][0]["cells"]["FDP, greedy"]
    assert f"{100 * number['value']:.1f} [{100 * number['low']:.1f}, " in text
    for name in (
        "ease.png",
        "rounds.png",
        "risk-coverage.png",
        "reliability.png",
        "verification-round-1-t-1.0.png",
    ):
        assert f"](study/{name})" in text
        assert (tmp_path / "study" / name).read_bytes().startswith(b"\x89PNG")


def test_a_study_of_another_config_is_refused(folder: Path, tiny: LoopConfig) -> None:
    larger = tiny.labelled.model_copy(update={"num_heldout": 7})
    for other, message in (
        ({"labelled": larger}, r"another config \(labelled.num_heldout was \d+, now 7\)"),
        ({"rounds": 2}, "holds a study of 1 rounds, not 2; name another folder"),
    ):
        cfg = tiny.model_copy(update=other)
        with pytest.raises(UserError, match=message):
            run_study(cfg, PLAN, folder, num_workers=1, progress=silent)


def test_an_experiment_waits_for_the_one_it_reads() -> None:
    loop, waiting, other = (1, LOOP), (1, candidates(0)), (2, candidates(0))
    assert ready([loop, waiting, other], {loop}) == [loop, other]
