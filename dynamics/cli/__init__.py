"""The ``dynamics`` command: one file per command."""
