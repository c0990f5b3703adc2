"""Videos and labelled sets, read into frame pairs."""
