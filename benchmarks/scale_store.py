"""A store that fails: a whole run on it, and many writers of the same files."""

import os
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from unittest.mock import patch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from dynamics.core.places import Place, StorePath
from dynamics.storage.files import create_bytes
from tests.faults import FaultyProxy, faulty_proxy
from tests.stores import BUCKET, s3_server, store_environment

WRITERS, FILES = 8, 50


@contextmanager
def faulty_store() -> Iterator[FaultyProxy]:
    """An S3 server with faults, which this process and those it starts use."""
    with (
        s3_server() as url,
        faulty_proxy(url) as proxy,
        patch.dict(os.environ, store_environment(proxy.url)),
    ):
        yield proxy


def write_all(folder: str, writer: int) -> list[bool]:
    """Try to create every file; True where this writer did."""
    return [
        create_bytes(StorePath(folder) / f"{number:02d}", f"by {writer}".encode())
        for number in range(FILES)
    ]


def winners() -> list[list[int]]:
    """Of every file the writers that were told that they made it, and the one that it names."""
    folder = f"s3://{BUCKET}/race"
    # Not forked: the client of a store does not survive that.
    with ProcessPoolExecutor(WRITERS, mp_context=get_context("spawn")) as pool:
        told = list(pool.map(write_all, [folder] * WRITERS, range(WRITERS)))
    found = []
    for number in range(FILES):
        by = (StorePath(folder) / f"{number:02d}").read_text()
        found.append([writer for writer in range(WRITERS) if told[writer][number]])
        assert [f"by {writer}" for writer in found[-1]] == [by], (found[-1], by)
    return found


def run_dir(name: str) -> Place:
    """A run folder on the store."""
    return StorePath(f"s3://{BUCKET}/{name}")
