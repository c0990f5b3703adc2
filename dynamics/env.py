"""Registers the Gymnasium environment: ``import gymnasium, dynamics.env``."""

from dynamics.client.gym_env import RolloutEnv

__all__ = ["RolloutEnv"]
