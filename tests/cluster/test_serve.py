"""The service on a real Ray Serve, asked over real HTTP."""

import json
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

from dynamics.client import Client
from dynamics.core.config import LoopConfig, ServeConfig
from dynamics.core.errors import UserError
from dynamics.models import load_image_tokenizer
from dynamics.pipeline.executor import first_example
from dynamics.serving.http.server import check_address
from dynamics.serving.schemas import MAX_BODY_BYTES, MAX_SAMPLES
from dynamics.storage.run_folder import RunFolder
from ray_jobs import bootstrap
from ray_jobs.serving import serve
from tests.runs import LocalRun, descendants
from tests.serving import copy_of, damage, events, figures, free_port, picture, png

pytestmark = pytest.mark.cluster

ACTION = "push the red ring left"
KEY = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def cfg(small: LoopConfig) -> LoopConfig:
    options = ServeConfig(port=free_port(), num_samples=3, num_replicas=2, ingress_replicas=1)
    return small.model_copy(update={"serve": options})


@pytest.fixture(scope="module")
def folder(local_run: LocalRun, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    return RunFolder(copy_of(local_run.folder, tmp_path_factory.mktemp("served") / "run"))


@pytest.fixture(scope="module")
def url(cfg: LoopConfig, folder: RunFolder, local_ray: None) -> Iterator[str]:
    yield serve.deploy(cfg, folder, 0)
    serve.undeploy(cfg)


def ask(url: str, path: str = "/v1/predict", **body: Any) -> httpx.Response:
    request = {"image": png(), "action": ACTION} | body
    return httpx.post(f"{url}{path}", json=request, timeout=60)


def roll_out(url: str, **body: Any) -> list[tuple[str, dict[str, Any]]]:
    request = {"image": png(), "actions": [ACTION] * 3} | body
    reply = httpx.post(f"{url}/v1/rollouts", json=request, timeout=60)
    assert reply.status_code == 200, reply.text
    return events(reply.text)


def replicas(deployment: str) -> list[int]:
    """Processes of a deployment's replicas."""
    found = []
    for pid in descendants(os.getpid()):
        try:
            name = Path(f"/proc/{pid}/cmdline").read_text()
        except OSError:
            continue
        if f"ServeReplica:dynamics:{deployment}" in name:
            found.append(pid)
    return sorted(found)


def test_a_prediction_is_a_frame_with_the_scores_of_all_candidates(
    url: str, cfg: LoopConfig, folder: RunFolder
) -> None:
    reply = ask(url, candidates=True)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    assert picture(answer["image"]).size == (cfg.world.frame_px, cfg.world.frame_px)
    assert answer["candidates"][answer["chosen"]] == answer["image"]
    assert len(answer["scores"]) == 3
    assert answer["scores"][answer["chosen"]] == max(answer["scores"])
    report = folder.report(0)
    assert report is not None
    assert (answer["round"], answer["idm"]) == (0, report.models["idm_digest"])


def test_the_same_seed_gives_the_same_image_alone_and_among_others(url: str) -> None:
    alone = [ask(url, seed=seed, n=1 + seed % 4).json() for seed in range(12)]
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda s: ask(url, seed=s, n=1 + s % 4).json(), range(12)))
    assert together == alone


def test_a_form_is_answered_like_json(url: str) -> None:
    import base64

    files = {"image": ("a.png", base64.b64decode(png()), "image/png")}
    form = {"action": ACTION, "n": "2", "seed": "7", "candidates": "true"}
    reply = httpx.post(f"{url}/v1/predict", data=form, files=files, timeout=60)
    assert reply.json() == ask(url, n=2, seed=7, candidates=True).json()


def test_a_roll_out_is_streamed_step_by_step(url: str) -> None:
    told = roll_out(url, beam=2, n=3, candidates=True)
    assert [name for name, _ in told] == ["start", "step", "step", "step", "end"]
    start, *steps, end = [body for _, body in told]
    assert (start["round"], start["num_steps"]) == (0, 3)
    assert [step["index"] for step in steps] == [0, 1, 2]
    assert all(step["candidates"][step["chosen"]] == step["image"] for step in steps)
    assert end["frames"][-1] == steps[-1]["image"]
    assert end["total"] == steps[-1]["total"]
    assert roll_out(url, beam=2, n=3, candidates=True) == told


