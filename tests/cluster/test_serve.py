"""The generator on a real Ray Serve, asked over real HTTP."""

import base64
import io
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

from dynamics.config import LoopConfig, ServeConfig
from dynamics.errors import UserError
from dynamics.local import LocalStages
from ray_jobs import serve
from ray_jobs.generator import MAX_BODY_BYTES, MAX_SAMPLES
from tests.runs import LocalRun

pytestmark = pytest.mark.cluster


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def png(size: tuple[int, int], mode: str = "RGB") -> str:
    buffer = io.BytesIO()
    Image.new(mode, size).save(buffer, format="PNG")
    return base64.b64encode(buffer.getvalue()).decode()


@pytest.fixture(scope="module")
def cfg(small: LoopConfig) -> LoopConfig:
    return small.model_copy(update={"serve": ServeConfig(port=free_port(), num_samples=3)})


@pytest.fixture(scope="module")
def url(cfg: LoopConfig, local_run: LocalRun, local_ray: None) -> Iterator[str]:
    finished = LocalStages(cfg, local_run.folder).finished(0)
    assert finished is not None
    yield serve.deploy(cfg, finished[0], 0)
    serve.undeploy(cfg)


def ask(url: str, **body: Any) -> httpx.Response:
    request = {"image": png((48, 48)), "action": "push the red ball left"} | body
    return httpx.post(f"{url}/v1/predict", json=request, timeout=60)


def test_a_prediction_is_a_frame_with_the_scores_of_all_candidates(
    url: str, small: LoopConfig, local_run: LocalRun
) -> None:
    reply = ask(url)
    assert reply.status_code == 200, reply.text
    answer = reply.json()
    frame = Image.open(io.BytesIO(base64.b64decode(answer["image"])))
    assert frame.size == (small.world.frame_px, small.world.frame_px)
    assert len(answer["scores"]) == 3
    assert answer["scores"][answer["chosen"]] == max(answer["scores"])
    finished = LocalStages(small, local_run.folder).finished(0)
    assert finished is not None
    assert (answer["round"], answer["idm"]) == (0, finished[0].idm_digest)


def test_equal_seeds_give_equal_answers(url: str) -> None:
    assert ask(url, seed=5, n=4).json() == ask(url, seed=5, n=4).json()


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"image": "not base64!"}, 422),
        ({"image": base64.b64encode(b"text").decode()}, 422),
        ({"image": png((8, 8))[:40]}, 422),
        ({"image": png((5000, 5000), "1")}, 413),
        ({"image": "A" * (MAX_BODY_BYTES + 1)}, 413),
        ({"action": ""}, 422),
        ({"action": "x" * 513}, 422),
        ({"action": "push " * 60}, 422),
        ({"n": 0}, 422),
        ({"n": MAX_SAMPLES + 1}, 422),
        ({"temperature": 0}, 422),
        ({"seed": -1}, 422),
        ({"colour": "red"}, 422),
    ],
)
def test_bad_requests_are_refused(url: str, body: dict[str, Any], status: int) -> None:
    reply = ask(url, **body)
    assert reply.status_code == status, reply.text
    assert "Traceback" not in reply.text


def test_a_newer_round_replaces_the_older_one(
    url: str, cfg: LoopConfig, local_run: LocalRun
) -> None:
    finished = LocalStages(cfg, local_run.folder).finished(1)
    assert finished is not None
    assert serve.deploy(cfg, finished[0], 1) == url
    assert httpx.get(f"{url}/healthz").json() == {"status": "ok", "round": 1}


def test_the_example_in_the_run_folder_is_a_valid_request(
    url: str, cfg: LoopConfig, local_run: LocalRun, tmp_path: Path
) -> None:
    curl = serve.write_example(tmp_path, *LocalStages(cfg, local_run.folder).example(), url)
    body = (tmp_path / "example-request.json").read_text()
    assert f"@{tmp_path / 'example-request.json'} {url}/v1/predict" in curl
    reply = httpx.post(
        f"{url}/v1/predict", content=body, headers={"content-type": "application/json"}, timeout=60
    )
    assert reply.status_code == 200


def test_a_port_in_use_is_named_with_the_way_out() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=rf"port {port} .* in use; .*serve\.port"):
            serve.check_address(ServeConfig(port=port))


@pytest.mark.parametrize("host", ["0.0.0.0", "10.0.0.1", "example.org"])
def test_only_loopback_addresses_are_served(host: str) -> None:
    with pytest.raises(UserError, match="not a loopback address"):
        serve.check_address(ServeConfig(host=host, port=free_port()))
