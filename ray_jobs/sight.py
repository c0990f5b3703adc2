"""Sight: every node of a cluster must see the places that a run reads and writes."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from dynamics.core.config import LoopConfig
from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.storage.files import write_bytes
from dynamics.storage.streams import Item, Stream, Work

_WITNESS = ".seen-"


@dataclass(frozen=True, slots=True)
class Sight:
    """Places that a driver sees; picklable, so that any process can `check` them where it runs.

    Args:
        run_dir: folder that all nodes share.
        witness: file in it, made for this driver alone: an older copy of the folder has none.
        inputs: further places, with the names of their settings.
    """

    run_dir: Place
    witness: Place
    inputs: Sequence[tuple[str, Place]]

    def check(self) -> None:
        """Refuse to work on a node that does not see a place.

        Raises:
            UserError: names node, place and way out.
        """
        node = f"node {ray.util.get_node_ip_address()}"  # type: ignore[no-untyped-call]
        try:
            seen = [("run_dir", self.run_dir, self.witness.exists())]
            seen += [(name, place, place.exists()) for name, place in self.inputs]
        except UserError as error:  # a store that does not let this node in
            raise UserError(f"{node}: {error}") from error
        for name, place, is_seen in seen:
            if not is_seen:
                raise UserError(
                    f"{node} does not see {name} {place}; mount it there under the same path, "
                    "or name a store that all nodes reach (s3://...)"
                )

    def checked(self, stream: Stream[Item]) -> Stream[Item]:
        """The stream, whose every process checks first."""
        return replace(
            stream,
            read=partial(_read, self, stream.read),
            make_worker=partial(_make_worker, self, stream.make_worker),
        )

    def check_all_nodes(self) -> None:
        """Check on every node that is up now.

        Raises:
            UserError: as `check`.
        """
        known = ray.nodes()  # type: ignore[no-untyped-call]
        nodes = [node["NodeID"] for node in known if node["Alive"]]
        if len(nodes) > 1:
            check = ray.remote(num_cpus=0)(Sight.check)
            # A node that dies meanwhile needs no check: its task may run elsewhere.
            places = [NodeAffinitySchedulingStrategy(node, soft=True) for node in nodes]
            ray.get([check.options(scheduling_strategy=place).remote(self) for place in places])


def sight_of(cfg: LoopConfig, run_dir: Place) -> Sight:
    """The places of a run."""
    inputs = [("pool.path", part.path) for part in cfg.pool.parts]
    labelled = cfg.labelled
    inputs += [
        (name, path)
        for name, path in (
            ("labelled.path", labelled.path),
            ("labelled.heldout_path", labelled.heldout_path),
            ("model.base", cfg.base_path()),
        )
        if path is not None
    ]
    return make_sight(run_dir, inputs)


def make_sight(run_dir: Place, inputs: Sequence[tuple[str, Place]]) -> Sight:
    """Leave a new witness in the folder, in place of those of earlier drivers."""
    for old in run_dir.glob(f"{_WITNESS}*"):
        old.unlink(missing_ok=True)
    witness = run_dir / f"{_WITNESS}{secrets.token_hex(8)}"
    write_bytes(witness, b"")
    return Sight(run_dir, witness, inputs)


def _read(sight: Sight, read: Callable[[Item], pa.Table], item: Item) -> pa.Table:
    sight.check()
    return read(item)


def _make_worker(sight: Sight, make_worker: Callable[[], Work[Item]]) -> Work[Item]:
    sight.check()
    return make_worker()