def test_labels_models_scenes_and_figures_are_there(url: str, cfg: LoopConfig) -> None:
    label = ask(url, "/v1/label", image=None, action=None)
    assert label.status_code == 422
    label = httpx.post(f"{url}/v1/label", json={"before": png(), "after": png()}, timeout=60)
    assert label.json()["logprob"] == pytest.approx(sum(label.json()["token_logprobs"]))
    models = httpx.get(f"{url}/v1/models").json()
    assert [(r["round"], r["promoted"]) for r in models["rounds"]] == [(0, True), (1, False)]
    scenes = httpx.get(f"{url}/v1/scenes").json()["scenes"]
    reply = ask(url, image=scenes[0]["image"], action=scenes[0]["actions"][0])
    assert reply.json()["matches_ground_truth"] in (True, False)
    assert ask(url).json()["matches_ground_truth"] is None  # a black picture is no tabletop
    told = figures(url)
    assert told["dynamics_round"] == 0
    assert told['dynamics_requests_total{route="/v1/predict",status="200"}'] >= 2
    assert told["dynamics_batch_size_count"] >= 1
    page = httpx.get(f"{url}/")
    assert page.headers["content-security-policy"].startswith("default-src 'self'; img-src")
    assert page.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"image": "not base64!"}, 422),
        ({"image": png((8, 8))[:40]}, 422),
        ({"image": png((5001, 5000), "1")}, 413),
        ({"image": "A" * (MAX_BODY_BYTES + 1)}, 413),
        ({"action": ""}, 422),
        ({"action": "x" * 513}, 422),
        ({"action": "push " * 60}, 422),
        ({"n": 0}, 422),
        ({"n": MAX_SAMPLES + 1}, 422),
        ({"temperature": 0}, 422),
        ({"seed": -1}, 422),
        ({"colour": "red"}, 422),
        ({"round": 7}, 422),
        ({"verifier": "nobody"}, 422),
    ],
)
def test_bad_requests_are_refused(url: str, body: dict[str, Any], status: int) -> None:
    reply = ask(url, **body)
    assert reply.status_code == status, reply.text
    assert list(reply.json()) == ["detail"]
    assert "\n" not in reply.json()["detail"]


@pytest.mark.parametrize("clients", [6, pytest.param(500, marks=pytest.mark.slow)])
def test_a_client_that_leaves_takes_its_work_along(
    url: str, clients: int, record_property: Callable[[str, object], None]
) -> None:
    busy = {"image": png(), "actions": [ACTION] * 16, "n": 16, "beam": 8}

    def leave(_: int) -> None:
        with httpx.stream("POST", f"{url}/v1/rollouts", json=busy, timeout=60) as stream:
            next(stream.iter_lines())

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(leave, range(clients)))
    record_property("cases", clients)
    end = time.monotonic() + 10
    while (open_ := figures(url)["dynamics_open_requests"]) > 1 and time.monotonic() < end:
        time.sleep(0.1)
    assert open_ == 1  # the one that asks
    batches = figures(url)["dynamics_batch_size_count"]
    time.sleep(0.5)
    assert figures(url)["dynamics_batch_size_count"] == batches


def test_a_bad_adapter_leaves_the_old_round_serving(
    url: str, cfg: LoopConfig, folder: RunFolder
) -> None:
    adapter = folder.round(1) / "fdp"
    whole = {path: path.read_bytes() for path in adapter.iterdir()}
    damage(adapter)
    with pytest.raises(UserError, match=r"round 1 is refused: round-01/fdp is not what its report"):
        serve.deploy(cfg, folder, 1)
    assert httpx.get(f"{url}/readyz").json()["round"] == 0
    assert ask(url).json()["round"] == 0
    assert "is not what its report names" in ask(url, round=1).json()["detail"]
    for path, content in whole.items():
        path.write_bytes(content)


def test_a_newer_round_takes_over_without_a_failed_request(
    url: str, cfg: LoopConfig, folder: RunFolder
) -> None:
    before = replicas("Generator")
    stop = threading.Event()

    def keep_asking() -> list[tuple[int, int, str]]:
        seen = []
        while not stop.is_set():
            reply = ask(url)
            body = reply.json()
            seen.append((reply.status_code, body["round"], body["fdp"]))
        return seen

    with ThreadPoolExecutor(4) as pool:
        askers = [pool.submit(keep_asking) for _ in range(4)]
        time.sleep(0.5)
        assert serve.deploy(cfg, folder, 1) == url
        time.sleep(0.5)
        stop.set()
        seen = [reply for asker in askers for reply in asker.result()]
    reports = {number: folder.report(number) for number in (0, 1)}
    digests = {n: report.models["fdp_digest"] for n, report in reports.items() if report}
    assert {status for status, _, _ in seen} == {200}
    assert {number for _, number, _ in seen} == {0, 1}
    assert all(digests[number] == digest for _, number, digest in seen)
    assert replicas("Generator") == before
    assert ask(url, round=0).json()["round"] == 0


def test_a_replica_that_is_killed_is_not_noticed_and_comes_back(url: str) -> None:
    alone = ask(url, seed=3).json()
    told = roll_out(url, actions=[ACTION] * 12, n=8)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(ask, url, seed=3) for _ in range(16)]
        rolled = [pool.submit(roll_out, url, actions=[ACTION] * 12, n=8) for _ in range(4)]
        time.sleep(0.2)
        os.kill(replicas("Generator")[0], signal.SIGKILL)
        assert all(reply.result().json() == alone for reply in asked)
        assert all(reply.result() == told for reply in rolled)
    end = time.monotonic() + 30
    while len(replicas("Generator")) < 2 and time.monotonic() < end:
        time.sleep(0.2)
    assert len(replicas("Generator")) == 2


