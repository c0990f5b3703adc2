"""A run behind HTTP in this process: the same application and models as on Ray, without Ray."""

import asyncio
import logging
from contextlib import suppress

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.records import ModelRef
from dynamics.inference.load import load_pair
from dynamics.serving.http.app import PAGE, make_app
from dynamics.serving.http.auth import read_key
from dynamics.serving.http.server import check_address, make_server, url_of
from dynamics.serving.model_registry import ModelRegistry, promoted_rounds
from dynamics.serving.model_worker import ModelWorker, for_clients
from dynamics.serving.service import RoundService
from dynamics.storage.run_folder import RunFolder


def local_service(cfg: LoopConfig, folder: RunFolder) -> RoundService:
    """The service of a run with its models in this process, no round promoted yet."""
    model = for_clients(cfg.model)

    def load(round_id: int, models: ModelRef) -> ModelWorker:
        return ModelWorker(round_id, *load_pair(models, model), cfg.label.max_action_tokens)

    return RoundService(cfg, ModelRegistry(cfg, folder, load))


def serve_in_process(cfg: LoopConfig, folder: RunFolder) -> None:
    """Answer with the last promoted round until the process is interrupted.

    Raises:
        UserError: no round is promoted or can be loaded, or the address cannot be bound.
    """
    rounds = list(promoted_rounds(folder))
    if not rounds:
        raise UserError(f"{folder.root} has no promoted round to serve; run dynamics bootstrap")
    check_address(cfg.serve)
    # What it says of refused rounds is in the line that this command prints.
    logging.getLogger(RoundService.__module__).setLevel(logging.CRITICAL)
    with suppress(KeyboardInterrupt):  # Ctrl-C is how it ends
        asyncio.run(_serve(cfg, folder, rounds[-1]))


async def _serve(cfg: LoopConfig, folder: RunFolder, round_id: int) -> None:
    options = cfg.serve
    service = local_service(cfg, folder)
    await service.promote(round_id)
    status = await service.status()
    if status.promoted is None:
        raise UserError(f"nothing of {folder.root} can be served: {status.refused}")
    refused = f"{status.refused}; " if status.refused else ""
    print(f"{refused}round {status.promoted} answers at {url_of(options)}/", flush=True)  # noqa: T201  the command's result
    app = make_app(service, options, PAGE, read_key(options))
    await make_server(app, options.host, options.port).serve()
