"""The command: run, or resume, the bootstrap loop.

    python ray_jobs/bootstrap.py --rounds 3
    ray job submit --working-dir . -- python ray_jobs/bootstrap.py --rounds 3

Exit status: 0 done, 2 bad input or environment (one line on stderr), 3 the run folder is in use,
4 a guard blocks a round (one line a guard on stderr), 5 the data would make the run meaningless
(one line a finding on stderr), 130 interrupted, by Ctrl-C or SIGTERM (the same command resumes).
"""

import argparse
import logging
import re
import signal
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

_HERE = Path(__file__).resolve().parent
# A script imports from the checkout, not from this folder.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _HERE]
sys.path.insert(0, str(_HERE.parent))

from dynamics.core import interrupts

if __name__ == "__main__":
    interrupts.begin()

from dynamics.core.config import (
    CONFIGS,
    INSTALLED,
    PACKAGE_ROOT,
    LoopConfig,
    ModelConfig,
    PoolConfig,
)
from dynamics.core.config_file import load
from dynamics.core.console import ProgressView, json_line, print_whole
from dynamics.core.errors import UserError, as_user_error
from dynamics.core.places import Place, StorePath
from dynamics.core.registry import unknown_name
from dynamics.storage.claim import RunFolderInUseError
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from ray_jobs import runtime
from ray_jobs.origin import origin
from ray_jobs.tracking import MlflowTracker

if TYPE_CHECKING:
    from dynamics.pipeline.stages import Stages

_LOG = logging.getLogger("ray_jobs")

# Lines of at most 60 columns: argparse shows both texts as they are.
_DESCRIPTION = """\
Bootstrap forward dynamics from inverse dynamics:
label, filter, train, evaluate and serve, round by round.
"""
_EPILOG = """\
examples:
  dynamics bootstrap
      the embedded default, 3 rounds
  dynamics bootstrap --rounds 5
      continue it to 5 rounds
  dynamics bootstrap --rounds 1 pool.path=clips
      label your own videos
  dynamics bootstrap --accept-guard type_skew
      go on from a round that this guard has blocked
  dynamics bootstrap --print-config train.batch_size=64
      see what a run would be made with

In a checkout, python ray_jobs/bootstrap.py is the same
command. The same command again resumes a run that was
interrupted, and does nothing when all is done. With
RAY_ADDRESS set (a Ray job sets it) the loop joins that
cluster, else it starts a local Ray.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Parse, run, and turn errors into an exit status."""
    interrupts.loaded()
    parsed, unknown = parser().parse_known_intermixed_args(arguments)
    if unknown:
        known = tuple(re.findall(r"\[(--[\w-]+)", parser().format_usage()))
        parser().error(f"option {unknown_name(unknown[0], known)}")
    # `ray job stop`, Slurm, Kubernetes and Docker end a driver by SIGTERM: for us, a Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    runtime.prepare_environment()
    _log_to_stderr(as_json=parsed.log == "json")
    try:
        return _run(parsed)
    except RunFolderInUseError as error:
        _LOG.error("error: %s", error)
        return 3
    except UnfitDataError as error:
        _LOG.error("%s", error)
        return 5
    except (KeyboardInterrupt, Exception) as error:
        if (line := as_user_error(error)) is None:
            if interrupts.is_interrupt(error):
                _LOG.error("interrupted; the same command resumes where it stopped")
                return 130
            raise
        _LOG.error("error: %s", line)
        return 2
    finally:
        runtime.stop_ray()


def _log_to_stderr(*, as_json: bool) -> None:
    """Send the lines of this folder's loggers to stderr, as they are or as JSON objects."""

    class Lines(logging.Formatter):
        def format(self, record: logging.LogRecord) -> str:
            text = record.getMessage()
            return json_line(record.levelname.lower(), text) if as_json else text

    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(Lines())
    _LOG.handlers = [handler]
    _LOG.propagate = False


