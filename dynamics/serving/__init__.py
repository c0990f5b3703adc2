"""The generator as a service: its messages, its engine, and what guards both. No HTTP here."""
