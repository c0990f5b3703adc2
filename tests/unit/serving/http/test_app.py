"""The HTTP layer before a fake backend."""

import asyncio
import json
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from dynamics.core.config import REPOSITORY_ROOT, ServeConfig
from dynamics.core.errors import UserError
from dynamics.serving.backend import ServiceStatus
from dynamics.serving.http.app import make_app
from dynamics.serving.http.auth import read_key
from dynamics.serving.http.responses import Event, ServiceResponse
from dynamics.serving.schemas import MAX_BODY_BYTES
from tests.serving import events, png

KEY = "0123456789abcdef0123456789abcdef"
PAGE = REPOSITORY_ROOT / "dynamics" / "serving" / "page"
GOOD = {"image": png(), "action": "push it"}


class FakeBackend:
    """Answers after ``seconds``; ``fault`` is raised instead."""

    def __init__(self, seconds: float = 0.0, fault: Exception | None = None) -> None:
        self.seconds = seconds
        self.fault = fault
        self.open = 0
        self.bodies: list[bytes] = []
        self.promoted: int | None = 3

    async def predict(self, body: bytes, timeout_s: float) -> ServiceResponse:
        self.bodies.append(body)
        self.open += 1
        try:
            await asyncio.sleep(self.seconds)
        finally:
            self.open -= 1
        if self.fault:
            raise self.fault
        return ServiceResponse(200, '{"round": 3}')

    label = score = look = words = predict

    async def rollout(self, body: bytes, timeout_s: float) -> AsyncGenerator[Event, None]:
        self.open += 1
        try:
            yield Event("start", '{"round": 3}')
            await asyncio.sleep(self.seconds)
            if self.fault:
                raise self.fault
            yield Event("end", "{}")
        finally:
            self.open -= 1

    async def models(self) -> ServiceResponse:
        return ServiceResponse(200, "{}")

    scenes = models

    async def status(self) -> ServiceStatus:
        return ServiceStatus(
            promoted=self.promoted,
            refused=None,
            waiting=2,
            batch_sizes={1: 3, 4: 2},
            batch_seconds=1.5,
        )


def client(
    backend: FakeBackend | None = None,
    key: str | None = None,
    base_url: str = "http://127.0.0.1",
    **options: Any,
) -> httpx.AsyncClient:
    app = make_app(backend or FakeBackend(), ServeConfig(**options), PAGE, key)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url=base_url)


def send(path: str, *, method: str = "POST", **request: Any) -> httpx.Response:
    own = {name: request.pop(name) for name in ("backend", "key", "base_url") if name in request}
    options = request.pop("options", {})

    async def main() -> httpx.Response:
        async with client(**own, **options) as asker:
            return await asker.request(method, path, **request)

    return asyncio.run(main())


def test_without_its_key_nothing_of_worth_is_told() -> None:
    for path in ("/v1/models", "/v1/scenes", "/metrics"):
        assert send(path, method="GET", key=KEY).status_code == 401
    wrong = ("", KEY[:-1], KEY + "0", KEY.upper(), "Bearer", "\u00e9" * 32)
    for given in (KEY, f"Basic {KEY}", *(f"Bearer {one}" for one in wrong)):
        headers = {"authorization": given.encode()}
        reply = send("/v1/predict", json=GOOD, key=KEY, headers=headers)
        assert reply.status_code == 401
        assert KEY not in reply.text
    for good in (f"Bearer {KEY}", f"bearer {KEY}"):
        headers = {"authorization": good}
        assert send("/v1/predict", json=GOOD, key=KEY, headers=headers).status_code == 200
    for path in ("/", "/healthz", "/readyz", "/openapi.json"):
        assert send(path, method="GET", key=KEY).status_code == 200


def test_a_thousand_wrong_keys_open_nothing() -> None:
    rng = random.Random(0)
    backend = FakeBackend()

    async def main() -> set[int]:
        async with client(backend, KEY) as asker:
            statuses = set()
            for _ in range(1000):
                at = rng.randrange(len(KEY))
                near = KEY[:at] + rng.choice("ghijkl") + KEY[at + 1 :]
                given = {"authorization": f"Bearer {near if rng.random() < 0.5 else KEY[:at]}"}
                statuses.add((await asker.get("/v1/models", headers=given)).status_code)
            return statuses

    assert asyncio.run(main()) == {401}


