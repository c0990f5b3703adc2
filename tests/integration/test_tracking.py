"""Real MLflow on sqlite, and a tracking server that is not there."""

from __future__ import annotations

import json
import multiprocessing
import random
import re
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from dynamics.core.config import LoopConfig, TrackConfig
from dynamics.core.progress import Detail
from dynamics.core.records import Estimate, GuardResult, RoundReport
from dynamics.plan.disk import disk_bytes
from dynamics.plan.sizes import base_sizes
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.tables import write_table
from ray_jobs.mlflow_models import ALIAS
from ray_jobs.outbox import Outbox
from ray_jobs.tracking import MlflowTracker
from tests.serving import copy_of
from tests.unit.report.stored import HELDOUT

if TYPE_CHECKING:  # slow to import
    from mlflow import MlflowClient

    from tests.runs import LocalRun

CFG = LoopConfig(name="tracked")
TASKS = ("idm", "fdp")


def claimed(root: Path) -> RunFolder:
    folder = RunFolder(root)
    with folder.claimed(CFG):
        return folder


def report(round_id: int) -> RoundReport:
    success = Estimate(value=0.5 + 0.1 * round_id, low=0.4, high=0.8, num_items=10)
    return RoundReport(
        round_id=round_id,
        num_labelled=10,
        num_accepted=4,
        reasons={"accepted": 4, "outside_top_fraction": 6},
        metrics={"eval/fdp_success": success},
        models={"idm_digest": "abc"},
        train={"idm_loss": 0.25},
        guards=(
            GuardResult(
                name="copy_rate", value=0.9, limit=0.5, passed=round_id < 2, message="copies"
            ),
        ),
    )


