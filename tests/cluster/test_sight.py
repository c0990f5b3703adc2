"""Nodes that do not see what the driver sees."""

import sys
from pathlib import Path

import pyarrow as pa
import pytest

from dynamics.core.config import ClusterConfig, LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.places import StorePath
from dynamics.core.progress import silent
from dynamics.storage.streams import Done, Stream
from ray_jobs import runtime
from tests.nodes import nodes, why_no_nodes
from tests.stores import BUCKET, at_store, s3_server

pytestmark = pytest.mark.cluster


class Worker:
    def run(self, item: int, rows: pa.Table) -> Done:
        return Done(count=1)


def read(item: int) -> pa.Table:
    return pa.table({"item": [item]})


@pytest.mark.usefixtures("local_ray")
def test_a_worker_on_a_node_that_joined_later_says_what_it_does_not_see(tmp_path: Path) -> None:
    from ray_jobs.sight import make_sight
    from ray_jobs.streams import run_stream_on_ray

    sight = make_sight(tmp_path, [("pool.path", tmp_path / "videos")])
    (tmp_path / "videos").mkdir()

    def run() -> None:
        stream = Stream(what="x", items=[0], total=1, read=read, make_worker=Worker)
        with runtime.on_ray(ClusterConfig()):
            list(run_stream_on_ray(sight.checked(stream), silent, num_actors=1, num_gpus=0))

    run()
    (tmp_path / "videos").rmdir()
    not_seen = r"^node \S+ does not see {}; mount it there [^\n]*$"
    with pytest.raises(UserError, match=not_seen.format(f"pool.path {tmp_path}/videos")):
        run()
    make_sight(tmp_path, ())  # another driver's; what is left is like a copy of the folder
    with pytest.raises(UserError, match=not_seen.format(f"run_dir {tmp_path}")):
        run()


def test_a_node_that_a_store_does_not_answer_is_named() -> None:
    from ray_jobs.sight import make_sight

    with s3_server() as url, at_store(url):
        sight = make_sight(StorePath(f"s3://{BUCKET}/run"), ())
        sight.check()
    with (
        at_store("http://127.0.0.1:9"),
        pytest.raises(UserError, match=rf"^node \S+: s3://{BUCKET}/run/\S+ cannot be used [^\n]*$"),
    ):
        sight.check()


@pytest.mark.skipif(bool(why_no_nodes()), reason=f"no namespaces: {why_no_nodes()}")
def test_a_run_folder_that_one_node_does_not_see_costs_one_line(
    small: LoopConfig, tmp_path: Path
) -> None:
    with nodes(hidden=[tmp_path]) as cluster:
        cluster.add(num_cpus=2)
        cluster.add(num_cpus=2)
        run_dir = cluster.home / "run"
        options = f"--config tests/test-3x3.yaml --run-dir {run_dir} model.base={small.model.base}"
        done = cluster.head.run([sys.executable, "ray_jobs/bootstrap.py", *options.split()])
    assert done.returncode == 2, done.stderr
    assert [line for line in done.stderr.splitlines() if "logging.cc" not in line] == [
        f"error: node 127.0.0.3 does not see run_dir {run_dir}; mount it there under the same "
        "path, or name a store that all nodes reach (s3://...)"
    ]
