"""Requests made up from the service's own description, over HTTP, before real models."""

from __future__ import annotations

import asyncio
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest
import uvicorn
from hypothesis import HealthCheck, given, settings

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig
from dynamics.serving.http.app import make_app
from dynamics.serving.images import from_base64
from tests.runs import LocalRun
from tests.serving import free_port, local_service, png

if TYPE_CHECKING:  # slow to import
    import schemathesis
    from schemathesis import GenerationMode

PAGE = REPOSITORY_ROOT / "dynamics" / "serving" / "page"
PNG = from_base64(png())
EXAMPLES = 40
"""Requests per route and mode."""


@pytest.fixture(scope="module")
def url(small: LoopConfig, local_run: LocalRun) -> Iterator[str]:
    service = local_service(small, local_run.folder)
    app = make_app(service, small.serve, PAGE, None)
    asyncio.run(service.promote(1))
    port = free_port()
    server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}"
    server.should_exit = True
    thread.join()


ACTION = "push the red ring left"


def ask(case: schemathesis.Case, mode: GenerationMode) -> int:
    from schemathesis import GenerationMode

    if mode is GenerationMode.POSITIVE and isinstance(case.body, dict):
        # Random text is neither a picture nor words of the model, which would never be reached.
        for name in {"frames", "candidates"} & set(case.body):
            case.body[name] = [png() if case.media_type == "application/json" else PNG]
        for name in {"image", "before", "after"} & set(case.body):
            case.body[name] = png() if case.media_type == "application/json" else PNG
        if "action" in case.body:
            case.body["action"] = ACTION
        if "actions" in case.body:
            case.body["actions"] = [ACTION] * len(case.body["actions"])
    reply = case.call()
    assert reply.status_code < 500, (case.as_curl_command(), reply.text)
    if reply.status_code >= 400:
        assert list(reply.json()) == ["detail"]
        assert "Traceback" not in reply.text
    return int(reply.status_code)


def asker(
    operation: Any, mode: GenerationMode, seen: Counter[tuple[str, int]]
) -> Callable[[], None]:
    @given(case=operation.as_strategy(generation_mode=mode))
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    def ask_all(case: schemathesis.Case) -> None:
        seen[operation.path, ask(case, mode)] += 1

    return ask_all


def test_nothing_that_the_description_allows_or_forbids_is_a_fault_of_ours(url: str) -> None:
    import schemathesis
    from schemathesis import GenerationMode

    seen: Counter[tuple[str, int]] = Counter()
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [found.ok() for found in schema.get_all_operations()]
    posts = [operation for operation in operations if operation.method.upper() == "POST"]
    for operation in operations:
        asker(operation, GenerationMode.POSITIVE, seen)()
    for operation in posts:  # what takes no arguments cannot be asked wrongly
        asker(operation, GenerationMode.NEGATIVE, seen)()
    for operation in posts:
        assert seen[operation.path, 200] > 3
        assert seen[operation.path, 422] > 3
