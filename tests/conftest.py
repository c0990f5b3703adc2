from collections.abc import Iterator

import pytest

from dynamics.config import ClusterConfig
from ray_jobs import runtime

runtime.prepare_environment()


@pytest.fixture(scope="session")
def local_ray() -> Iterator[None]:
    """The one Ray of the whole session: starting it costs seconds."""
    runtime.ensure_ray(ClusterConfig())
    yield
    runtime.stop_ray()