def test_the_key_is_nowhere_but_in_its_place(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("SERVICE_KEY", KEY)
    options = ServeConfig(api_key_env="SERVICE_KEY")
    assert read_key(options) == KEY
    assert KEY not in options.model_dump_json()
    backend = FakeBackend(fault=RuntimeError("broken"))
    headers = {"authorization": f"Bearer {KEY}"}
    reply = send("/v1/predict", json=GOOD, key=KEY, headers=headers, backend=backend)
    figures = send("/metrics", method="GET", key=KEY, headers=headers)
    assert KEY not in reply.text + figures.text + caplog.text
    (tmp_path / "key").write_text("short")
    with pytest.raises(UserError, match="at least 16") as error:
        read_key(ServeConfig(api_key_file=tmp_path / "key"))
    assert "short" not in str(error.value)


@pytest.mark.parametrize("host", ["http://10.0.0.5", "http://evil.example", "http://[2001:db8::1]"])
def test_without_a_key_only_this_machine_is_answered(host: str) -> None:
    assert send("/healthz", method="GET", base_url=host).status_code == 403
    assert send("/healthz", method="GET", base_url=host, key=KEY).status_code == 200
    page_elsewhere = {"host": "evil.example:8000"}  # a name that was made to point here
    assert send("/v1/predict", json=GOOD, headers=page_elsewhere).status_code == 403
    for own in ("localhost:8000", "LOCALHOST", "[::1]:8000"):
        assert send("/v1/predict", json=GOOD, headers={"host": own}).status_code == 200


@pytest.mark.parametrize("key", [None, KEY])
def test_pages_of_other_origins_are_refused(key: str | None) -> None:
    backend = FakeBackend()
    host = {"host": "127.0.0.1:8000", "authorization": f"Bearer {KEY}"}
    for other in (
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:8001"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"sec-fetch-site": "same-origin", "origin": "https://evil.example"},
    ):
        for path, method in (("/v1/predict", "POST"), ("/v1/models", "GET"), ("/metrics", "GET")):
            options = {"method": method, "headers": host | other, "key": key, "backend": backend}
            content = {"json": GOOD} if method == "POST" else {}
            assert send(path, **options, **content).status_code == 403
        assert send("/", method="GET", headers=host | other, key=key).status_code == 200
    for own in ({"origin": "http://127.0.0.1:8000"}, {"sec-fetch-site": "none"}, {}):
        reply = send("/v1/predict", json=GOOD, headers=host | own, key=key, backend=backend)
        assert reply.status_code == 200
    assert len(backend.bodies) == 3


@pytest.mark.parametrize(
    "kind", ["text/plain", "application/x-www-form-urlencoded", "application/jsonp", ""]
)
def test_only_json_and_forms_with_files_are_read(kind: str) -> None:
    for path in ("/v1/predict", "/v1/rollouts", "/v1/label", "/v1/score"):
        reply = send(path, content=json.dumps(GOOD), headers={"content-type": kind})
        assert reply.status_code == 415
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    assert send("/v1/predict", content=json.dumps(GOOD), headers=headers).status_code == 200


def test_a_fault_of_ours_is_one_line_without_a_trace(caplog: pytest.LogCaptureFixture) -> None:
    backend = FakeBackend(fault=RuntimeError("secret place"))
    headers = {"x-request-id": "abc"}
    reply = send("/v1/predict", json=GOOD, backend=backend, headers=headers)
    assert reply.status_code == 500
    assert reply.json() == {"detail": "internal error, see the log; request id abc"}
    assert "secret place" in caplog.text
    streamed = send("/v1/rollouts", json={"image": png(), "actions": ["a"]}, backend=backend)
    assert events(streamed.text)[-1] == ("error", {"detail": "internal error, see the log"})


def test_unknown_paths_and_methods_are_error_replies() -> None:
    assert send("/nothing", method="GET").json() == {"detail": "Not Found"}
    assert send("/v1/predict", method="GET").status_code == 405
    assert send("/v1/predict", method="DELETE").json() == {"detail": "Method Not Allowed"}


def test_too_large_a_body_is_refused_announced_or_not() -> None:
    announced = send("/v1/predict", content=b"x" * (MAX_BODY_BYTES + 1))
    assert announced.status_code == 413
    sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal sent
        while sent < 2**40:
            sent += 2**20
            yield b"x" * 2**20

    headers = {"content-type": "application/json"}
    streamed = send("/v1/predict", content=endless(), headers=headers)
    assert streamed.status_code == 413
    assert list(streamed.json()) == ["detail"]
    assert sent <= MAX_BODY_BYTES + 2**21


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"null", b'{"image": 1}', b"\xff\xfe", b'{"n": NaN}']
)
def test_bodies_that_are_no_request_are_refused(content: bytes) -> None:
    for path in ("/v1/predict", "/v1/rollouts", "/v1/label", "/v1/score"):
        reply = send(path, content=content, headers={"content-type": "application/json"})
        assert reply.status_code == 422
        assert "\n" not in reply.json()["detail"]


