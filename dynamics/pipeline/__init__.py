"""The stages of the loop, wired once; an executor says where they run."""
