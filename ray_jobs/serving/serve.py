"""Put a run behind HTTP with Ray Serve: start, promote, check, write examples."""

import logging
import shlex
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from dynamics.core.config import LoopConfig, ServeConfig
from dynamics.core.domain import load_domain
from dynamics.core.errors import UserError
from dynamics.core.loopback import by_proxy
from dynamics.models import load_image_tokenizer
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.serving.examples import example_scenes
from dynamics.serving.http.auth import read_key
from dynamics.serving.http.server import check_address, url_of
from dynamics.serving.images import to_base64
from dynamics.serving.model_registry import promoted_rounds
from dynamics.serving.schemas import PredictReply, PredictRequest, RolloutRequest
from dynamics.storage.files import write_bytes
from dynamics.storage.run_folder import RunFolder
from ray_jobs import runtime

Example = tuple[Any, str]
"""Example request: a frame, uint8 [H, W, 3], and an action sentence."""

_APP = "dynamics"
_EXAMPLE_STEPS = 3
_PROXY_GRACE_S = 10.0
"""Seconds that Serve's proxy waits beyond our own deadline, whose error is clearer."""
_READY_TIMEOUT_S = 120.0


def deploy(cfg: LoopConfig, folder: RunFolder, round_id: int) -> str:
    """Have a round answer over HTTP; returns the URL.

    Replicas of a running service with the same settings load the round beside the promoted one, and
    switch.

    Raises:
        UserError: the port is taken, no node has the GPUs, or the round is bad; then the promoted
            one still answers.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions
    from ray.serve.schema import LoggingConfig

    from ray_jobs.serving.ingress import GENERATOR, build

    # The import has reset the level; errors are raised and printed in one line.
    logging.getLogger("ray.serve").setLevel(logging.CRITICAL)
    options = cfg.serve
    _check_gpus(options)
    if not serve.status().proxies:
        check_address(options)
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(
                host=options.host,
                port=options.port,
                request_timeout_s=options.deadline_s + _PROXY_GRACE_S,
            ),
            logging_config=LoggingConfig(enable_access_log=False),
        )
    running = serve.status().applications.get(_APP)
    if running is not None and GENERATOR in running.deployments:
        _prepare(serve.get_deployment_handle(GENERATOR, _APP), round_id)
    serve.run(build(cfg, folder.root, round_id), name=_APP, route_prefix="/")
    url = url_of(options)
    _wait_until_ready(url, round_id)
    return url


def _check_gpus(options: ServeConfig) -> None:
    """Refuse replicas that no node can hold: Serve would wait for them without a word."""
    from ray_jobs import demand

    wanted = Counter({options.num_gpus_per_replica: options.num_replicas})
    wanted[options.num_gpus_per_verifier] += options.verifier_replicas
    if line := demand.missing_gpus(wanted):
        raise UserError(f"serve {line}")


def _prepare(generator: Any, round_id: int) -> None:
    """Have every replica load and try a round before any of them promotes it.

    Raises:
        UserError: one of them refuses; all go on as before.
    """
    problems = generator.broadcast("prepare", round_id).results(timeout_s=_READY_TIMEOUT_S)
    if found := next(filter(None, problems), None):
        raise UserError(f"round {round_id} is refused: {found}; what answered before still does")


def _wait_until_ready(url: str, round_id: int) -> None:
    """Return when the round answers.

    Raises:
        UserError: it is refused, or nothing answers.
    """
    import httpx

    end = time.monotonic() + _READY_TIMEOUT_S
    said = "no answer"
    while time.monotonic() < end:
        try:
            reply = httpx.get(f"{url}/readyz", timeout=_READY_TIMEOUT_S, trust_env=by_proxy(url))
            status = reply.json()
        except (httpx.HTTPError, ValueError) as error:
            said = str(error)
        else:
            if status.get("round") == round_id:
                return
            said = status.get("refused") or status.get("detail") or said
            if "refused" in said:
                break
        time.sleep(0.1)
    raise UserError(f"round {round_id} does not answer at {url}: {said}")


def smoke_request(cfg: LoopConfig, url: str, frame: Any, action: str) -> dict[str, Any]:
    """Ask the service for one frame over real HTTP.

    Raises:
        UserError: no answer, or one that is not a prediction.
    """
    import httpx

    key = read_key(cfg.serve)
    try:
        answer = httpx.post(
            f"{url}/v1/predict",
            json={"image": to_base64(frame), "action": action},
            headers={"authorization": f"Bearer {key}"} if key else None,
            timeout=cfg.serve.deadline_s + _PROXY_GRACE_S,
            trust_env=by_proxy(url),
        )
        answer.raise_for_status()
        return PredictReply.model_validate_json(answer.content).model_dump()
    except (httpx.HTTPError, ValueError) as error:
        raise UserError(f"the served generator at {url} gave no prediction: {error}") from error


def write_examples(cfg: LoopConfig, folder: RunFolder, example: Example, url: str) -> str:
    """Write ready requests into the run folder; returns the curl line of a roll-out.

    The roll-out starts from the first scene of the page, or, where there is none, repeats the
    example's action.
    """
    frame, action = example
    predict = PredictRequest(image=to_base64(frame), action=action)
    actions = [action] * _EXAMPLE_STEPS
    if scenes := example_scenes(load_domain(cfg), folder):
        frame, actions = scenes[0].frame, scenes[0].actions[:_EXAMPLE_STEPS]
    rollout = RolloutRequest(image=to_base64(frame), actions=actions)
    for name, request in (("request", predict), ("rollout", rollout)):
        text = request.model_dump_json(exclude_defaults=True)
        write_bytes(folder.root / f"example-{name}.json", (text + "\n").encode())
    key = f' -H "authorization: Bearer ${cfg.serve.api_key_env or "KEY"}"'
    body = shlex.quote(str(folder.root / "example-rollout.json"))
    return (
        f"curl -N{key if read_key(cfg.serve) else ''} -H 'content-type: application/json' "
        f"-d @{body} {url}/v1/rollouts"
    )


def serve_run(cfg: LoopConfig, folder: RunFolder) -> str:
    """Deploy the last promoted round of a run; returns lines for the user.

    Raises:
        UserError: no round is promoted, the port is taken, or no answer came.
    """
    rounds = list(promoted_rounds(folder))
    if not rounds:
        raise UserError(f"{folder.root} has no promoted round to serve; run dynamics bootstrap")
    images = load_image_tokenizer(cfg.model.family, cfg.base_path())
    return serve_round(cfg, folder, rounds[-1], images)


def serve_round(cfg: LoopConfig, folder: RunFolder, round_id: int, images: ImageTokenizer) -> str:
    """Deploy a round and check that it answers; returns the page's address and a curl line.

    ``images`` decodes the frame that is sent.

    Raises:
        UserError: Ray or Serve did not start, the port is taken, or the round does not answer. All
            that this call started is stopped again.
    """
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    from dynamics.pipeline.executor import first_example

    example = first_example(folder, images)
    try:
        with runtime.on_ray(cfg.cluster), _all_or_nothing():
            url = deploy(cfg, folder, round_id)
            smoke_request(cfg, url, *example)
    except (UserError, RayError, RayServeException, RuntimeError, OSError) as error:
        again = runtime.command("dynamics", "serve", str(folder.root))
        raise UserError(
            f"round {round_id} is not served: {_reason(error)}; once the rounds are done, {again} "
            "tries again"
        ) from error
    return f"{url}/\n  {write_examples(cfg, folder, example, url)}"


@contextmanager
def _all_or_nothing() -> Iterator[None]:
    """Restore Serve to its state before the body when the body fails."""
    from ray import serve

    before = serve.status()
    try:
        yield
    except Exception:
        with suppress(Exception):  # the body's failure is the one to raise
            if not before.proxies and not before.applications:
                serve.shutdown()  # type: ignore[no-untyped-call]  # Serve has no annotation here
            elif _APP not in before.applications:
                serve.delete(_APP)
        raise


def _reason(error: Exception) -> str:
    """Line of an error that holds the reason."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    # A worker's error is a traceback, whose last line is the reason.
    return lines[-1 if "ray::" in str(error) else 0].rstrip(".")


def is_deployed(cfg: LoopConfig) -> bool:
    """True when a generator answers, or is about to, on the run's Ray."""
    from ray import serve

    with runtime.on_ray(cfg.cluster):
        return _APP in serve.status().applications


def undeploy(cfg: LoopConfig) -> None:
    """Stop the generator, and nothing else that is served on a joined cluster."""
    from ray import serve

    with runtime.on_ray(cfg.cluster):
        serve.delete(_APP)


def wait_for_interrupt() -> None:
    """Wait for Ctrl-C, or the signal by which service managers end a process."""
    wanted = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: wanted.set())
    wanted.wait()
