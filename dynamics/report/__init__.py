"""Results for people: sample grids, one HTML page a run, the closing table."""
