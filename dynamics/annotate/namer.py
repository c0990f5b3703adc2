"""A run's IDM, which offers sentences and says where it is least sure."""

import math
import threading

import numpy as np

from dynamics.annotate.candidates import Offer
from dynamics.core.errors import UserError
from dynamics.inference.load import load_idm
from dynamics.models import load_image_tokenizer
from dynamics.serving.model_registry import promoted_rounds
from dynamics.storage.run_folder import RunFolder


class RunNamer:
    """The IDM of a run's last promoted round.

    Raises:
        UserError: no round is promoted, or a checkpoint is missing or changed.
    """

    def __init__(self, run: RunFolder) -> None:
        cfg, reports = run.config(), promoted_rounds(run)
        if not reports:
            raise UserError(f"{run.root} has no promoted round, so no IDM; leave --run out")
        self.round = max(reports)
        self.keyframes = cfg.pool.keyframes
        self.images = load_image_tokenizer(cfg.model.family, cfg.base_path())
        self._idm = load_idm(run.models(reports[self.round], cfg.base_path()), cfg.model)
        self._max_action_tokens = cfg.label.max_action_tokens
        self._lock = threading.Lock()

    def name(self, frames_BHW3: np.ndarray, ends_P2: np.ndarray) -> list[Offer]:
        """See `Namer`."""
        with self._lock:
            codes_BL = self.images.encode(frames_BHW3)
            captions = self._idm.label(
                codes_BL[ends_P2[:, 0]],
                codes_BL[ends_P2[:, 1]],
                max_action_tokens=self._max_action_tokens,
            )
        return [
            Offer(one.action, math.exp(float(np.mean(one.token_logprobs or (-np.inf,)))))
            for one in captions
        ]
