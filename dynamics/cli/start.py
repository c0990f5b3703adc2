"""Entry point of the ``dynamics`` console command."""

from dynamics.core import interrupts


def main() -> None:
    """Load the commands and run one."""
    interrupts.begin()
    from dynamics.cli.main import main as run

    run()
