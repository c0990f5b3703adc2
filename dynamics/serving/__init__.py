"""The generator as a service: messages, batches, models and sessions, and the HTTP layer."""
