"""Errors that become a status of their own; imported by the proxy, which holds no model."""

from dynamics.core.errors import UserError


class NotReadyError(UserError):
    """No round is promoted yet: status 503."""
