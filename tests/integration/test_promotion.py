"""A round that a guard blocks, from the command to what is served; in one process, without Ray."""

import io
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dynamics.core.config import LoopConfig, ModelConfig, TrackConfig
from dynamics.core.console import ProgressView
from dynamics.core.progress import Progress
from dynamics.core.records import ModelRef, RoundReport
from dynamics.inference.decoder import Candidates
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics
from dynamics.inference.load import load_pair
from dynamics.inference.sampling import SamplingParams
from dynamics.models.image_tokenizers.fsq import FsqTokenizer
from dynamics.pipeline.executor import LocalExecutor
from dynamics.pipeline.stages import Stages
from dynamics.report.trackers import PageTracker
from dynamics.storage.run_folder import RunFolder, read_json
from ray_jobs import bootstrap, runtime
from ray_jobs.serving import serve
from tests.runs import results, run_local

LIMIT = "guards.max_copy_rate=0.5"
PAGE = re.compile(r"then http://127\.0\.0\.1:5000/#/experiments/\d+/runs/[0-9a-f]{32}\n")


@dataclass(frozen=True)
class Done:
    status: int
    out: str
    err: str
    """Without the bars of libraries that were imported before the command hushed them."""


Command = Callable[..., Done]


class Copier:
    """Gives the source back, whatever the action."""

    def __init__(self, fdp: ForwardDynamics) -> None:
        self.images = fdp.images

    def generate(
        self,
        source_BL: np.ndarray,
        actions: Sequence[str],
        sampling: SamplingParams,
        *,
        seeds: Sequence[int] = (),
    ) -> Candidates:
        codes_BNL = np.repeat(source_BL[:, None], sampling.num_samples, axis=1)
        zeros = np.zeros(codes_BNL.shape[:2])
        return Candidates(codes=codes_BNL, logprobs=zeros, drawn_logprobs=zeros)

    def frame_logprobs(
        self, source_BL: np.ndarray, actions: Sequence[str], target_BL: np.ndarray
    ) -> np.ndarray:
        return np.zeros(len(actions))


def load_copier(models: ModelRef, cfg: ModelConfig) -> tuple[InverseDynamics, Any]:
    """In round 1 a copier takes the FDP's place."""
    idm, fdp = load_pair(models, cfg)
    return idm, Copier(fdp) if models.fdp.parent.name == "round-01" else fdp


@pytest.fixture(scope="module")
def served() -> Iterator[list[int]]:
    """Makes round 1 a copier's; filled with the rounds that the loop serves."""
    rounds: list[int] = []

    def serves(executor: LocalExecutor, models: ModelRef, number: int, progress: Progress) -> None:
        print(f"served: round {number}")  # noqa: T201  what the log shows before it
        rounds.append(number)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dynamics.evaluation.worker.load_pair", load_copier)
        patch.setattr(LocalExecutor, "serve", serves)
        patch.setattr(runtime, "stop_ray", lambda: None)  # the session's Ray is others'
        yield rounds


@pytest.fixture(scope="module")
def pages() -> Iterator[list[list[int]]]:
    """Filled with the rounds that report.html shows, each time that a round is finished."""
    shown: list[list[int]] = []
    write = PageTracker.log_round

    def log_round(tracker: PageTracker, report: RoundReport) -> None:
        write(tracker, report)
        table = tracker.folder.page.read_text().partition('id="rounds"')[2].partition("</table>")[0]
        shown.append([int(number) for number in re.findall(r'<tr><th scope="row">(\d+)', table)])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PageTracker, "log_round", log_round)
        yield shown


