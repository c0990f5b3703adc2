"""The one exception that a person at the terminal is meant to read."""


class UserError(Exception):
    """Bad input or environment: one line that names the thing and the way out.

    Commands print it without a traceback and exit with status 2.
    """
