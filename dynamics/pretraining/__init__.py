"""Bases that are trained here: a small Chameleon network that learns to look at frames.

A base is made from a corpus (`dynamics.pretraining.make.Corpus`). To add one for a domain: a class
made from the config, the work folder and a progress callback, and one line in CORPORA.
"""

CORPORA: dict[str, str] = {"tabletop": "dynamics.tabletop.pretraining.corpus:TabletopCorpus"}
"""Name of a domain that makes its own pictures to class, as import strings; all others learn from
the run's clips (`dynamics.pretraining.own_clips`)."""
