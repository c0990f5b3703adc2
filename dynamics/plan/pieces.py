"""The folders and files that a config names: which are there, and where to get the others."""

from collections.abc import Iterator
from dataclasses import dataclass

from dynamics.core.config import LoopConfig
from dynamics.core.places import Place
from dynamics.models import VQGAN_ADDRESS

_POOLS = {
    "ucf101": "https://www.crcv.ucf.edu/data/UCF101.php",
    "kinetics700": "https://github.com/cvdfoundation/kinetics-dataset",
    "moments": "http://moments.csail.mit.edu",
}
_SETS = {
    "aurora": "https://github.com/McGill-NLP/AURORA, pictures: https://zenodo.org/records/11552426",
    "something": "https://www.qualcomm.com/developer/software/something-something-v-2-dataset",
    "epic": "https://github.com/epic-kitchens/epic-kitchens-100-annotations",
    "lerobot": "https://huggingface.co/datasets?other=LeRobot",
}
_BASES = {
    "chameleon": "https://huggingface.co/leloy/Anole-7b-v0.1-hf",
    "liquid": "https://huggingface.co/Junfeng5/Liquid_V1_7B",
    "janus": "https://huggingface.co/deepseek-community/Janus-Pro-7B",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A folder or file of a config."""

    key: str
    path: Place
    origin: str
    """Place to get it from; "" for what only its owner knows."""

    @property
    def is_there(self) -> bool:
        """True when something lies at the path."""
        return self.path.exists()

    def line(self) -> str:
        """Key and path; of a missing piece the place to get it, too."""
        origin = f", from {self.origin}" if self.origin else ""
        return f"{self.key} {self.path}" + ("" if self.is_there else f" is missing{origin}")


def pieces(cfg: LoopConfig) -> Iterator[Piece]:
    """Everything that must be there before a run can start."""
    base = cfg.base_path()
    yield Piece(key="model.base", path=base, origin=_BASES.get(cfg.model.family, ""))
    if _draws_with_vqgan(cfg.model.family, base):
        origin = f"{VQGAN_ADDRESS}, by dynamics convert-vqgan vqgan.ckpt {base}"
        yield Piece(key="its image decoder", path=base / "vqgan.json", origin=origin)
    for number, part in enumerate(cfg.pool.parts):
        key = "pool.path" if number == 0 else f"pool.more[{number - 1}].path"
        yield Piece(key=key, path=part.path.absolute(), origin=_POOLS.get(part.source, ""))
    labelled = cfg.labelled
    for key, path in (("path", labelled.path), ("heldout_path", labelled.heldout_path)):
        if path is not None:
            origin = _SETS.get(labelled.dataset or "", "")
            yield Piece(key=f"labelled.{key}", path=path.absolute(), origin=origin)


def _draws_with_vqgan(family: str, base: Place) -> bool:
    """True for a base that needs a converted VQGAN beside it: it has no decoder of its own."""
    index = base / "model.safetensors.index.json"
    return family == "liquid" or (
        family == "chameleon" and index.is_file() and ".vqmodel.decoder." not in index.read_text()
    )
