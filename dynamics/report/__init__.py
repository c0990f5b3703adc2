"""What people look at: sample grids, one HTML page a run, the closing table."""
