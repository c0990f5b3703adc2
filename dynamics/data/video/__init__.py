"""Videos to frame pairs: encode, sandboxed decode, key frames, sources, ingest."""
