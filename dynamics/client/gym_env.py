"""The service as a Gymnasium environment: the state is a picture, an action is a sentence.

    import gymnasium, dynamics.env
    env = gymnasium.make("dynamics/Rollout-v0", url="http://127.0.0.1:8000")
    frame, info = env.reset(seed=0)
    frame, reward, terminated, truncated, info = env.step(info["actions"][0])

Importing this module registers the name; nothing else in `dynamics` needs gymnasium.
"""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from dynamics.client.client import Client, Picture, RefusedError, Sampling, open_image
from dynamics.core.config import VerifierName
from dynamics.core.errors import UserError
from dynamics.serving.schemas import MAX_SEED, ModelsReply

try:
    import gymnasium
    from gymnasium import spaces
except ImportError as error:
    raise UserError(
        "dynamics.client.gym_env needs gymnasium: pip install 'dynamics-bootstrap[gym]'"
    ) from error

Frame = NDArray[np.uint8]
RewardFunction = Callable[[Mapping[str, Any]], float]
"""From a step's ``info`` to its reward."""

CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789 .,;:!?'-"
"""Characters of an action."""
REFUSED_NATS = -100.0
"""Score of a refused action, below every frame's, so that nonsense never pays."""


def no_reward(_: Mapping[str, Any]) -> float:
    """0: the environment has dynamics, and no goal of its own."""
    return 0.0


def verifier_score(info: Mapping[str, Any]) -> float:
    """The verifier's score of the frame that was chosen, in nats.

    It says how sure the models are that this frame is what the sentence leads to, not that
    anything was achieved: an agent that maximises it asks for what is easy to draw.
    """
    scores = info["scores"]
    return REFUSED_NATS if info["refused"] is not None else float(scores[info["chosen"]])


