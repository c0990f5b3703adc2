"""Run the experiments of a study on all cores, write the results. Running it again continues."""

import shutil
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from datetime import date
from pathlib import Path

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.progress import Progress
from dynamics.evaluation.worker_pool import worker_pool
from dynamics.storage.files import write_bytes
from dynamics.storage.run_folder import continued, read_json, read_record, write_json
from dynamics.studies.experiments import Experiment, StudyPlan, ready, schedule
from dynamics.studies.markdown import to_markdown
from dynamics.studies.plots import write_plots
from dynamics.studies.results import Results
from dynamics.studies.run_experiment import run_experiment
from dynamics.studies.study import Study, study_of
from dynamics.studies.tables import analyse

RESULTS_FILE = "results.json"


def run_study(
    cfg: LoopConfig, plan: StudyPlan, folder: Path, *, num_workers: int, progress: Progress
) -> Results:
    """Run what is missing of a study, analyse it, write ``results.json`` and the plots.

    Args:
        cfg: config of the loop; every seed runs it with its own seed and run folder.
        plan: what is measured.
        folder: absolute; one folder per seed is made in it.
        num_workers: experiments at a time, each in a process of its own with one thread.
        progress: callback with the finished experiments.

    Raises:
        UserError: the folder holds a study of another config or plan.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _refuse_other_study(cfg, folder)
    studies = {seed: study_of(cfg, plan, folder, seed) for seed in plan.seeds}
    _run_all(schedule(plan, cfg), studies, num_workers, progress)
    results = analyse(list(studies.values()), date.today().isoformat())
    write_json(folder / RESULTS_FILE, results.to_json())
    write_plots(results, folder)
    return results


def publish(folder: Path, docs: Path) -> Path:
    """Copy a study's results and plots into ``docs/study`` and write ``docs/RESULTS.md``.

    The first world that is published stands in ``docs/study`` itself, any other in a folder of its
    name.
    """
    first, results = docs / "study", read_record(folder / RESULTS_FILE, Results.from_json)
    whole = first / RESULTS_FILE
    own = not whole.exists() or read_record(whole, Results.from_json).world == results.world
    out = first if own else first / results.world
    out.mkdir(parents=True, exist_ok=True)
    for path in (folder / RESULTS_FILE, *sorted(folder.glob("*.png"))):
        shutil.copyfile(path, out / path.name)
    write_bytes(docs / "RESULTS.md", published(docs).encode())
    return docs / "RESULTS.md"


def published(docs: Path) -> str:
    """Text of ``docs/RESULTS.md``, from ``docs/study`` alone.

    ``docs/study/notes.md``, written by hand, stands at its end: what no study measures.
    """
    study = docs / "study"
    notes = study / "notes.md"
    plots = [f"study/{path.name}" for path in sorted(study.glob("*.png"))]
    results, *others = [
        read_record(path, Results.from_json)
        for path in (study / RESULTS_FILE, *sorted(study.glob(f"*/{RESULTS_FILE}")))
    ]
    text = to_markdown(results, plots, others)
    return f"{text}\n{notes.read_text()}" if notes.exists() else text


def _refuse_other_study(cfg: LoopConfig, folder: Path) -> None:
    """Refuse to mix experiments of different settings in one table."""
    path = folder / "study.json"
    payload = continued(path, cfg.model_copy(update={"seed": 0}))
    if path.exists() and (rounds := read_json(path)["config"]["rounds"]) != cfg.rounds:
        raise UserError(
            f"{folder} holds a study of {rounds} rounds, not {cfg.rounds}; name another folder "
            "with --out, or delete it"
        )
    write_json(path, payload)


def _run_all(
    planned: Sequence[tuple[int, Experiment]],
    studies: dict[int, Study],
    num_workers: int,
    progress: Progress,
) -> None:
    todo = [(seed, one) for seed, one in planned if not studies[seed].is_done(one)]
    unfinished = set(todo)
    total, running = len(planned), dict[Future[None], tuple[int, Experiment]]()
    with worker_pool(num_workers, 1) as pool:
        try:
            while todo or running:
                for seed, one in ready(todo, unfinished)[: num_workers - len(running)]:
                    running[pool.submit(run_experiment, studies[seed], one)] = (seed, one)
                    todo.remove((seed, one))
                names = ", ".join(sorted(f"{seed} {one.name}" for seed, one in running.values()))
                progress(total - len(unfinished), total, f"experiments; now {names}")
                finished, _ = wait(running, timeout=10.0, return_when=FIRST_COMPLETED)
                for future in finished:
                    done = running.pop(future)
                    future.result()
                    unfinished.discard(done)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)
    progress(total, total, "experiments")
