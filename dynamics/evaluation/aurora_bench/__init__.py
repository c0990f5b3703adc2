"""AURORA-BENCH: reading it, answering it, scoring the answers beside a plain copy."""
