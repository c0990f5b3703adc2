"""The core of the system: worlds, video ingest, models, labelling, training, evaluation.

Nothing in this package imports ray, mlflow or deepspeed; a lint rule keeps it so.
"""