def parser() -> argparse.ArgumentParser:
    """Parser of the command line."""
    made = argparse.ArgumentParser(
        prog="dynamics bootstrap",
        allow_abbrev=False,
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument(
        "overrides", nargs="*", metavar="key=value", help="e.g. filter.score=agreement"
    )
    made.add_argument("--config", metavar="FILE", help="default: configs/tabletop.yaml")
    made.add_argument("--rounds", metavar="N", help="rounds after round 0")
    made.add_argument("--run-dir", metavar="DIR", help="where everything is written")
    made.add_argument("--serve", action="store_true", help="keep the generator up until Ctrl-C")
    made.add_argument("--no-ray", action="store_true", help="run in this process, without Ray")
    made.add_argument(
        "--accept-guard",
        action="append",
        metavar="NAME",
        help="promote rounds that this guard blocks, and record it; may be repeated",
    )
    made.add_argument(
        "--anyway",
        action="store_true",
        help="start although dynamics check finds the data unfit, and record it in run.json",
    )
    made.add_argument(
        "--log", choices=["text", "json"], default="text", help="json: every line a JSON object"
    )
    made.add_argument("--print-config", action="store_true", help="print all settings, and stop")
    return made


def _run(parsed: argparse.Namespace) -> int:
    cfg = _config(parsed)
    if parsed.print_config:
        sys.stdout.write(_as_yaml(cfg))
        return 0
    if parsed.serve and parsed.no_ray:
        raise UserError("--serve needs Ray Serve; leave out --no-ray")
    from dynamics.data.moved import check_moved
    from dynamics.report.trackers import LineTracker

    folder = RunFolder(cfg.run_dir)
    moved = partial(check_moved, folder)
    with ProgressView(as_json=parsed.log == "json") as view, folder.claimed(cfg, moved):
        view.line(f"run folder {folder.root}")
        stages: Stages | None = None
        with MlflowTracker(cfg, folder, partial(view.line, level="warning")) as mlflow:
            if not _all_done(cfg, folder):
                write_json(folder.origin, origin(cfg))
                if cfg.serve.enabled and not parsed.no_ray:
                    _check_address(cfg)  # now, not after the last round
                stages = _stages(cfg, folder, view, mlflow, with_ray=not parsed.no_ray)
                if cfg.pool.parts and not folder.reports(0):
                    _check_data(cfg, folder, stages, view, anyway=parsed.anyway)
                _run_loop(cfg, folder, stages)
            else:
                reports = folder.reports(cfg.rounds)
                LineTracker(folder, view).log_run(reports)
                if reports[-1].promoted:
                    view.line(f"all {cfg.rounds} rounds are done; nothing to do")
        last = folder.reports(cfg.rounds)[-1]
        _summary(cfg, folder, view, mlflow.address)
        for result in last.blocked_by:
            _LOG.error("blocked: round %d: %s", last.round_id, result.message)
        if parsed.serve:
            _keep_serving(cfg, folder, view)
        elif stages is not None and (cfg.serve.enabled or cfg.serve.each_round):
            _check_service(cfg, folder, stages)
    return 0 if last.promoted else 4


def _config(parsed: argparse.Namespace) -> LoopConfig:
    """The resolved config with absolute paths, since workers run in other folders."""
    overrides = list(parsed.overrides)
    if parsed.rounds is not None:
        overrides.append(f"rounds={parsed.rounds}")
    if parsed.run_dir is not None:
        overrides.append(f"run_dir={parsed.run_dir}")
    if parsed.serve:
        overrides.append("serve.enabled=true")
    if parsed.accept_guard:
        overrides.append(f"guards.accept=[{', '.join(parsed.accept_guard)}]")
    path = parsed.config or CONFIGS / "tabletop.yaml"
    cfg = load(path, overrides)
    from dynamics.plan.pieces import pieces

    missing = [piece.line() for piece in pieces(cfg) if not piece.is_there]
    if len(missing) > 1:  # a single one gets a line of its own below
        raise UserError(f"{path}: {'; '.join(missing)}")
    paths = {key: getattr(cfg.labelled, key) for key in ("path", "heldout_path")}
    labelled = cfg.labelled.model_copy(
        update={key: _existing(path, key) for key, path in paths.items() if path is not None}
    )
    serving = cfg.serve
    if serving.api_key_file is not None:
        serving = serving.model_copy(update={"api_key_file": _absolute(serving.api_key_file)})
    pool, run_dir = cfg.pool, cfg.run_dir
    if pool.path is not None:
        pool = _found_pool(pool)
        given = {override.partition("=")[0] for override in overrides}
        if "pool.path" in given and "run_dir" not in given:
            # Other videos make another run, in a folder beside the config's own.
            run_dir = run_dir.with_name(f"{run_dir.name}-{pool.parts[0].name}")
    return cfg.model_copy(
        update={
            "run_dir": runtime.resolve_run_dir(run_dir),
            "model": _found_model(cfg),
            "pool": pool,
            "labelled": labelled,
            "serve": serving,
        }
    )


def _found_model(cfg: LoopConfig) -> ModelConfig:
    """The config with a base that workers find, who run in other folders."""
    base = cfg.base_path()
    if isinstance(base, StorePath) and not base.is_dir():
        raise UserError(f"checkpoint folder {base} does not exist; check model.base")
    beside_user = INSTALLED and not base.is_relative_to(PACKAGE_ROOT)
    return cfg.model.model_copy(update={"base": base} if beside_user else {})


def _found_pool(pool: PoolConfig) -> PoolConfig:
    """The config with absolute paths; refuse missing or empty folders before Ray starts."""
    from dynamics.data.video.sources import list_clips

    parts = [part.model_copy(update={"path": _absolute(part.path)}) for part in pool.parts]
    for part in parts:
        next(list_clips(part), None)
    return pool.model_copy(update={"path": parts[0].path, "more": tuple(parts[1:])})


def _existing(path: Place, key: str) -> Place:
    path = _absolute(path)
    if not path.exists():
        raise UserError(f"labelled data {path} does not exist; check labelled.{key}")
    return path


def _absolute(path: Place) -> Place:
    return path.expanduser().absolute()


def _all_done(cfg: LoopConfig, folder: RunFolder) -> bool:
    """True when the loop has nothing to do: its last round is done, or still blocked."""
    reports = folder.reports(cfg.rounds)
    if (
        not folder.done.exists()
        or not reports
        or read_json(folder.done)["rounds"] < reports[-1].round_id
    ):
        return False
    last = reports[-1]
    if last.promoted:
        return last.round_id == cfg.rounds
    return last == last.accepting(cfg.guards.accept)


def _stages(
    cfg: LoopConfig,
    folder: RunFolder,
    view: ProgressView,
    mlflow: MlflowTracker,
    *,
    with_ray: bool,
) -> "Stages":
    """Stages of a run with their executor and trackers, on a device that is there."""
    from dynamics.models import check_device
    from dynamics.pipeline.executor import LocalExecutor
    from dynamics.pipeline.stages import Stages
    from dynamics.pipeline.tracking import ToldToAll, Trackers
    from dynamics.report.trackers import GridTracker, LineTracker, PageTracker
    from ray_jobs.executor import RayExecutor
    from ray_jobs.gauges import RayGauges

    if not runtime.joins_cluster():
        check_device(cfg.model.device)
    executor = RayExecutor(cfg, folder) if with_ray else LocalExecutor(cfg, folder)
    grid, page = (one(folder, executor.images) for one in (GridTracker, PageTracker))
    watchers: list[MlflowTracker | RayGauges] = [mlflow]
    if with_ray:
        watchers.append(RayGauges(cfg.name, folder))
    return Stages(
        cfg,
        folder.root,
        executor=executor,
        trackers=Trackers([LineTracker(folder, view), grid, page, *watchers]),
        progress=ToldToAll([view, *watchers]),
    )


class UnfitDataError(Exception):
    """Data that would make a run meaningless; ``str`` has a line for each finding."""


def _check_data(
    cfg: LoopConfig, folder: RunFolder, stages: "Stages", view: ProgressView, *, anyway: bool
) -> None:
    """Say what is found about the data, and refuse what would make the run meaningless.

    A filmed labelled set over other videos is a look at the machinery: it is only told.
    """
    from dynamics.plan.findings import evidence_of, findings

    data = stages.prepare()
    found = findings(evidence_of(cfg, folder, data, stages.executor.images))
    bad = {name: one for name, one in found.items() if one.level == "refuse"}
    if cfg.labelled.dataset is None or anyway:
        write_json(folder.record, {**read_json(folder.record), "anyway": sorted(bad)})
        bad = {}
    for name, one in found.items():
        if one.level != "fine" and name not in bad:
            view.line(f"{name}: {one.found}; {one.remedy}", level="warning")
    if bad:
        lines = [f"refused: {name}: {one.found}; {one.remedy}" for name, one in bad.items()]
        way = f"mend it and delete {folder.root}, or start with --anyway"
        raise UnfitDataError("\n".join([*lines, way]))


def _run_loop(cfg: LoopConfig, folder: RunFolder, stages: "Stages") -> None:
    """Run every round and write done.json."""
    from dynamics.loop import run_rounds

    folder.done.unlink(missing_ok=True)  # of fewer rounds, or of a round that was blocked
    reports = run_rounds(cfg, stages)
    write_json(folder.done, {"rounds": reports[-1].round_id})


def _summary(cfg: LoopConfig, folder: RunFolder, view: ProgressView, address: str) -> None:
    """Print the table of rounds and the paths of the results."""
    from dynamics.report.table import round_table

    reports = folder.reports(cfg.rounds)
    if not view.as_json:  # programs have the rounds' own lines
        seconds = {r.round_id: sum(folder.timings(r.round_id).values()) for r in reports}
        print_whole(view.console, round_table(reports, seconds))
    view.line(f"report:    {folder.page}  (open it in a browser)")
    if server := cfg.track.server:
        page = f"{server.rstrip('/')}{address}" if server.startswith("http") else server
        view.line(f"MLflow:    {page}")
    else:
        database = f"sqlite:///{folder.mlflow}"
        mlflow = runtime.command("mlflow", "ui", "--backend-store-uri", database, "--port", "5000")
        view.line(f"MLflow:    {mlflow}")
        view.line(f"           then http://127.0.0.1:5000{address}")
    promoted = [report.round_id for report in reports if report.promoted]
    if promoted:
        command = runtime.command("dynamics", "serve", str(folder.root))
        view.line(f"generator: {command}  (round {promoted[-1]})")


def _check_service(cfg: LoopConfig, folder: RunFolder, stages: "Stages") -> None:
    """Have the last promoted round answer once.

    A service that nobody asked for ends with that, so that it holds no GPU of a joined cluster.
    """
    from ray_jobs.serving.serve import is_deployed, undeploy

    promoted = [report for report in folder.reports(cfg.rounds) if report.promoted]
    if promoted and (found := stages.finished(promoted[-1].round_id)):
        leave = not runtime.joins_cluster() or cfg.serve.each_round or is_deployed(cfg)
        models, report = found
        stages.serve(models, report.round_id)
        if not leave and is_deployed(cfg):
            undeploy(cfg)


def _keep_serving(cfg: LoopConfig, folder: RunFolder, view: ProgressView) -> None:
    from ray_jobs.serving.serve import serve_run, undeploy, wait_for_interrupt

    _check_address(cfg)
    view(0, 0, "serve")
    where = serve_run(cfg, folder)
    view.clear()
    view.line(f"serving until Ctrl-C: {where}")
    wait_for_interrupt()
    undeploy(cfg)


def _check_address(cfg: LoopConfig) -> None:
    """Refuse a taken port where the service will start on this machine."""
    from dynamics.serving.http.server import check_address

    if not runtime.ray_is_up() and not runtime.joins_cluster():
        check_address(cfg.serve)


def _as_yaml(cfg: LoopConfig) -> str:
    import yaml

    return str(yaml.safe_dump(cfg.model_dump(mode="json"), sort_keys=False))


if __name__ == "__main__":
    sys.exit(main())