class RolloutEnv(gymnasium.Env[Frame, str]):
    """One picture after the other, each the best of N that the served models imagine.

    Observations are uint8 [frame_px, frame_px, 3]. An action is a sentence; one that the model
    cannot read changes nothing, costs a step, and is counted. Nothing ends an episode but
    ``max_steps`` (``truncated``). Every draw's seed comes from ``np_random``: after
    ``reset(seed=s)`` equal actions lead to equal frames, as long as the served models are the same.

    ``info`` holds, after a reset too: ``action``, ``scores`` (float64 [N], empty where nothing was
    drawn), ``chosen`` (-1 then), ``matches_ground_truth`` (whether the domain's rules
    give this frame; none = not known), ``round``, ``refused`` (the service's reason, or none),
    ``num_refused`` (since the reset), ``actions`` (sentences that make sense on the scene that the
    episode began with) and ``frame`` (the observation, for rewards that look at it).
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 2}  # type: ignore[misc]  # gymnasium has it as an instance's

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        n: int | None = None,
        temperature: float = 1.0,
        verifier: VerifierName | None = None,
        round: int | None = None,
        max_steps: int = 16,
        reward_fn: RewardFunction = no_reward,
        render_mode: str | None = None,
    ) -> None:
        """Connect to the service, which every step asks.

        Args:
            url: address of the service.
            api_key: the service's key, where it wants one.
            n: candidates a step; none = the service's own number.
            temperature: sampling temperature.
            verifier: name of the verifier; none = the service's own.
            round: round that answers; none = the promoted one now, for all episodes.
            max_steps: steps an episode.
            reward_fn: `no_reward`, `verifier_score`, or one of your own.
            render_mode: ``rgb_array`` or none.

        Raises:
            UserError: no service, or one that does not offer these options.
        """
        self._client = Client(url, api_key)
        models = self._client.models()
        self.round = _round(models) if round is None else round
        """Number of the round that answers."""
        _check(models, n, temperature, verifier, self.round, max_steps)
        self._sampling: Sampling = {
            "n": n,
            "temperature": temperature,
            "verifier": verifier,
            "round": self.round,
        }
        self._max_steps = max_steps
        self._reward_fn = reward_fn
        self.render_mode = render_mode
        self._side = models.frame_px
        shape = (self._side, self._side, 3)
        self.observation_space = spaces.Box(0, 255, shape, np.uint8)
        self.action_space = spaces.Text(models.max_action_chars, charset=CHARACTERS)
        self._scenes = self._client.scenes()
        self._frame: Frame | None = None
        self._offered: tuple[str, ...] = ()
        self._num_steps = 0
        self._num_refused = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Frame, dict[str, Any]]:
        """Begin with a scene that the seed picks, or with ``options={"image": picture}``.

        A picture of another size is cut to its centre square and averaged down here, so that the
        observation is what the model gets.

        Raises:
            UserError: no picture was given, and the service has no scenes.
        """
        super().reset(seed=seed)
        self._num_steps = self._num_refused = 0
        if (picture := (options or {}).get("image")) is not None:
            self._frame, self._offered = _to_frame(picture, self._side), ()
        elif self._scenes:
            scene = self._scenes[int(self.np_random.integers(len(self._scenes)))]
            self._frame, self._offered = _to_frame(scene.image, self._side), scene.actions
        else:
            raise UserError(
                f'{self._client.url} has no scenes; begin with reset(options={{"image": ...}})'
            )
        return self._frame.copy(), self._info("")

    def step(self, action: str) -> tuple[Frame, float, bool, bool, dict[str, Any]]:
        """Replace the picture by the next frame that the models draw for the sentence.

        Raises:
            UserError: `reset` has not been called, or the service does not answer.
        """
        if self._frame is None:
            raise UserError("call reset before step")
        self._sampling["seed"] = int(self.np_random.integers(MAX_SEED, endpoint=True))
        try:
            drawn = self._client.predict(self._frame, action, **self._sampling)
        except RefusedError as error:
            if error.status != 422:
                raise
            self._num_refused += 1
            info = self._info(action, refused=str(error))
        else:
            self._frame = np.array(drawn.image)
            info = self._info(
                action,
                scores=np.array(drawn.scores, dtype=np.float64),
                chosen=drawn.chosen,
                matches_ground_truth=drawn.matches_ground_truth,
            )
        self._num_steps += 1
        truncated = self._num_steps >= self._max_steps
        return self._frame.copy(), float(self._reward_fn(info)), False, truncated, info

    def render(self) -> Frame | None:
        """The picture as it is, uint8 [frame_px, frame_px, 3]."""
        if self.render_mode is None or self._frame is None:
            return None
        return self._frame.copy()

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _info(
        self,
        action: str,
        *,
        scores: NDArray[np.float64] | None = None,
        chosen: int = -1,
        matches_ground_truth: bool | None = None,
        refused: str | None = None,
    ) -> dict[str, Any]:
        assert self._frame is not None
        return {
            "action": action,
            "scores": np.zeros(0) if scores is None else scores,
            "chosen": chosen,
            "matches_ground_truth": matches_ground_truth,
            "round": self.round,
            "refused": refused,
            "num_refused": self._num_refused,
            "actions": self._offered,
            "frame": self._frame.copy(),
        }


def _round(models: ModelsReply) -> int:
    """The promoted round; fixed here, so that a promotion does not change a running episode."""
    for one in models.rounds:
        if one.promoted:
            return one.round
    raise UserError(f"{models.name} has no promoted round; name one with round=...")


def _check(
    models: ModelsReply,
    n: int | None,
    temperature: float,
    verifier: VerifierName | None,
    round: int,
    max_steps: int,
) -> None:
    """Refuse options for which the service would refuse every step."""
    rounds = [one.round for one in models.rounds]
    if n is not None and not 1 <= n <= models.max_samples:
        raise UserError(f"n={n}: the service draws 1 to {models.max_samples} candidates")
    if not 0 < temperature <= 4:
        raise UserError(f"temperature={temperature}: must be above 0 and at most 4")
    if verifier is not None and verifier not in models.verifiers:
        raise UserError(f"verifier={verifier!r}: the service has {', '.join(models.verifiers)}")
    if round not in rounds:
        raise UserError(f"round={round}: the service has {', '.join(map(str, rounds))}")
    if max_steps < 1:
        raise UserError(f"max_steps={max_steps}: an episode needs at least one step")


def _to_frame(picture: Picture, side: int) -> Frame:
    """The centre square, uint8 [side, side, 3], by the area filter that ingest uses, too."""
    square = ImageOps.fit(open_image(picture), (side, side), Image.Resampling.BOX)
    return np.array(square)


gymnasium.register(id="dynamics/Rollout-v0", entry_point="dynamics.client.gym_env:RolloutEnv")
