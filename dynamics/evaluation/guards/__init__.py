"""Guards: checks that keep a bad round from being promoted."""
