"""A typed client of the service, and the service as a Gymnasium environment."""

from dynamics.client.client import (
    Chosen,
    Client,
    End,
    Prediction,
    RefusedError,
    Rollout,
    Scene,
    Step,
    encode_image,
    open_image,
)

__all__ = [
    "Chosen",
    "Client",
    "End",
    "Prediction",
    "RefusedError",
    "Rollout",
    "Scene",
    "Step",
    "encode_image",
    "open_image",
]
