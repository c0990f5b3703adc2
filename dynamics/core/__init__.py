"""Types, settings and errors that everything else is written in."""
