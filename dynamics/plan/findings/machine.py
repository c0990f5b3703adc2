"""GPU, memory and disk of this machine."""

from dynamics.core.errors import UserError
from dynamics.plan.checks import checks
from dynamics.plan.cluster import GIB, this_machine
from dynamics.plan.findings.finding import Evidence, Finding
from dynamics.plan.sizes import base_sizes


def machine(evidence: Evidence) -> Finding:
    """Does the run fit this machine?"""
    cfg, here = evidence.cfg, this_machine()
    node = here.nodes[0]
    ram = "unknown" if node.ram is None else f"{node.ram / GIB:.0f} GiB"
    gpu = "no GPU" if here.card is None else f"{here.cards} x {here.card.name}"
    try:
        short = [one for one in checks(cfg, base_sizes(cfg), here) if not one.fits]
    except UserError as error:
        return Finding(level="warn", found=str(error), remedy="dynamics doctor")
    has = f"{node.cpus} cores, {ram} of memory, {gpu}"
    if not short:
        return Finding(level="fine", found=f"it fits this machine: {has}")
    lacking = ", ".join(
        f"{one.what} needs {one.need / GIB:.1f} GiB of {(one.have or 0) / GIB:.1f}" for one in short
    )
    helps = dict.fromkeys(help for one in short for help in one.overrides or (one.advice,))
    return Finding(
        level="warn",
        found=f"it does not fit this machine ({has}): {lacking}",
        remedy=", ".join(helps) + ", or other machines (dynamics plan --cluster)",
    )
