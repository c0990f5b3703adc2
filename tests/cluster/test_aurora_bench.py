"""AURORA-BENCH over an actor pool on a real Ray."""

from pathlib import Path

import pytest

from dynamics.core.progress import silent
from dynamics.evaluation.aurora_bench.answer import Decode
from dynamics.evaluation.aurora_bench.benchmark import Benchmark, measure
from dynamics.evaluation.aurora_bench.contestant import contestant
from dynamics.evaluation.aurora_bench.dataset import read_benchmark
from dynamics.evaluation.aurora_bench.encoders import EncoderFolders
from ray_jobs.aurora_bench import actor_pool
from tests.bench import write_bench

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("local_ray")]


def parts(out: Path) -> dict[str, bytes]:
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*.parquet")}


def test_actors_write_the_parts_that_one_process_writes(tmp_path):
    data = read_benchmark(write_bench(tmp_path / "bench", copies=3))
    local, ray = (
        Benchmark(
            contestant=contestant("tiny", round_id=None, family="chameleon", device="cpu"),
            decode=Decode(),
            data=data,
            out=tmp_path / name,
        )
        for name in ("local", "ray")
    )
    measure(local, EncoderFolders(), silent)
    made = measure(ray, EncoderFolders(), silent, actor_pool(2))
    assert made.num_made > 0
    assert parts(ray.out) == parts(local.out)
