"""``dynamics plan``: needs of a run before it starts."""

import json
import math
import subprocess
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from dynamics.cli.shared import TABLETOP, Config, Set, console, on_cluster
from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load
from dynamics.core.console import print_whole
from dynamics.core.errors import UserError

if TYPE_CHECKING:
    from dynamics.plan.cluster import Cluster
    from dynamics.plan.hours import Speed

_ASSUMED = "p5.4xlarge"


def plan(
    config: Config = TABLETOP,
    overrides: Set = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A cluster YAML of Ray, the address of a live Ray (host:6379, auto), or machines "
            "(4xp5.4xlarge). Default: this machine, or as many H100s as the config asks for."
        ),
    ] = None,
    tflops: Annotated[
        float | None,
        typer.Option(
            help="Speed of a card (or core) in large matrix products, 10^12 operations a second. "
            "Default: the card's data sheet; a core is measured."
        ),
    ] = None,
    utilisation: Annotated[
        float | None,
        typer.Option(help="Share of it that the run reaches.", min=0.01, max=1.0),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
) -> None:
    """Say what a run needs before it starts, and whether the machines have it; loads no weight.

    Status 1 when something does not fit.
    """
    from dynamics.plan import make_plan
    from dynamics.plan.table import plan_table

    cfg = load(config, overrides or [])
    made = make_plan(cfg, *_machines(cfg, cluster, tflops, utilisation))
    if as_json:
        typer.echo(json.dumps(made.to_json(), indent=2))
    else:
        print_whole(console, plan_table(made))
    if made.lacking:
        raise typer.Exit(1)


def _machines(
    cfg: LoopConfig, named: str | None, tflops: float | None, utilisation: float | None
) -> "tuple[Cluster, Speed]":
    """The machines that are meant, and the speed of a card or core of theirs."""
    from dynamics.plan.cluster import read_cluster, this_machine
    from dynamics.plan.hours import card_speed, measured_core

    on_gpus = cfg.model.device == "cuda"
    if named is not None:
        cluster = read_cluster(named) or _live(named)
    else:
        cluster = this_machine()
        if on_gpus and not cluster.cards:
            train = 2 * cfg.train.num_workers * cfg.train.num_gpus_per_worker
            label = cfg.label.num_actors * cfg.label.num_gpus_per_actor
            assumed = read_cluster(f"{max(1, math.ceil(max(train, label)))}x{_ASSUMED}")
            assert assumed is not None
            cluster = assumed
    speed = card_speed(cluster.card) if on_gpus and cluster.card else measured_core()
    if tflops is not None:
        speed = replace(speed, tflops=tflops)
    return cluster, speed if utilisation is None else replace(speed, utilisation=utilisation)


def _live(address: str) -> "Cluster":
    """The cluster of a live Ray, which a process of its own asks: the core does not import Ray."""
    from dynamics.plan.cluster import live_cluster

    if ":" not in address and address != "auto":
        raise UserError(
            f"--cluster {address} is no file, no address (host:6379, auto) and no machine that is "
            "known; dynamics/assets/published/machines.yaml lists them"
        )
    command, environment = on_cluster("nodes", [address])
    try:
        asked = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, timeout=30
        )
    except subprocess.TimeoutExpired as error:
        raise UserError(f"no Ray answers at {address} within 30 seconds") from error
    if asked.returncode:
        raise UserError((asked.stderr.strip() or "Ray did not answer").splitlines()[-1])
    return live_cluster(address, json.loads(asked.stdout.splitlines()[-1]))
