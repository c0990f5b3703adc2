"""The paper's claims, measured on the tabletop against fair controls: ``dynamics study``."""
