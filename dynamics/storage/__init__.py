"""Files that survive: tables, shards, the ledger, the run folder."""
