"""A vision model that judges edits: the paper's two scores, over any chat endpoint."""