def test_the_examples_in_the_run_folder_are_valid_requests(
    url: str, cfg: LoopConfig, folder: RunFolder
) -> None:
    images = load_image_tokenizer(cfg.model.family, cfg.base_path())
    curl = serve.write_examples(cfg, folder, first_example(folder, images), url)
    assert f"@{folder.root / 'example-rollout.json'} {url}/v1/rollouts" in curl
    rollout = json.loads((folder.root / "example-rollout.json").read_text())
    assert [name for name, _ in roll_out(url, **rollout)].count("step") == 3
    predict = json.loads((folder.root / "example-request.json").read_text())
    assert ask(url, **predict).status_code == 200


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .* in use; .*serve\.port"):
            check_address(ServeConfig(port=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "example.org"])
def test_only_loopback_addresses_are_served_without_a_key(host: str) -> None:
    with pytest.raises(UserError, match="not a loopback address"):
        check_address(ServeConfig(host=host, port=free_port()))


def test_with_a_key_every_address_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SERVICE_KEY", KEY)
    check_address(ServeConfig(host="0.0.0.0", port=free_port(), api_key_env="SERVICE_KEY"))
    (tmp_path / "key").write_text(KEY + "\n")
    check_address(ServeConfig(host="0.0.0.0", port=free_port(), api_key_file=tmp_path / "key"))
    with pytest.raises(UserError, match="OTHER_KEY must hold an API key of at least 16"):
        check_address(ServeConfig(port=free_port(), api_key_env="OTHER_KEY"))


@pytest.mark.slow
def test_another_layout_gives_the_same_answers(
    url: str, cfg: LoopConfig, folder: RunFolder
) -> None:
    expected = ask(url, seed=5).json(), roll_out(url)
    label = {"before": png(), "after": png(colour=200)}
    labelled = httpx.post(f"{url}/v1/label", json=label, timeout=60).json()
    candidates = {"candidates": [png(), png(colour=200)]}
    scored = ask(url, "/v1/score", **candidates).json()
    layout = {"ingress_replicas": 0, "verifier_replicas": 1, "num_replicas": 1}
    other = cfg.model_copy(update={"serve": cfg.serve.model_copy(update=layout)})
    serve.deploy(other, folder, expected[0]["round"])
    assert (ask(url, seed=5).json(), roll_out(url)) == expected
    assert httpx.post(f"{url}/v1/label", json=label, timeout=60).json() == labelled
    assert ask(url, "/v1/score", **candidates).json() == scored
    assert len(scored["scores"]) == 2
    os.kill(replicas("Verifier")[0], signal.SIGKILL)
    assert (ask(url, seed=5).json(), roll_out(url)) == expected


def test_replicas_with_gpus_where_there_are_none_are_refused_in_a_line(
    local_ray: None, small: LoopConfig, folder: RunFolder
) -> None:
    options = ServeConfig(num_gpus_per_replica=0.5, verifier_replicas=1, num_gpus_per_verifier=0.5)
    with pytest.raises(UserError, match=r"serve needs 2 x 0\.5 GPU; the nodes have 0 GPUs"):
        serve.deploy(small.model_copy(update={"serve": options}), folder, 0)


@pytest.mark.slow
def test_a_replica_that_dies_takes_no_request_along_where_it_is_alone(
    url: str, cfg: LoopConfig, folder: RunFolder
) -> None:
    layout = {"ingress_replicas": 0, "num_replicas": 1}
    alone = cfg.model_copy(update={"serve": cfg.serve.model_copy(update=layout)})
    serve.deploy(alone, folder, 1)
    answer = ask(url, n=16).json()
    with Client(url) as client, ThreadPoolExecutor(8) as pool:
        request = (picture(png()), [ACTION] * 12)
        path = client.rollout(*request, n=8).finish()
        for _ in range(6):
            rollout = client.rollout(*request, n=8)
            next(rollout)
            asked = [pool.submit(ask, url, n=16) for _ in range(64)]
            while not asked[0].done():
                time.sleep(0.01)
            for replica in replicas("Generator"):
                os.kill(replica, signal.SIGKILL)
            assert all(reply.result().json() == answer for reply in asked)
            assert rollout.finish() == path


def test_a_jobs_check_ends_a_service_that_nobody_had_asked_for(
    url: str, cfg: LoopConfig, folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import serve as ray_serve

    class Answer:
        def __call__(self) -> str:
            return "yes"

    answer = ray_serve.deployment(Answer).bind()
    stages = SimpleNamespace(
        finished=lambda _: (None, folder.reports(cfg.rounds)[-1]),
        serve=lambda *_: ray_serve.run(answer, name="dynamics"),
    )
    monkeypatch.setenv("RAY_ADDRESS", "a cluster")
    bootstrap._check_service(cfg, folder, stages)
    assert serve.is_deployed(cfg)  # as before the job
    serve.undeploy(cfg)
    bootstrap._check_service(cfg, folder, stages)
    assert not serve.is_deployed(cfg)
