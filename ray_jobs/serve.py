"""Put a round's generator behind HTTP with Ray Serve; also ``dynamics serve RUN``.

Bound to a loopback address: there is no authentication yet, so nothing else is accepted.
"""

import argparse
import ipaddress
import logging
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dynamics.config import LoopConfig, ServeConfig, validate
from dynamics.errors import UserError
from dynamics.records import ModelRef
from dynamics.run_folder import RunFolder
from ray_jobs import runtime

REQUEST_TIMEOUT_S = 60.0
_APP = "dynamics"


def check_address(options: ServeConfig) -> None:
    """Refuse what cannot or must not be bound, before anything is started.

    Raises:
        UserError: not a loopback address, or the port is taken.
    """
    host = "127.0.0.1" if options.host == "localhost" else options.host
    try:
        loopback = ipaddress.ip_address(host).is_loopback
    except ValueError:
        loopback = False
    if not loopback:
        raise UserError(
            f"serve.host={options.host} is not a loopback address, and the generator has no "
            "authentication; keep 127.0.0.1 and put an authenticating proxy or an SSH tunnel "
            "before it"
        )
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, options.port))
        except OSError as error:
            raise UserError(
                f"port {options.port} on {options.host} is in use; choose another one with "
                "serve.port=8001, or leave serving out with serve.enabled=false"
            ) from error


def deploy(cfg: LoopConfig, models: ModelRef, round_id: int) -> str:
    """Put a round's generator behind HTTP (replacing an earlier round's); returns its URL.

    Raises:
        UserError: the port is taken by somebody else.
    """
    from ray import serve
    from ray.serve.config import HTTPOptions

    from ray_jobs.generator import Generator

    logging.getLogger("ray.serve").setLevel(logging.WARNING)  # its import has reset the level
    options = cfg.serve
    if not serve.status().proxies:
        check_address(options)
        serve.start(
            proxy_location="HeadOnly",
            http_options=HTTPOptions(
                host=options.host, port=options.port, request_timeout_s=REQUEST_TIMEOUT_S
            ),
        )
    deployment: Any = Generator  # the decorator made a Deployment of it; its types do not say so
    generator = deployment.options(
        num_replicas=options.num_replicas,
        ray_actor_options={
            "num_cpus": options.num_cpus_per_replica,
            "num_gpus": options.num_gpus_per_replica,
        },
    )
    serve.run(generator.bind(cfg, models, round_id), name=_APP, route_prefix="/")
    return f"http://{options.host}:{options.port}"


def smoke_request(url: str, frame: Any, action: str) -> dict[str, Any]:
    """Ask the served generator for one frame over real HTTP.

    Raises:
        UserError: no answer, or one that is not a prediction.
    """
    import httpx

    from ray_jobs.generator import PredictResponse, encode_image

    try:
        answer = httpx.post(
            f"{url}/v1/predict",
            json={"image": encode_image(frame), "action": action},
            timeout=REQUEST_TIMEOUT_S,
        )
        answer.raise_for_status()
        return PredictResponse.model_validate_json(answer.content).model_dump()
    except (httpx.HTTPError, ValueError) as error:
        raise UserError(f"the served generator at {url} gave no prediction: {error}") from error


def write_example(folder: Path, frame: Any, action: str, url: str) -> str:
    """Write a ready request into the run folder; returns the curl line that sends it."""
    from ray_jobs.generator import PredictRequest, encode_image

    request = PredictRequest(image=encode_image(frame), action=action)
    path = folder / "example-request.json"
    path.write_text(request.model_dump_json(exclude_defaults=True) + "\n")
    return f"curl -s -H 'content-type: application/json' -d @{path} {url}/v1/predict"


def serve_run(cfg: LoopConfig, folder: RunFolder) -> str:
    """Deploy the last promoted round of a run; returns a curl line that asks it.

    Raises:
        UserError: no round is promoted, the port is taken, or no answer came.
    """
    from dynamics.local import LocalStages

    stages = LocalStages(cfg, folder.root)
    rounds = [report.round_id for report in folder.reports(cfg.rounds) if report.promoted]
    if not rounds:
        raise UserError(f"{folder.root} has no promoted round to serve; run dynamics bootstrap")
    if (finished := stages.finished(rounds[-1])) is None:
        raise UserError(f"round {rounds[-1]} of {folder.root} has lost its report")
    return serve_round(cfg, folder, finished[0], rounds[-1], stages.example())


def serve_round(
    cfg: LoopConfig,
    folder: RunFolder,
    models: ModelRef,
    round_id: int,
    example: tuple[Any, str],
) -> str:
    """Deploy a round and check that it answers; returns a curl line that asks it."""
    with runtime.on_ray(cfg.cluster):
        url = deploy(cfg, models, round_id)
        smoke_request(url, *example)
    return write_example(folder.root, *example, url)


def undeploy(cfg: LoopConfig) -> None:
    """Take the generator down, and nothing else that may be served on a joined cluster."""
    from ray import serve

    with runtime.on_ray(cfg.cluster):
        serve.delete(_APP)


def wait_for_interrupt() -> None:
    """Return at Ctrl-C."""
    try:
        while True:
            time.sleep(3600)
    except KeyboardInterrupt:
        return


def main(arguments: Sequence[str] | None = None) -> int:
    """``dynamics serve RUN``: serve a run's last promoted round until Ctrl-C."""
    parser = argparse.ArgumentParser(prog="dynamics serve", description=main.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN", help="run folder, e.g. runs/tabletop")
    parser.add_argument("--port", type=int, help="default: the run's serve.port")
    parsed = parser.parse_args(arguments)
    runtime.prepare_environment()
    try:
        folder = RunFolder(parsed.run.resolve())
        cfg = folder.config()
        if parsed.port is not None:
            tree = cfg.model_dump(mode="json")
            tree["serve"]["port"] = parsed.port
            cfg = validate(tree, where="--port")
        check_address(cfg.serve)
        curl = serve_run(cfg, folder)
        sys.stdout.write(f"serving until Ctrl-C; ask it with:\n  {curl}\n")
        sys.stdout.flush()
        wait_for_interrupt()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    finally:
        runtime.stop_ray()
    return 0


if __name__ == "__main__":
    sys.exit(main())
