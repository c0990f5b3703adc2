"""From a round's models to a labeller."""

from dynamics.core.config import LoopConfig
from dynamics.core.records import ModelRef
from dynamics.inference.load import load_idm, load_pair
from dynamics.labelling.confidence import SCORES
from dynamics.labelling.labeller import Labeller
from dynamics.models import load_image_tokenizer


def load_labeller(cfg: LoopConfig, models: ModelRef) -> Labeller:
    """The IDM, with the FDP beside it only when the configured score needs it."""
    if SCORES[cfg.filter.score].needs == "fdp_loglik":
        idm, fdp = load_pair(models, cfg.model)
        return Labeller(idm, fdp, cfg, fdp.images)
    idm = load_idm(models, cfg.model)
    return Labeller(idm, None, cfg, load_image_tokenizer(cfg.model.family, models.base))