@pytest.mark.parametrize(
    "content",
    [
        b"{" + b",".join(b'"k%d":1' % number for number in range(900_000)) + b"}",
        b'{"actions":[' + b"1," * 4_000_000 + b"1]}",
        b'{"actions":' + b"[" * 6_000_000,
        b'{"a":' * 1_000_000,
        b'{"n":' + b"9" * 10_000_000 + b"}",
        b'{"' + b"k" * 11_000_000 + b'":1}',
        b'{"a":"' + b'\\"' * 5_000_000 + b'"}',
        b'"' * 12_000_000,
        b" " * 12_000_000,
    ],
    ids=["keys", "items", "nested", "objects", "number", "long_key", "escapes", "quotes", "spaces"],
)
def test_the_event_loop_goes_on_under_a_body_of_a_million_parts(content: bytes) -> None:
    async def main() -> tuple[int, str, float]:
        longest = 0.0

        async def tick() -> None:
            nonlocal longest
            while True:
                begin = time.monotonic()
                await asyncio.sleep(0.01)
                longest = max(longest, time.monotonic() - begin)

        async with client() as asker:
            ticking = asyncio.create_task(tick())
            headers = {"content-type": "application/json"}
            reply = await asker.post("/v1/predict", content=content, headers=headers)
            ticking.cancel()
            return reply.status_code, reply.json()["detail"], longest

    status, detail, longest = asyncio.run(main())
    assert (status, len(detail) <= 500) == (422, True)
    assert longest < 1.0


def test_of_many_problems_the_first_are_named() -> None:
    reply = send("/v1/predict", json={f"field {number}": 1 for number in range(50)})
    assert reply.status_code == 422
    assert reply.json()["detail"].count(";") == 4


@pytest.mark.parametrize(
    "content", [b"", b"--x\r\n", b"--x\r\nContent-Disposition: form-data\r\n\r\n"]
)
def test_damaged_forms_are_refused(content: bytes) -> None:
    headers = {"content-type": "multipart/form-data; boundary=x"}
    assert send("/v1/predict", content=content, headers=headers).status_code == 422
    headers = {"content-type": "multipart/form-data"}
    assert send("/v1/predict", content=content, headers=headers).status_code == 422


def test_forms_carry_files_and_several_actions() -> None:
    backend = FakeBackend()
    files = [("image", ("a.png", b"\x89PNG", "image/png"))]
    data = {"action": "push it", "n": "4", "candidates": "true"}
    assert send("/v1/predict", data=data, files=files, backend=backend).status_code == 200
    assert json.loads(backend.bodies[0]) == {
        "image": "iVBORw==",
        "action": "push it",
        "n": 4,
        "candidates": True,
    }
    rollout = send("/v1/rollouts", data={"actions": ["a", "b"]}, files=files)
    assert [name for name, _ in events(rollout.text)] == ["start", "end"]
    two = [("candidates", (f"{n}.png", bytes([n]), "image/png")) for n in (1, 2)]
    scored = send("/v1/score", data={"action": "push it"}, files=files + two, backend=backend)
    assert scored.status_code == 200
    assert json.loads(backend.bodies[1])["candidates"] == ["AQ==", "Ag=="]


