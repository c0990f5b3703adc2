"""The HTTP replicas, and the graph of deployments that a config asks for.

``serve deploy configs/serve.yaml`` calls `app`; `ray_jobs.serving.serve` calls `build`.
"""

import hashlib
import json
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from ray import serve
from ray.serve import Application
from ray.serve.config import BackpressureConfig
from ray.serve.handle import DeploymentHandle
from ray.serve.schema import LoggingConfig

from dynamics.core.config import LoopConfig, ServeConfig
from dynamics.core.config_file import with_overrides
from dynamics.core.errors import UserError
from dynamics.core.places import ConfigPlace, Place
from dynamics.serving.http.app import PAGE, RETRY_AFTER_S, make_app
from dynamics.serving.http.auth import read_key
from dynamics.serving.model_registry import promoted_rounds
from dynamics.storage.run_folder import RunFolder
from ray_jobs.serving.backend import RemoteBackend
from ray_jobs.serving.generator import Generator, Verifier

GENERATOR = "Generator"
"""The deployment that holds the rounds, in every layout."""
_OPEN = 1000
"""Most open requests of a replica; our own bounds are lower, and answer in JSON."""


@serve.ingress()
class Ingress:
    """HTTP in a process without a model."""

    def __init__(self, cfg: LoopConfig, generator: DeploymentHandle[Any]) -> None:
        self._options = cfg.serve
        self._backend = RemoteBackend(generator, cfg.serve)

    def __serve_build_asgi_app__(self) -> FastAPI:
        return make_app(self._backend, self._options, PAGE, read_key(self._options))


@serve.ingress()
class Whole(Generator):
    """HTTP and models in one process."""

    def __serve_build_asgi_app__(self) -> FastAPI:
        options = self._cfg.serve
        return make_app(self.service, options, PAGE, read_key(options))


def build(cfg: LoopConfig, run_dir: Place, round_id: int) -> Application:
    """The deployments that ``cfg.serve`` asks for, answering with a round of a run.

    Their version hashes all arguments but the round, so that `serve.run` passes a new round to the
    running replicas instead of replacing them.
    """
    options = cfg.serve
    run = str(run_dir)
    sections = [section.model_dump(mode="json") for section in (cfg.model, options)]
    made_from = json.dumps([run, cfg.digest(), *sections])
    version = hashlib.sha256(made_from.encode()).hexdigest()[:16]
    rounds: dict[str, Any] = {"user_config": {"round": round_id}}
    models = []
    if options.verifier_replicas:
        verifier = _deployment(
            Verifier,
            options,
            version,
            num_gpus=options.num_gpus_per_verifier,
            num_replicas=options.verifier_replicas,
            **rounds,
        )
        models.append(verifier.bind(cfg, run))
    graph: Application = _deployment(
        Generator if options.ingress_replicas else Whole,
        options,
        version,
        name=GENERATOR,
        num_gpus=options.num_gpus_per_replica,
        **_replicas(options),
        **rounds,
    ).bind(cfg, run, *models)
    if options.ingress_replicas:
        ingress = _deployment(Ingress, options, version, num_replicas=options.ingress_replicas)
        graph = ingress.bind(cfg, graph)
    return graph


class AppArgs(BaseModel):
    """Arguments of `app` in a Serve config file."""

    model_config = ConfigDict(extra="forbid")

    run: ConfigPlace
    """Run folder, absolute or relative to the folder in which Ray was started."""
    round: int | None = None
    """Number of the round; None = the last promoted one."""
    overrides: list[str] = []
    """Overrides of the config, e.g. ``serve.num_replicas=2``."""


def app(args: AppArgs) -> Application:
    """The service of a finished run, for ``serve deploy``.

    Raises:
        UserError: no such run, or nothing in it was promoted.
    """
    folder = RunFolder(args.run.expanduser().resolve())
    cfg = with_overrides(folder.config(), args.overrides)
    rounds = list(promoted_rounds(folder))
    if not rounds:
        raise UserError(f"{folder.root} has no promoted round to serve; run dynamics bootstrap")
    return build(cfg, folder.root, rounds[-1] if args.round is None else args.round)


def _deployment(
    kind: Any,
    options: ServeConfig,
    version: str,
    *,
    name: str | None = None,
    num_gpus: float = 0.0,
    **more: Any,
) -> Any:
    """A deployment with the bounds and checks that all of ours share."""
    made = serve.deployment(
        name=name or kind.__name__,
        max_ongoing_requests=_OPEN,
        max_queued_requests=_OPEN,
        backpressure_config=BackpressureConfig(status_code=503, retry_after_s=RETRY_AFTER_S),
        ray_actor_options={"num_cpus": options.num_cpus_per_replica, "num_gpus": num_gpus},
        health_check_period_s=1,
        health_check_timeout_s=60,
        graceful_shutdown_timeout_s=10,
        max_constructor_retry_count=3,
        logging_config=LoggingConfig(enable_access_log=False),
        **more,
    )(kind)
    # Only config files may set a version in public; `serve.run` draws a random one each time.
    return made.options(version=version, _internal=True)


def _replicas(options: ServeConfig) -> dict[str, Any]:
    if options.max_replicas is None:
        return {"num_replicas": options.num_replicas}
    return {
        "autoscaling_config": {
            "min_replicas": options.num_replicas,
            "max_replicas": options.max_replicas,
            # Two full batches of best-of-N: more would wait for a whole batch's time.
            "target_ongoing_requests": max(1, 2 * options.batch_rows // options.num_samples),
        }
    }
