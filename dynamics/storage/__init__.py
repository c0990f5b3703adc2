"""Durable files: tables, shards, the ledger, the run folder."""
