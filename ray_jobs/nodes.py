"""``python -m ray_jobs.nodes ADDRESS``: the nodes of a live Ray as JSON, the head first."""

import json
import logging
import sys
from collections.abc import Sequence

from dynamics.core.errors import UserError
from ray_jobs import runtime


def main(arguments: Sequence[str]) -> int:
    """Print each live node's resources; an address that does not answer is one line."""
    runtime.prepare_environment()
    import ray

    try:
        ray.init(address=arguments[0], log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"no Ray answers at {arguments[0]}: {reason}") from error
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]  # type: ignore[no-untyped-call]
    nodes.sort(key=lambda resources: "node:__internal_head__" not in resources)
    sys.stdout.write(json.dumps(nodes) + "\n")
    ray.shutdown()
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(2)