@pytest.fixture(scope="module")
def base(small: LoopConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The untrained base with an image tokenizer that tells frames apart."""
    folder = Path(shutil.copytree(small.model.base, tmp_path_factory.mktemp("base") / "base"))
    images = FsqTokenizer.load(folder)
    images.model.encoder[-1].weight.mul_(100)
    images.save(folder)
    return folder


@pytest.fixture(scope="module")
def command(small: LoopConfig, base: Path, served: list[int], pages: list[list[int]]) -> Command:
    """The command as a function of the run folder and further arguments."""

    def call(run_dir: Path, *more: str) -> Done:
        arguments = [
            *("--config", str(Path(__file__).parents[1] / "test-3x3.yaml")),
            *("--no-ray", "--rounds", "2", "--run-dir", str(run_dir)),
            f"model.base={base}",
            f"train.first_steps={small.train.first_steps}",
            f"train.round_steps={small.train.round_steps}",
            LIMIT,
            *more,
        ]
        out, err = io.StringIO(), io.StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            status = bootstrap.main(arguments)
        said = [line for line in err.getvalue().splitlines() if "Loading weights" not in line]
        return Done(status, out.getvalue(), "\n".join(filter(None, said)))

    return call


@pytest.fixture(scope="module")
def blocked(
    command: Command, served: list[int], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, Done]:
    run_dir = tmp_path_factory.mktemp("blocked") / "run"
    served.clear()
    return RunFolder(run_dir), command(run_dir)


@pytest.fixture
def copy(blocked: tuple[RunFolder, Done], tmp_path: Path) -> RunFolder:
    """The blocked run, to go on from."""
    return RunFolder(Path(shutil.copytree(blocked[0].root, tmp_path / "run")))


def lines(done: Done) -> list[str]:
    """The rounds that have a line of their own, as often as they have it."""
    return re.findall(r"^round (\d+): ", done.out, re.MULTILINE)


def promotions(folder: RunFolder) -> list[str]:
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{folder.root / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("dynamics-bootstrap")
    rounds = client.search_runs([experiment.experiment_id], "tags.kind = 'round'")
    rounds.sort(key=lambda run: int(run.data.tags["round"]))
    return [run.data.tags["promotion"] for run in rounds]


def test_a_blocked_round_keeps_the_previous_model_and_exits_4(
    blocked: tuple[RunFolder, Done], served: list[int]
) -> None:
    folder, done = blocked
    assert done.status == 4
    assert re.fullmatch(
        r"blocked: round 1: copy_rate 1, limit 0\.5: the FDP gives its input back on (\d+) of \1 "
        r"held-out pairs; accept it with --accept-guard copy_rate, or more labelled "
        r"pairs \(dynamics check says how many\) in a new run_dir",
        done.err,
    )
    assert f"dynamics serve {folder.root}  (round 0)" in done.out
    assert PAGE.search(done.out)
    assert [report.promoted for report in folder.reports(2)] == [True, False]
    assert served == [0]
    assert promotions(folder) == ["promoted", "blocked: copy_rate"]


def test_every_finished_round_prints_one_line_and_is_on_the_page_at_once(
    blocked: tuple[RunFolder, Done], pages: list[list[int]]
) -> None:
    assert lines(blocked[1]) == ["0", "1"]
    assert pages[:2] == [[0], [0, 1]]


def test_the_log_has_losses_and_the_table_before_what_is_served_and_no_line_twice(
    blocked: tuple[RunFolder, Done],
) -> None:
    said = [re.sub(r"^[\d-]{10} [\d:]{8} ", "", line) for line in blocked[1].out.splitlines()]
    steps = blocked[0].config().train.first_steps
    for task in ("IDM", "FDP"):
        whole = rf"train {task}, round 0, {steps} of {steps}, in .+, loss {task} [\d.e-]+"
        assert len([line for line in said if re.fullmatch(whole, line)]) == 1
    (table,) = (number for number, line in enumerate(said) if "interval over pairs" in line)
    assert table < said.index("served: round 0")
    told = said[: said.index("guard, round 1")]
    assert len(set(told)) == len(told)


def test_the_report_says_by_what_and_where_the_run_was_made(
    blocked: tuple[RunFolder, Done],
) -> None:
    folder = blocked[0]
    made = read_json(folder.origin)
    assert made["hardware"].startswith(f"{os.cpu_count()} cores")
    page = folder.page.read_text()
    assert f"{made['date']} · commit <code>{made['revision'][:12]}" in page
    assert f"</code> · {made['hardware']} · " in page


def test_the_same_command_says_the_same_again_and_does_nothing(
    blocked: tuple[RunFolder, Done], command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, done = blocked
    monkeypatch.setattr(bootstrap, "_run_loop", None)  # calling it would be an error
    for more in ((), ("--accept-guard", "leakage")):
        again = command(folder.root, *more)
        assert (again.status, again.err) == (4, done.err)
        assert PAGE.findall(again.out) == PAGE.findall(done.out)


def test_the_link_to_a_tracking_server_opens_the_runs_page(
    blocked: tuple[RunFolder, Done], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, page = blocked[0], "/#/experiments/7/runs/ab12"
    for uri, shown in (
        ("http://lab:5000", f"http://lab:5000{page}"),
        ("https://lab/mlflow/", f"https://lab/mlflow{page}"),
        ("postgresql://lab/runs", "postgresql://lab/runs"),
    ):
        cfg = folder.config().model_copy(update={"track": TrackConfig(uri=uri)})
        with ProgressView() as view:
            bootstrap._summary(cfg, folder, view, page)
        assert f"MLflow:    {shown}\n" in capsys.readouterr().out


def test_the_generator_serves_the_last_promoted_round(
    blocked: tuple[RunFolder, Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    monkeypatch.setattr(serve, "serve_round", lambda cfg, run, r, images: asked.append(r))
    folder = blocked[0]
    serve.serve_run(folder.config(), folder)
    assert asked == [0]


def test_an_accepted_guard_is_recorded_and_the_loop_goes_on(
    copy: RunFolder,
    command: Command,
    served: list[int],
    pages: list[list[int]],
    tmp_path: Path,
) -> None:
    served.clear()
    pages.clear()
    accepted = command(copy.root, "--accept-guard", "copy_rate")
    assert (accepted.status, accepted.err) == (0, "")
    assert lines(accepted) == ["1", "2"]  # the verdict on round 1 is another one
    assert pages == [[0, 1], [0, 1, 2]]
    assert [report.accepted_guards for report in copy.reports(2)] == [(), ("copy_rate",), ()]
    assert served == [2]
    assert promotions(copy) == ["promoted", "accepted: copy_rate", "promoted"]
    # What was accepted stays accepted, without saying so again.
    again = command(copy.root)
    assert (again.status, lines(again)) == (0, [])
    assert "all 2 rounds are done; nothing to do" in again.out
    # Accepting later gives the bytes of accepting from the start.
    cfg = copy.config()
    guards = cfg.guards.model_copy(update={"accept": ("copy_rate",)})
    run_local(cfg.model_copy(update={"guards": guards}), tmp_path / "at-once")
    assert results(tmp_path / "at-once") == results(copy.root)


def test_an_unknown_guard_is_one_line(command: Command, tmp_path: Path) -> None:
    done = command(tmp_path / "run", "--accept-guard", "copies")
    assert done.status == 2
    assert "guards.accept.0: 'copies' is unknown" in done.err
    assert done.err.count("\n") == 0


def test_leaks_are_looked_for_once_a_run(copy: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    found = read_json(copy.data / "leakage.json")["found"]
    assert (found["num_heldout"], found["by_digest"]) == (12, 0)
    monkeypatch.setattr(
        "dynamics.pipeline.evidence.find_leakage", None
    )  # calling it would be an error
    stages = Stages(copy.config(), copy.root)
    report = copy.report(0)
    assert report is not None
    assert stages.guard(stages.prepare(), None, report) == report
