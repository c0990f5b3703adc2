"""Worker processes for hours of fits: no thread too many, and none outlives who asked for them."""

import multiprocessing
import os
import threading
from concurrent.futures import ProcessPoolExecutor

import torch


def worker_pool(num_workers: int, num_threads: int) -> ProcessPoolExecutor:
    """Processes of ``num_threads`` torch threads each, which end when this process does.

    An executor's own workers go on with what they have when theirs is killed, and then wait for
    ever.
    """
    # Spawned, not forked: a fork of a process that has used torch's threads can deadlock.
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(num_workers, context, _begin, (num_threads,))


def _begin(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
