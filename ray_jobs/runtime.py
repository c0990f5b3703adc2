"""Start, join and stop Ray; only this module reads the environment for it."""

import logging
import os
import secrets
import shlex
import shutil
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator
from contextlib import chdir, contextmanager
from pathlib import Path
from typing import Any

from dynamics.core.config import CLUSTER_ROOT, PACKAGE_ROOT, ClusterConfig
from dynamics.core.errors import UserError, as_user_error
from dynamics.core.loopback import spare_loopback
from dynamics.core.places import Place, StorePath, as_place

_ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",  # actors, not threads, share the cores
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",  # else the C++ core writes to the terminal
    "RAY_SERVE_LOG_TO_STDERR": "0",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # every report() waits for this poll
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",  # the console shows its own
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` rebuilds the environment per worker
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",  # the default keeps a dead server waiting for minutes
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "HF_HUB_OFFLINE": "1",  # nothing is downloaded without being asked for
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
}


_CLUSTERS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"
"""Where this is 0, on Linux too, Ray's address is 127.0.0.1, and it listens nowhere else."""
_FOLDER_PREFIX = "ray-dynamics-"
_local_folders: list[str] = []


def prepare_environment() -> None:
    """Set variables that Ray, MLflow and torch read at import; the user's own win."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    spare_loopback()
    if not joins_cluster():
        os.environ[_CLUSTERS] = "0"
    warnings.filterwarnings("ignore", category=FutureWarning, module="transformers")


def command(name: str, *arguments: str) -> str:
    """A command of this environment, ready to paste."""
    program = Path(sys.executable).parent / name
    shown = program.relative_to(Path.cwd()) if program.is_relative_to(Path.cwd()) else program
    return shlex.join([str(shown), *arguments])


def joins_cluster() -> bool:
    """True when Ray is joined (a Ray job sets ``RAY_ADDRESS``), not started here."""
    return bool(os.environ.get("RAY_ADDRESS"))


def ray_is_up() -> bool:
    """True when this process is connected to a Ray already."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def in_job_copy() -> bool:
    """True when this driver runs in the copy that ``ray job submit --working-dir`` made."""
    return any(part.startswith("_ray_pkg_") for part in Path.cwd().parts)


def resolve_run_dir(run_dir: Place) -> Place:
    """The absolute run folder.

    A relative one counts from the current folder. A job's copy of the working directory is
    temporary, so there it counts from ``$DYNAMICS_HOME`` (default ``~/dynamics-runs``), where a
    second submission finds the run and resumes it.

    Raises:
        UserError: ``$DYNAMICS_HOME`` is an address that is no place.
    """
    if isinstance(run_dir, StorePath):
        return run_dir
    home = as_place(os.environ.get("DYNAMICS_HOME", "~/dynamics-runs")).expanduser()
    start = home if in_job_copy() else Path.cwd()
    if isinstance(start, StorePath):
        return start / run_dir
    return Path(os.path.abspath(start / run_dir.expanduser()))


@contextmanager
def on_ray(cluster: ClusterConfig) -> Iterator[None]:
    """Run the body with Ray up; a worker's `UserError` is raised as one."""
    ensure_ray(cluster)
    try:
        yield
    except Exception as error:
        found = user_error(error)
        if found is None or found is error:
            raise
        # Ray Data appends lines about its retries to the error's own.
        raise UserError(str(found).partition("\n")[0]) from error


def ensure_ray(cluster: ClusterConfig) -> None:
    """Join the cluster of ``RAY_ADDRESS``, or start a local one; nothing when Ray is up already."""
    import ray

    if ray.is_initialized():
        return
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    on_sigterm = signal.getsignal(signal.SIGTERM)
    if joins_cluster():
        options["runtime_env"] = _shipped_code()
    else:
        # Workers of a local Ray inherit this process' environment; the code may not be installed.
        os.environ["PYTHONPATH"] = _python_path()
        # This machine is never preempted, and the watcher costs a process per fit.
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")  # nobody scrapes it
        # Idle processes that stay for the next stream; else those of free CPUs only.
        os.environ.setdefault("RAY_num_workers_soft_limit", str(cluster.num_cpus or os.cpu_count()))
        # Serve's proxy takes middlewares only so, when Ray starts.
        os.environ.setdefault(
            "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH",
            "dynamics.serving.http.proxy_limit.middlewares",
        )
        # A token of this Ray alone; else Ray leaves one in the home folder, for all to read.
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        # An own folder: Unix sockets need a short path, and it is removed at the end. Nobody else
        # may enter it, since Ray opens the one below to everybody.
        _remove_orphaned_folders()
        folder = tempfile.mkdtemp(prefix=f"{_FOLDER_PREFIX}{os.getpid()}-", dir="/tmp")
        _local_folders.append(folder)
        options |= {
            "address": "local",
            "num_cpus": cluster.num_cpus,
            "object_store_memory": cluster.object_store_mb * 2**20,
            "include_dashboard": False,
            "_temp_dir": f"{folder}/s",
        }
    # Workers import from the folder in which Ray was started, before all others: a torch.py of the
    # user's would be taken for torch. Paths for workers are absolute.
    with chdir(CLUSTER_ROOT), _its_level_unsaid():
        ray.init(**options)
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray's own answer is a dump of its stack
    _quiet()


def stop_ray() -> None:
    """Leave the cluster, or stop the local one and remove its files; nothing when none is up."""
    if ray_is_up():
        sys.modules["ray"].shutdown()
    while _local_folders:
        shutil.rmtree(_local_folders.pop(), ignore_errors=True)


def _remove_orphaned_folders() -> None:
    """Remove files of killed drivers: Ray dies with its driver, its files stay."""
    for folder in Path("/tmp").glob(f"{_FOLDER_PREFIX}*"):
        owner = folder.name.removeprefix(_FOLDER_PREFIX).partition("-")[0]
        if folder.stat().st_uid == os.getuid() and owner.isdigit() and not _lives(int(owner)):
            shutil.rmtree(folder, ignore_errors=True)


def _lives(process: int) -> bool:
    try:
        os.kill(process, 0)  # signal 0 only checks
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


@contextmanager
def _its_level_unsaid() -> Iterator[None]:
    """Keep a line off stderr: Ray's C++ core says what ``RAY_BACKEND_LOG_LEVEL`` is, at any level.

    All else that is written to stderr meanwhile is written when the body has ended.
    """
    sys.stderr.flush()
    stderr = os.dup(2)
    with tempfile.TemporaryFile() as said:
        os.dup2(said.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            said.seek(0)
            for line in said:
                if b"variable RAY_BACKEND_LOG_LEVEL" not in line:
                    os.write(2, line)


def _quiet() -> None:
    from ray.data import DataContext

    context = DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.raise_original_map_exception = True  # else a worker's UserError arrives as text
    for name in ("ray.serve", "ray.train"):
        logging.getLogger(name).setLevel(logging.ERROR)
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)  # what it logs, it raises as well


def user_error(error: BaseException | None) -> UserError | None:
    """The `UserError`, or what the system refused, that lies behind Ray's wrappers, if any."""
    seen: list[BaseException] = []
    queue = [error]
    while queue:
        current = queue.pop()
        # Ray's wrapper of a UserError is a UserError, too, but its text is a traceback.
        if isinstance(current, UserError) and not hasattr(current, "cause"):
            return current
        if current is None or current in seen:
            continue
        seen.append(current)
        inner = getattr(current, "worker_failures", None) or {}
        queue += [current.__cause__, getattr(current, "cause", None), *inner.values()]
    refused = (as_user_error(one) for one in seen if not hasattr(one, "cause"))
    return next(filter(None, refused), None)


def _shipped_code() -> dict[str, Any]:
    """Environment of a joined cluster's workers; a job's working directory holds the code."""
    if in_job_copy():
        return {"env_vars": _ENVIRONMENT}
    packages = [str(PACKAGE_ROOT), str(Path(__file__).resolve().parent)]
    return {"env_vars": _ENVIRONMENT, "py_modules": packages}


def _python_path() -> str:
    inherited = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    return os.pathsep.join([str(CLUSTER_ROOT), *map(os.path.abspath, inherited)])
