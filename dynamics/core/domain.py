"""Domains: knowledge about the sentences, actions and frames of a run.

A domain may answer "unknown" ("" for a text, None for a state) to every question; what is unknown
is not measured. To add one: a class made from the config, and one line in DOMAINS.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol

from dynamics.core.errors import UserError
from dynamics.core.places import Place
from dynamics.core.progress import Progress
from dynamics.core.registry import imported

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from dynamics.core.config import KeyframeConfig, LoopConfig

Split = Literal["labelled", "pool", "heldout"]

DOMAINS: dict[str, str] = {
    "tabletop": "dynamics.tabletop.domain:Tabletop",
    "minigrid": "dynamics.worlds.minigrid.domain:Minigrid",
    "open_video": "dynamics.core.domain:OpenVideo",
}
"""Name to class, as import strings: this module imports nothing from above."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExampleScene:
    """A frame to begin with and sentences that can be carried out one after the other."""

    name: str
    frame: "NDArray[np.uint8]"
    """[H, W, 3], RGB."""
    actions: list[str]


class Simulator(Protocol):
    """Films the videos that a run is not given, and knows what they show."""

    def film(self, split: Split, num_pairs: int, out: Place, progress: Progress) -> None:
        """Film clips for ``num_pairs`` pairs into ``out/clips``; a finished split stays."""

    def keyframes(self, split: Split) -> "KeyframeConfig":
        """Settings that pick one frame of every state of a filmed clip."""

    def truth(self, pairs: "pa.Table", out: Place) -> "pa.Table":
        """TRUTH_SCHEMA of the pairs (PAIR_SCHEMA) of the split in ``out`` that span one action."""

    def picture(self, state: str) -> "NDArray[np.uint8]":
        """What a state looks like, [H, W, 3], RGB, of the proportions of a filmed frame."""

    def num_pixels(self, split: Split, num_pairs: int) -> int:
        """Pixels of all frames of the clips for ``num_pairs`` pairs: what disk space is for."""


class Domain(Protocol):
    """Knowledge about sentences, actions and frames. States are canonical texts."""

    @property
    def simulator(self) -> Simulator | None:
        """Films episodes; None = every video has to be given."""

    def meaning(self, sentence: str) -> str:
        """One text for all sentences of equal meaning; "" for a sentence without one."""

    def kind(self, sentence: str) -> str:
        """The type of the action, e.g. ``move``; "" = unknown."""

    def outcome(self, sentence: str, state: str) -> str | None:
        """The state after the sentence is carried out on a state; None = it leads to none."""

    def states(self, frames_BHW3: "NDArray[np.uint8]") -> list[str | None]:
        """The state that each generated frame comes closest to; None = unknown."""

    def recognised(self, frame_HW3: "NDArray[np.uint8]") -> str | None:
        """The state of a frame from anywhere; None where it does not show this domain."""

    def examples(self, data: Place) -> list[ExampleScene]:
        """Scenes that no clip in the run's data folder shows, always the same; may be empty."""


class OpenVideo:
    """Real video, about which nothing is known; a sentence means its own words."""

    simulator = None

    def __init__(self, cfg: "LoopConfig") -> None:
        """Take the config as every domain does; none of it is read."""

    def meaning(self, sentence: str) -> str:
        """The normalised words."""
        return normalised_text(sentence)

    def kind(self, sentence: str) -> str:
        """No kind is known."""
        return ""

    def outcome(self, sentence: str, state: str) -> str | None:
        """No outcome is known."""
        return None

    def states(self, frames_BHW3: "NDArray[np.uint8]") -> list[str | None]:
        """No state is known."""
        return [None] * len(frames_BHW3)

    def recognised(self, frame_HW3: "NDArray[np.uint8]") -> str | None:
        """No state is known."""
        return None

    def examples(self, data: Place) -> list[ExampleScene]:
        """No scene."""
        return []


def load_domain(cfg: "LoopConfig") -> Domain:
    """The domain of a run: the named one, else the tabletop where the labelled set is filmed.

    The labelled set decides, since the sentences of the IDM are in its language.
    """
    name = cfg.domain or ("tabletop" if cfg.labelled.dataset is None else "open_video")
    make: Callable[[LoopConfig], Domain] = imported(DOMAINS[name])
    return make(cfg)


def load_simulator(cfg: "LoopConfig") -> Simulator:
    """The simulator of a run's domain.

    Raises:
        UserError: the domain has none.
    """
    simulator = load_domain(cfg).simulator
    if simulator is None:
        raise UserError(
            f"domain {cfg.domain} films nothing; set pool.path, labelled.dataset and labelled.path"
        )
    return simulator


def same_action(domain: Domain, said: str, true: str) -> bool:
    """True when two sentences mean the same, or have no meaning and are equal."""
    return (domain.meaning(said) or said) == (domain.meaning(true) or true)


def normalised_text(sentence: str) -> str:
    """Canonical meaning where no parser exists: lower case, single spaces, no final full stop."""
    return " ".join(sentence.lower().split()).rstrip(".")