def finished_round(folder: RunFolder, round_id: int) -> RoundReport:
    done = report(round_id)
    folder.training_log(round_id, "idm").append(25, {"loss": 2.0})
    folder.training_log(round_id, "idm").append(50, {"loss": 1.0})
    write_json(folder.round(round_id) / "timings.json", {"train": 12.5})
    for task in TASKS:
        write_json(folder.adapter(round_id, task) / "adapter_config.json", {"r": 8})
    write_json(folder.round(round_id) / "report.json", done.to_json())
    return done


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Two rounds and a resumed driver that logs a third and repeats all."""
    folder = claimed(tmp_path_factory.mktemp("run"))
    warnings: list[str] = []
    reports = [finished_round(folder, round_id) for round_id in range(3)]
    write_table(folder.data / "heldout.parquet", HELDOUT, HELDOUT.schema)
    write_table(folder.round(0) / "training_set.parquet", HELDOUT, HELDOUT.schema)
    Image.new("RGB", (8, 8)).save(folder.grid(0))
    first = MlflowTracker(CFG, folder, warnings.append)
    first.log_round(reports[0])
    first.log_round(reports[1])
    first.write()
    resumed = MlflowTracker(CFG, folder, warnings.append)
    folder.page.write_text("<html></html>")
    resumed.log_round(reports[1])
    resumed.log_run(reports)
    resumed.log_run(reports)
    assert warnings == []
    return folder


@pytest.fixture(scope="module")
def client(tracked: RunFolder) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{tracked.root / 'mlflow.db'}")


def runs_of_kind(client: MlflowClient, kind: str) -> list:
    experiment = client.get_experiment_by_name(CFG.track.experiment)
    return client.search_runs([experiment.experiment_id], f"tags.kind = '{kind}'")


def test_a_resumed_bootstrap_continues_its_runs(client: MlflowClient) -> None:
    (parent,) = runs_of_kind(client, "bootstrap")
    rounds = runs_of_kind(client, "round")
    assert sorted(run.data.tags["round"] for run in rounds) == ["0", "1", "2"]
    assert {run.data.tags["mlflow.parentRunId"] for run in rounds} == {parent.info.run_id}
    assert {run.info.status for run in [parent, *rounds]} == {"FINISHED"}
    # Of rounds without an outbox the stages' seconds are known, 12.5 here.
    assert all(run.info.end_time - run.info.start_time >= 12_500 for run in rounds)


def test_a_command_that_has_nothing_to_send_knows_the_page(
    client: MlflowClient, tracked: RunFolder
) -> None:
    (parent,) = runs_of_kind(client, "bootstrap")
    page = f"/#/experiments/{parent.info.experiment_id}/runs/{parent.info.run_id}"
    assert MlflowTracker(CFG, tracked, print).address == page
    elsewhere = CFG.model_copy(update={"track": TrackConfig(uri="http://lab:5000")})
    assert MlflowTracker(elsewhere, tracked, print).address == ""


def test_every_round_has_the_same_metric_names(client: MlflowClient) -> None:
    rounds = runs_of_kind(client, "round")
    assert len({frozenset(run.data.metrics) for run in rounds}) == 1
    expected = {
        "eval/fdp_success": 0.6,
        "label/labelled": 10,
        "filter/outside_top_fraction": 6,
        "train/idm_loss": 0.25,
        "seconds/train": 12.5,
        "guard/copy_rate": 0.9,
    }
    second = next(run for run in rounds if run.data.tags["round"] == "1")
    assert expected.items() <= second.data.metrics.items()
    assert not [name for name in second.data.metrics if name.endswith(("_low", "_high"))]
    assert second.data.params["train.learning_rate"] == "0.004"


def test_intervals_are_a_table_beside_the_charts(client: MlflowClient, tmp_path: Path) -> None:
    run = runs_of_kind(client, "round")[0].info.run_id
    table = json.loads(Path(client.download_artifacts(run, "intervals.json", tmp_path)).read_text())
    assert table["columns"] == ["metric", "value", "low", "high", "num_items"]
    assert [row[0] for row in table["data"]] == ["eval/fdp_success"]


def test_the_parent_has_one_point_a_round(client: MlflowClient) -> None:
    (parent,) = runs_of_kind(client, "bootstrap")
    curve = client.get_metric_history(parent.info.run_id, "eval/fdp_success")
    assert [(point.step, point.value) for point in curve] == [(0, 0.5), (1, 0.6), (2, 0.7)]


def test_a_round_names_the_tables_that_it_read_and_shows_its_frames(client: MlflowClient) -> None:
    (parent,) = runs_of_kind(client, "bootstrap")
    first = next(run for run in runs_of_kind(client, "round") if run.data.tags["round"] == "0")
    read = {one.dataset.name: one.dataset for one in first.inputs.dataset_inputs}
    assert read.keys() == {"training", "heldout"}
    assert {(one.source_type, len(one.digest)) for one in read.values()} == {("local", 36)}
    pictures = client.list_artifacts(parent.info.run_id, "images")
    assert {re.findall(r"samples.step.(\d+)", one.path)[0] for one in pictures} == {"0"}


def test_losses_config_and_files_are_there(client: MlflowClient, tracked: RunFolder) -> None:
    (parent,) = runs_of_kind(client, "bootstrap")
    assert parent.data.params["train.learning_rate"] == "0.004"
    assert parent.data.tags["config_digest"] == CFG.digest()
    names = {file.path for file in client.list_artifacts(parent.info.run_id)}
    assert names == {"config.json", "images", "report.html"}
    run = runs_of_kind(client, "round")[0].info.run_id
    losses = client.get_metric_history(run, "train/idm_loss_curve")
    assert [(point.step, point.value) for point in losses] == [(25, 2.0), (50, 1.0)]
    assert (tracked.root / "mlartifacts").is_dir()


def test_a_round_is_tagged_blocked_until_its_guard_is_accepted(
    client: MlflowClient, tracked: RunFolder
) -> None:
    def tags() -> list[str]:
        rounds = sorted(runs_of_kind(client, "round"), key=lambda run: int(run.data.tags["round"]))
        return [run.data.tags["promotion"] for run in rounds]

    def aliased() -> set[str]:
        found = (client.get_model_version_by_alias(f"tracked-{task}", ALIAS) for task in TASKS)
        return {one.tags["round"] for one in found}

    assert tags() == ["promoted", "promoted", "blocked: copy_rate"]
    assert aliased() == {"1"}
    accepted = report(2).accepting(["copy_rate", "leakage"])
    write_json(tracked.round(2) / "report.json", accepted.to_json())
    warnings: list[str] = []
    for _ in range(2):
        MlflowTracker(CFG, tracked, warnings.append).log_run([accepted])
    assert tags() == ["promoted", "promoted", "accepted: copy_rate"]
    assert aliased() == {"2"}
    assert len(runs_of_kind(client, "round")) == 3
    assert warnings == []


def log_first_round(root: Path) -> None:
    folder = claimed(root)
    tracker = MlflowTracker(CFG, folder, print)
    tracker.log_round(finished_round(folder, 0))
    tracker.write()


def test_a_moved_run_goes_on_in_its_own_database(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "here")
    # A process of its own, as in life: MLflow remembers where a run's artifacts lie.
    context = multiprocessing.get_context("spawn")
    first = context.Process(target=log_first_round, args=(folder.root,))
    first.start()
    first.join()
    warnings: list[str] = []
    moved = RunFolder((tmp_path / "here").rename(tmp_path / "there"))
    page = moved.root / "report.html"
    page.write_text("<html></html>")
    reports = [finished_round(moved, round_id) for round_id in range(2)]
    MlflowTracker(CFG, moved, warnings.append).log_run(reports)
    assert warnings == []
    assert not folder.root.exists()
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{moved.root / 'mlflow.db'}")
    (parent,) = runs_of_kind(client, "bootstrap")
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "config.json",
        "report.html",
    }
    assert len(runs_of_kind(client, "round")) == 2
    assert all(one.source.startswith(moved.root.as_uri()) for one in client.search_model_versions())


def statuses(client: MlflowClient) -> dict[str, str]:
    return {
        kind: run.info.status
        for kind in ("bootstrap", "round")
        for run in runs_of_kind(client, kind)
    }


def test_a_round_is_followed_while_it_goes_on_and_a_killed_driver_writes_nothing_twice(
    tmp_path: Path,
) -> None:
    folder, warnings = claimed(tmp_path), list[str]()
    log = folder.training_log(0, "idm")

    def append(*steps: int) -> None:
        for step in steps:
            log.append(step, {"loss": 1 / step, "time": 1e9 + step, "tokens_per_s": 7.0})

    def watching() -> MlflowTracker:
        tracker = MlflowTracker(CFG, folder, warnings.append)
        tracker.begin_round(0)
        return tracker

    killed = watching()
    killed(25, 100, "train IDM and FDP, round 0")
    append(25, 50)
    killed(50, 100, "train IDM and FDP, round 0", Detail(queued=3))
    killed.write()
    client = database(folder)
    (run,) = runs_of_kind(client, "round")
    assert run.info.status == "RUNNING"
    assert run.data.metrics["stage/train_IDM_and_FDP_done"] == 50
    assert run.data.metrics["stage/train_IDM_and_FDP_queued"] == 3
    assert run.data.metrics["train/idm_tokens_per_s"] == 7
    with pytest.raises(KeyboardInterrupt), killed:
        raise KeyboardInterrupt
    assert statuses(client) == {"bootstrap": "KILLED", "round": "KILLED"}
    append(50, 75, 100)  # what was trained after the checkpoint is trained again
    resumed = watching()
    resumed.write()
    assert statuses(client) == {"bootstrap": "RUNNING", "round": "RUNNING"}
    done = report(0)
    write_json(folder.report_path(0), done.to_json())
    resumed.log_round(done)
    resumed.write()
    forget(folder, keep=2)  # killed while it sent
    MlflowTracker(CFG, folder, warnings.append).log_run([done])
    (run,) = runs_of_kind(client, "round")
    curve = client.get_metric_history(run.info.run_id, "train/idm_loss_curve")
    assert [(point.step, point.timestamp) for point in curve] == [
        (step, 1000 * (10**9 + step)) for step in (25, 50, 75, 100)
    ]
    assert statuses(client) == {"bootstrap": "FINISHED", "round": "FINISHED"}
    told = list(Outbox(folder.outbox).entries())
    began, ended = (next(e["time"] for e in told if e["kind"] == k) for k in ("begin", "results"))
    assert (run.info.start_time, run.info.end_time) == (began, ended)
    assert warnings == []
    check_sent(folder, client)


def track_three_rounds(root: Path) -> None:
    folder = RunFolder(root)
    with MlflowTracker(CFG, folder, lambda _: None) as tracker:
        for round_id in range(3):
            tracker.begin_round(round_id)
            tracker.log_round(report(round_id))
            tracker.write()
        tracker.log_run([report(round_id) for round_id in range(3)])


@pytest.mark.slow
def test_twenty_kills_of_the_driver_lose_and_double_no_point(
    tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    folder, rng = claimed(tmp_path), random.Random(0)
    for round_id in range(3):
        finished_round(folder, round_id)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["mlflow", "tests.integration.test_tracking"])
    killed = 0
    while killed < 20:
        driver = context.Process(target=track_three_rounds, args=(tmp_path,))
        driver.start()
        driver.join(rng.uniform(0.1, 4.0))
        driver.kill()
        driver.join()
        killed += driver.exitcode == -signal.SIGKILL
    track_three_rounds(tmp_path)
    check_sent(folder, database(folder))
    record_property("cases", killed)


def forget(folder: RunFolder, keep: int = 0) -> None:
    """Leave the cursor of a driver that was killed before it noted what MLflow took."""
    cursor = folder.tracking / "tracking.json"
    write_json(cursor, {**read_json(cursor), "sent": keep})


def check_sent(folder: RunFolder, client: MlflowClient) -> None:
    """MLflow has every point of the outbox once and nothing else, a parent, a run a round."""
    outbox = Outbox(folder.outbox)
    wanted: dict[tuple[int | None, str], list[tuple[int, int, float]]] = {}
    for entry in outbox.entries():
        for name, value, at, step in entry.get("points", ()):
            wanted.setdefault((entry["round"], name), []).append((step, at, value))
        for name, value in entry.get("values", {}).items():
            for key in (None, entry["round"]):
                point = (entry["round"], entry["time"], value)
                wanted.setdefault((key, name), []).append(point)
    found = {}
    experiment = client.get_experiment_by_name(CFG.track.experiment)
    runs = client.search_runs([experiment.experiment_id])
    for run in runs:
        key = int(run.data.tags["round"]) if "round" in run.data.tags else None
        for name in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, name)
            found[key, name] = sorted((p.step, p.timestamp, p.value) for p in history)
    assert found == {key: sorted(points) for key, points in wanted.items()}
    rounds = {key for key, _ in found} - {None}
    assert len(runs) == len(rounds) + 1
    models = client.search_logged_models([experiment.experiment_id])
    finished = sorted(
        (int(one.tags["round"]), one.name) for one in models if one.status.name == "READY"
    )
    versions = sorted((int(one.tags["round"]), one.name) for one in client.search_model_versions())
    on_disk = [
        (one, f"tracked-{task}")
        for one in sorted(rounds)
        for task in sorted(TASKS)
        if folder.adapter(one, task).exists()
    ]
    assert finished == versions == on_disk


def database(folder: RunFolder) -> MlflowClient:
    from mlflow import MlflowClient

    return MlflowClient(tracking_uri=f"sqlite:///{folder.mlflow}")


def test_a_deleted_experiment_is_named_with_the_way_to_restore_it_once(tmp_path: Path) -> None:
    folder, warnings = claimed(tmp_path), list[str]()
    done = finished_round(folder, 0)
    MlflowTracker(CFG, folder, warnings.append).log_run([done])
    client = database(folder)
    number = client.get_experiment_by_name(CFG.track.experiment).experiment_id
    client.delete_experiment(number)
    with MlflowTracker(CFG, folder, warnings.append) as tracker:
        for round_id in (1, 2):
            tracker.log_round(finished_round(folder, round_id))
            tracker.write()
    (warning,) = warnings
    assert f"MLFLOW_TRACKING_URI=sqlite:///{folder.mlflow} mlflow experiments restore " in warning
    assert f"--experiment-id {number}" in warning
    client._tracking_client.store.restore_experiment(number)
    with MlflowTracker(CFG, folder, warnings.append):
        pass  # all rounds are done
    assert len(warnings) == 1
    check_sent(folder, client)


@pytest.mark.slow
def test_a_deleted_database_is_written_anew_with_everything(tmp_path: Path) -> None:
    folder, warnings = claimed(tmp_path), list[str]()
    context = multiprocessing.get_context("spawn")
    first = context.Process(target=log_first_round, args=(folder.root,))
    first.start()
    first.join()
    folder.mlflow.unlink()
    with MlflowTracker(CFG, folder, warnings.append):
        pass
    assert warnings == []
    check_sent(folder, database(folder))


def test_the_plan_counts_the_adapters_that_mlflow_copies(
    local_run: LocalRun, tmp_path: Path
) -> None:
    folder = RunFolder(copy_of(local_run.folder, tmp_path / "run"))
    cfg, warnings = folder.config(), list[str]()
    MlflowTracker(cfg, folder, warnings.append).log_run(folder.reports(cfg.rounds))
    assert warnings == []
    copies = sum(path.stat().st_size for path in folder.root.glob("mlartifacts/**/*.safetensors"))
    assert disk_bytes(cfg, base_sizes(cfg))["mlflow"] == pytest.approx(copies, rel=0.1)


def test_the_environment_names_a_server_where_the_config_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://lab:5000")
    assert CFG.track.server == "http://lab:5000"
    named = CFG.model_copy(update={"track": TrackConfig(uri="http://other:5000")})
    assert named.track.server == "http://other:5000"


def test_a_dead_server_costs_a_warning_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = claimed(tmp_path)
    dead = CFG.model_copy(update={"track": TrackConfig(uri=f"http://127.0.0.1:{port}")})
    warnings: list[str] = []
    done = finished_round(folder, 0)
    with MlflowTracker(dead, folder, warnings.append) as tracker:
        tracker.log_run([done])
    assert len(warnings) == 1
    assert "the loop goes on" in warnings[0]
    assert "\n" not in warnings[0]
    # The same command again, with a server that works, writes what was missed.
    alive = CFG.model_copy(update={"track": TrackConfig(uri=f"sqlite:///{tmp_path / 'later.db'}")})
    with MlflowTracker(alive, folder, warnings.append):
        pass
    assert len(warnings) == 1
    from mlflow import MlflowClient

    check_sent(folder, MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'later.db'}"))
