"""The paper's claims, measured on a world with truth against fair controls: ``dynamics study``."""
