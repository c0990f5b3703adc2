"""The stages of the loop, the executors that run their work, and trackers."""
