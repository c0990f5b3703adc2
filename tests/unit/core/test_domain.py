"""A run's domain; a third one, defined here, goes through labelling, evaluation and guards."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import EvaluateConfig, LoopConfig
from dynamics.core.domain import DOMAINS, OpenVideo, load_domain, load_simulator, same_action
from dynamics.core.errors import UserError
from dynamics.core.records import TRANSITION_SCHEMA, TRUTH_SCHEMA
from dynamics.evaluation.guards.leakage import Leakage
from dynamics.evaluation.guards.rules import GUARDS, GuardEvidence
from dynamics.evaluation.heldout import evaluate_heldout
from dynamics.evaluation.label_quality import correct_labels
from dynamics.inference.fdp import Candidates
from dynamics.inference.idm import Caption
from dynamics.inference.sampling import SamplingParams
from dynamics.labelling.labeller import Labeller
from dynamics.storage.tables import score_column
from dynamics.tabletop.domain import Tabletop

NUM_PAIRS, NUM_LAMPS = 200, 4


class Lamps(OpenVideo):
    """Lamps in a row, lit (1) or dark (0); a sentence switches one of them."""

    def meaning(self, sentence: str) -> str:
        return sentence.removeprefix("please ") if "switch" in sentence else ""

    def kind(self, sentence: str) -> str:
        return "switch" if self.meaning(sentence) else ""

    def outcome(self, sentence: str, state: str) -> str | None:
        if not self.meaning(sentence):
            return None
        lamp = int(sentence[-1])
        return f"{state[:lamp]}{1 - int(state[lamp])}{state[lamp + 1 :]}"

    def states(self, frames_BHW3: np.ndarray) -> list[str | None]:
        lit = (frames_BHW3[:, 0, :, 0] > 0).astype(int)
        return ["".join(map(str, row)) for row in lit.tolist()]


class LampPictures:
    """A code is a pixel."""

    num_codes, num_tokens = 2, NUM_LAMPS

    def decode(self, codes_BL: np.ndarray) -> np.ndarray:
        return np.repeat(codes_BL[:, None, :, None] * 255, 3, axis=-1).astype(np.uint8)


class LampIdm:
    """Right about every pair but those of lamp 3, and polite about lamp 0."""

    digest, prompt_version = "idm", "1"

    def label(
        self, source_BL: np.ndarray, target_BL: np.ndarray, *, max_action_tokens: int
    ) -> list[Caption]:
        lamps = (source_BL != target_BL).argmax(axis=1).tolist()
        said = {0: "please switch 0", 3: "sing"}
        return [Caption(said.get(lamp, f"switch {lamp}"), (-0.1,)) for lamp in lamps]

    def sample(
        self, source_BL: np.ndarray, target_BL: np.ndarray, sampling: SamplingParams, **_: object
    ) -> list[list[Caption]]:
        lamps = (source_BL != target_BL).argmax(axis=1).tolist()
        return [[Caption(f"switch {lamp}", (-0.1,))] * sampling.num_samples for lamp in lamps]

    def fits_prompt(self, action: str) -> bool:
        return True


class LampFdp:
    """Switches the lamp that a sentence names."""

    images = LampPictures()

    def generate(
        self, source_BL: np.ndarray, actions: list[str], sampling: SamplingParams, **_: object
    ) -> Candidates:
        codes = np.repeat(source_BL[:, None], sampling.num_samples, axis=1)
        for row, action in enumerate(actions):
            codes[row, :, int(action[-1])] ^= 1
        zeros = np.zeros(codes.shape[:2])
        return Candidates(codes, zeros, zeros)


@pytest.fixture
def cfg(monkeypatch: pytest.MonkeyPatch) -> LoopConfig:
    monkeypatch.setitem(DOMAINS, "lamps", f"{__name__}:Lamps")
    return LoopConfig(
        domain="lamps", filter={"score": "agreement"}, evaluate=EvaluateConfig(best_of=())
    )


def pairs() -> tuple[pa.Table, pa.Table]:
    """Lamp pairs (TRANSITION_SCHEMA) and their truth."""
    rows = []
    for number in range(NUM_PAIRS):
        lamp = number % NUM_LAMPS
        source = [number >> bit & 1 for bit in range(2, 2 + NUM_LAMPS)]
        target = [code ^ (place == lamp) for place, code in enumerate(source)]
        known = {
            "pair_id": f"pair-{number:03d}",
            "action": f"switch {lamp}",
            "source_codes": source,
            "target_codes": target,
            "source_state": "".join(map(str, source)),
            "target_state": "".join(map(str, target)),
        }
        blank = {"clip_sha256": "", "clip_path": "", "clip_class": "", "origin": "labelled"}
        numbers = {"frame0": 0, "frame1": 1, "t0_s": 0.0, "t1_s": 1.0, "motion": 0.1}
        rows.append(known | blank | numbers | {"recognition": [1.0] * NUM_LAMPS})
    tables = (
        pa.Table.from_pylist([{name: row[name] for name in schema.names} for row in rows], schema)
        for schema in (TRANSITION_SCHEMA, TRUTH_SCHEMA)
    )
    return next(tables), next(tables)


def label(cfg: LoopConfig) -> pa.Table:
    labeller = Labeller(LampIdm(), None, cfg, LampPictures())  # type: ignore[arg-type]
    return labeller.label(pairs()[0], 1)


def test_a_third_domain_says_what_labels_mean(cfg: LoopConfig) -> None:
    labels = label(cfg)
    agreed = [score >= 1 for score in score_column(labels, "agreement")]
    assert agreed == [True, True, True, False] * (NUM_PAIRS // 4)  # "sing" means nothing
    right = correct_labels(labels, pairs()[1], load_domain(cfg))
    assert right == [True, True, True, False] * (NUM_PAIRS // 4)


def test_a_third_domain_reads_the_frames_that_evaluation_judges(cfg: LoopConfig) -> None:
    items = evaluate_heldout(*pairs(), LampIdm(), LampFdp(), cfg, 1, 0)  # type: ignore[arg-type]
    assert set(items["action_kind"].to_pylist()) == {"switch"}
    assert items["idm_exact"].to_pylist() == [True, True, True, False] * (NUM_PAIRS // 4)
    assert items["idm_correct"].to_pylist() == items["idm_exact"].to_pylist()
    assert all(items["fdp_greedy_success"].to_pylist())
    assert not any(items["fdp_copy"].to_pylist())


def test_a_third_domain_groups_what_guards_count(cfg: LoopConfig) -> None:
    labels = label(cfg)
    kept = [action != "sing" for action in labels["action"].to_pylist()]
    evidence = GuardEvidence(
        results=pa.table({}),
        heldout=pa.table({}),
        labelled_actions=labels["action"].to_pylist(),
        leakage=Leakage(num_heldout=0, by_digest=0, by_hash=0, either=0),
        domain=load_domain(cfg),
        labels=labels.append_column("accepted", [kept]),
    )
    assert GUARDS["type_skew"](evidence, cfg.guards).value == pytest.approx(0.25)
    mute = replace(evidence, domain=OpenVideo(cfg))  # by first words: please, switch, sing
    assert GUARDS["type_skew"](mute, cfg.guards).value == pytest.approx(0.25)
    assert "'switch 0'" in _common(GUARDS["caption_collapse"], evidence, cfg)
    assert "'please switch 0'" in _common(GUARDS["caption_collapse"], mute, cfg)


def _common(guard, evidence: GuardEvidence, cfg: LoopConfig) -> str:
    polite = evidence.labels.filter(pa.compute.match_substring(evidence.labels["action"], "0"))
    labels = pa.concat_tables([evidence.labels, polite])
    return guard(replace(evidence, labels=labels), cfg.guards).message


def test_frames_whose_state_the_domain_cannot_read_are_not_measured(cfg: LoopConfig) -> None:
    real = cfg.model_copy(update={"domain": "open_video"})
    items = evaluate_heldout(*pairs(), LampIdm(), LampFdp(), real, 1, 0)  # type: ignore[arg-type]
    for column in ("fdp_greedy_success", "fdp_copy", "tokenizer_ceiling"):
        assert items[column].null_count == NUM_PAIRS
    assert set(items["action_kind"].to_pylist()) == {""}


def test_a_run_on_the_filmed_labelled_set_knows_the_tabletop_and_another_knows_nothing() -> None:
    own_videos = LoopConfig(pool={"path": "clips"})
    real = LoopConfig(pool={"path": "clips"}, labelled={"dataset": "aurora", "path": "aurora"})
    assert isinstance(load_domain(LoopConfig()), Tabletop)
    assert isinstance(load_domain(own_videos), Tabletop)
    assert isinstance(load_domain(real), OpenVideo)


def test_of_real_video_only_the_words_are_known(tmp_path: Path) -> None:
    domain = OpenVideo(LoopConfig())
    assert same_action(domain, "Open the door.", "open  the door")
    assert not same_action(domain, "open the door", "close the door")
    assert domain.outcome("open the door", "shut") is None
    assert domain.recognised(np.zeros((8, 8, 3), np.uint8)) is None
    assert domain.examples(tmp_path) == []


def test_a_domain_that_films_nothing_wants_videos() -> None:
    with pytest.raises(UserError, match=r"open_video films nothing; set pool\.path"):
        load_simulator(LoopConfig(domain="open_video"))


def test_an_unknown_domain_is_a_config_error() -> None:
    with pytest.raises(ValueError, match="did you mean tabletop"):
        LoopConfig(domain="tabeltop")
