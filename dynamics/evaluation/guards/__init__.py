"""What keeps a bad round from being promoted."""
