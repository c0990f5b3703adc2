"""Orchestration: Ray (Data, Train, Serve), MLflow and the command."""
