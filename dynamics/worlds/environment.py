"""Gymnasium environments by their id, and who acts in them."""

import importlib.util
import io
import os
from collections.abc import Iterator
from contextlib import redirect_stdout
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from dynamics.core.errors import UserError
from dynamics.core.registry import imported

if TYPE_CHECKING:
    import gymnasium

_MODULES = {"MiniGrid": "minigrid", "BabyAI": "minigrid"}
"""Beginning of an id to the package that registers it: their ids name none."""

ACTORS: dict[str, str] = {
    "minigrid": "dynamics.worlds.minigrid.actor:Walker",
    "gym_pusht": "dynamics.worlds.pusht:Pusher",
}
"""Package of an environment to the actor that knows it; any other gets a `Wanderer`."""

_KEPT = 0.5
"""Chance that a random action is carried out once more: random walks otherwise stay on the spot."""
_STILL = 0.1
"""Continuous actions below this share of their range hold still."""


class Actor(Protocol):
    """Chooses actions in an environment and says what they did. A look is all that it compares."""

    repeat: int
    """Moments that an action is carried out for, if nobody says otherwise."""
    goes_on: bool
    """True where the world goes on after its task is done: what is done last would else be rare."""

    def act(self, rng: np.random.Generator) -> Any:
        """The next action."""

    def look(self) -> Any:
        """What a sentence is derived from, before and after an action."""

    def frame(self) -> NDArray[np.uint8]:
        """The picture of the moment, [H, W, 3]."""

    def state(self, look: Any) -> str:
        """Canonical text of what the picture shows; "" where nothing is known."""

    def say(self, action: Any, before: Any, after: Any) -> str:
        """The sentence of an action that changed the picture; "" where there is none."""


def open_env(env_id: str, words: str | None = None) -> "tuple[gymnasium.Env[Any, Any], Actor]":
    """An environment that draws itself, and its actor.

    Args:
        env_id: as gymnasium has it, also ``module:ID``.
        words: names of actions, see `Wanderer`.

    Raises:
        UserError: a missing package, an unknown id, or an environment that cannot be filmed.
    """
    os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")
    try:
        import gymnasium
    except ImportError as error:
        raise UserError(
            f"{env_id} needs gymnasium: pip install 'dynamics-bootstrap[worlds]'"
        ) from error
    module, _, name = env_id.rpartition(":")
    module = module or _MODULES.get(name.partition("-")[0], "") or _namespace(name)
    if module:
        need_package(module, env_id)
    try:
        if module:
            importlib.import_module(module)  # registers its ids
        spec = gymnasium.spec(name)
        path = ACTORS.get(str(spec.entry_point).partition(".")[0].partition(":")[0])
        make = imported(path) if path else Wanderer
        options = getattr(make, "options", {})
        env = gymnasium.make(spec, render_mode="rgb_array", disable_env_checker=True, **options)
    except (gymnasium.error.Error, ImportError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(f"{env_id} cannot be made: {reason}") from error
    return env, make(env, words)


def reset(env: "gymnasium.Env[Any, Any]", seed: int) -> None:
    """Begin an episode; what the environment prints meanwhile is dropped.

    Raises:
        UserError: the environment lacks a package.
    """
    from gymnasium.error import DependencyNotInstalled

    try:
        with redirect_stdout(io.StringIO()):
            env.reset(seed=seed)
    except DependencyNotInstalled as error:
        raise UserError(f"{env.spec and env.spec.id}: {error}") from error


def _namespace(name: str) -> str:
    """The package of an id such as ``gym_pusht/PushT-v0``, where it is installed."""
    space = name.partition("/")[0] if "/" in name else ""
    return space if space.isidentifier() and importlib.util.find_spec(space) else ""


def need_package(module: str, who: str) -> None:
    """Refuse what needs a package that is not installed.

    Raises:
        UserError: with what to install.
    """
    if importlib.util.find_spec(module) is None:
        package = module.replace("_", "-")
        raise UserError(f"{who} needs the package {package}: pip install {package}")


class Wanderer:
    """Random actions, half of them carried out once more, in the words that are given for them.

    Discrete actions are named by ``words``, e.g. ``0=left,1=right``, else by the environment's own
    enumeration ``actions`` or its ``get_action_meanings()``, else ``action 0`` and so on.
    Continuous actions are named by the component that is furthest from the middle of its range:
    ``0=push left/push right,1=push up/push down`` names both directions of each, else ``component 0
    down`` and ``component 0 up``; within a tenth of the middle they ``hold still``.

    Raises:
        UserError: actions of another kind, or words that cannot be read.
    """

    repeat = 1
    goes_on = False

    def __init__(self, env: "gymnasium.Env[Any, Any]", words: str | None = None) -> None:
        from gymnasium import spaces

        self._env, self._last = env, None
        self._given = dict(_entries(words or ""))
        if not isinstance(env.action_space, spaces.Discrete | spaces.Box):
            kind = type(env.action_space).__name__
            raise UserError(f"actions of kind {kind} have no words; Discrete and Box have")

    def act(self, rng: np.random.Generator) -> Any:
        """A random action of the space, or the last one again."""
        if self._last is None or rng.random() >= _KEPT:
            self._env.action_space.seed(int(rng.integers(2**31)))
            self._last = self._env.action_space.sample()
        return self._last

    def look(self) -> None:
        """Nothing is known of the environment."""

    def frame(self) -> NDArray[np.uint8]:
        """What the environment draws."""
        frame = self._env.render()
        if not isinstance(frame, np.ndarray) or frame.ndim != 3 or frame.shape[2] != 3:
            raise UserError(f"{self._env.spec and self._env.spec.id} draws no pictures (rgb_array)")
        return frame

    def state(self, look: None) -> str:
        """Unknown."""
        return ""

    def say(self, action: Any, before: None, after: None) -> str:
        """The words of the action."""
        from gymnasium import spaces

        space = self._env.action_space
        if isinstance(space, spaces.Box):
            return self._direction(np.asarray(action, np.float64).ravel(), space.low, space.high)
        number = int(action)
        return self._given.get(number) or self._own_names().get(number, f"action {number}")

    def _own_names(self) -> dict[int, str]:
        inner: Any = self._env.unwrapped
        if meanings := getattr(inner, "get_action_meanings", None):
            return {number: str(name).lower() for number, name in enumerate(meanings())}
        members = getattr(getattr(inner, "actions", None), "__members__", {})
        return {int(value): name.lower().replace("_", " ") for name, value in members.items()}

    def _direction(self, action: NDArray[np.float64], low: Any, high: Any) -> str:
        low, high = np.ravel(low).astype(np.float64), np.ravel(high).astype(np.float64)
        bounded = np.isfinite(low) & np.isfinite(high)
        middle = np.where(bounded, (low + high) / 2, 0.0)
        half = np.where(bounded, (high - low) / 2, 1.0)
        scaled = (action - middle) / np.where(half > 0, half, 1.0)
        number = int(np.argmax(np.abs(scaled)))
        if abs(scaled[number]) < _STILL:
            return "hold still"
        ways = self._given.get(number, f"component {number} down/component {number} up")
        down, _, up = ways.partition("/")
        return (up or down) if scaled[number] > 0 else down


def _entries(words: str) -> Iterator[tuple[int, str]]:
    for part in filter(None, (one.strip() for one in words.split(","))):
        number, _, name = part.partition("=")
        if not number.strip().isdigit() or not name.strip():
            raise UserError(f"--actions {part!r} must be NUMBER=WORDS, e.g. 0=left,1=right")
        yield int(number), name.strip()
