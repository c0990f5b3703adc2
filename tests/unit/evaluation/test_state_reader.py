import numpy as np

from dynamics.core.config import LoopConfig
from dynamics.evaluation.state_reader import StateReader
from dynamics.storage.tables import codes_matrix
from dynamics.tabletop.domain import Tabletop
from tests.fakes import WORLD, CellTokenizer, filmed

PAIRS, TRUTH = filmed(60)


def test_each_distinct_frame_is_decoded_once():
    class Counting(CellTokenizer):
        decoded = 0

        def decode(self, codes_BL: np.ndarray) -> np.ndarray:
            Counting.decoded += len(codes_BL)
            return super().decode(codes_BL)

    reader = StateReader(Counting(), Tabletop(LoopConfig(world=WORLD)))
    codes_BL = codes_matrix(PAIRS, "source_codes")[[0, 1, 0, 0]]
    states = [TRUTH["source_state"][row].as_py() for row in (0, 1, 0, 0)]
    assert reader.read(codes_BL) == states
    assert reader.read(codes_BL[:1]) == states[:1]
    assert Counting.decoded == 2