def test_beyond_the_bound_requests_are_refused_at_once() -> None:
    backend = FakeBackend(seconds=0.2)

    async def main() -> list[httpx.Response]:
        async with client(backend, max_queued=3) as asker:
            asked = [asker.post("/v1/predict", json=GOOD) for _ in range(8)]
            first = await asyncio.gather(*asked)
            return [*first, await asker.post("/v1/predict", json=GOOD)]

    *first, later = asyncio.run(main())
    assert sorted(reply.status_code for reply in first) == [200] * 3 + [503] * 5
    busy = next(reply for reply in first if reply.status_code == 503)
    assert busy.headers["retry-after"] == "1"
    assert "ask again later" in busy.json()["detail"]
    assert later.status_code == 200


def test_the_deadline_ends_predictions_and_roll_outs() -> None:
    backend = FakeBackend(seconds=5)
    late = send("/v1/predict", json=GOOD, backend=backend, options={"deadline_s": 0.1})
    assert late.status_code == 503
    assert "no answer within 0.1 s" in late.json()["detail"]
    rollout = {"image": png(), "actions": ["a"]}
    told = send("/v1/rollouts", json=rollout, backend=backend, options={"deadline_s": 0.1})
    assert [name for name, _ in events(told.text)] == ["start", "error"]
    assert backend.open == 0


def test_readiness_waits_for_a_round_and_health_does_not() -> None:
    backend = FakeBackend()
    assert send("/readyz", method="GET", backend=backend).json()["round"] == 3
    backend.promoted = None
    reply = send("/readyz", method="GET", backend=backend)
    assert (reply.status_code, list(reply.json())) == (503, ["detail"])
    assert send("/healthz", method="GET", backend=backend).json() == {"status": "ok"}


def test_figures_count_requests_by_route_and_status() -> None:
    async def main() -> str:
        async with client() as asker:
            await asker.post("/v1/predict", json=GOOD)
            await asker.post("/v1/predict", json={})
            await asker.get("/invented/by/somebody")
            return (await asker.get("/metrics")).text

    text = asyncio.run(main())
    assert 'dynamics_requests_total{route="/v1/predict",status="200"} 1.0' in text
    assert 'dynamics_requests_total{route="/v1/predict",status="422"} 1.0' in text
    assert 'dynamics_requests_total{route="other",status="404"} 1.0' in text
    assert "dynamics_waiting 2.0" in text
    assert "dynamics_round 3.0" in text
    assert 'dynamics_batch_size_bucket{le="1"} 3.0' in text
    assert "dynamics_batch_size_sum 11.0" in text


def test_every_reply_carries_the_security_headers() -> None:
    for path in ("/", "/healthz", "/nothing", "/openapi.json"):
        headers = send(path, method="GET").headers
        assert headers["content-security-policy"].startswith(
            "default-src 'self'; img-src 'self' data: blob:;"
        )
        assert headers["x-content-type-options"] == "nosniff"


def test_the_description_names_every_route_and_every_error() -> None:
    described = send("/openapi.json", method="GET").json()
    assert set(described["paths"]) == {
        *("/v1/predict", "/v1/label", "/v1/rollouts", "/v1/score", "/v1/models", "/v1/scenes"),
        *("/v1/look", "/v1/words", "/v1/animations", "/healthz", "/readyz", "/metrics"),
    }
    for path in ("/v1/predict", "/v1/label", "/v1/rollouts", "/v1/score", "/v1/look"):
        route = described["paths"][path]["post"]
        assert {"200", "401", "413", "415", "422", "503"} <= set(route["responses"])
        assert set(route["requestBody"]["content"]) == {"application/json", "multipart/form-data"}
