"""What findings read of a run's data, and what those about sentences say of them."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.records import Estimate
from dynamics.evaluation.more_labels import MoreLabels
from dynamics.plan.findings.blind import blind_tokenizer
from dynamics.plan.findings.finding import Evidence
from dynamics.plan.findings.labels import label_counts
from dynamics.plan.findings.rounds import expected_of_rounds
from dynamics.plan.findings.wordings import wordings
from dynamics.tabletop.language import say
from dynamics.tabletop.scene import all_actions, sample_scene


def sentences(labelled: list[str], heldout: list[str], domain: str = "open_video"):
    """Evidence of nothing but sentences."""
    tables = {"labelled": labelled, "heldout": heldout}
    return SimpleNamespace(
        cfg=LoopConfig(domain=domain),
        counted=lambda _: (0, ""),
        **{name: pa.table({"action": said}) for name, said in tables.items()},
    )


@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ("push the block left.", "'push the block left' and 'push the block left.'"),
        ("Push it", "'push' and 'Push'"),
        ("lift the BLOCK", "'block' and 'BLOCK'"),
        ("push the blcok left", "'blcok' (1) and 'block' (40)"),
        ("schiebe den Klotz nach 左", ""),
        ("Halt", ""),
        ("...", ""),
    ],
)
def test_another_spelling_of_a_sentence_or_a_word_is_named(odd: str, said: str) -> None:
    usual = ["push the block left", "push the block right"] * 20
    found = wordings(sentences([*usual, odd], ["lift it"]))
    assert found.level == ("warn" if said else "fine")
    assert said in found.found


def test_the_tabletops_wordings_are_no_slips() -> None:
    rng = np.random.default_rng(0)
    scenes = [sample_scene(rng, 4, 3, 4) for _ in range(30)]
    said = [say(action, rng) for scene in scenes for action in all_actions(scene)]
    assert len(said) > 1000
    assert wordings(sentences(said, said[:50], "tabletop")).level == "fine"


def test_labels_of_one_sentence_tell_nothing_apart() -> None:
    assert label_counts(sentences(["push it"] * 40, ["Push it."] * 9)).level == "refuse"
    assert label_counts(sentences(["push it", "lift it"] * 40, ["push it"] * 99)).level == "fine"
    each = label_counts(sentences([f"push it {n} times" for n in range(40)], ["push it"] * 99))
    assert "equal actions in equal words" in each.remedy


def test_what_was_left_out_is_counted_over_all_folders_of_a_pool():
    counts = {
        "labelled": {"num_pairs": 22, "rejects": {"in_heldout": 3}},
        "pool/ours": {"num_clips": 4, "rejects": {"near_copy": 1, "clip/too_short": 2}},
        "pool/theirs": {"num_clips": 3, "rejects": {"near_copy": 5}},
    }
    data = SimpleNamespace(counts=counts)
    assert Evidence.counted(data, "labelled") == (0, "; left out: 3 in_heldout")
    assert Evidence.counted(data, "pool") == (7, "; left out: 2 clip/too_short, 6 near_copy")
    assert Evidence.counted(data, "heldout") == (0, "")


@pytest.mark.parametrize("is_own", [True, False])
def test_a_blind_base_of_ones_own_is_made_anew_with_more_steps_or_codes(
    tmp_path: Path, is_own: bool
) -> None:
    recipe = {"pretrain": {"tokenizer_steps": 4000}, "image_tokenizer": {"codes_a_frame": 36}}
    if is_own:
        recipe["clips"] = "the clips that it is made from"
    (tmp_path / "recipe.json").write_text(json.dumps(recipe))
    same = pa.table({name: [[1, 2]] * 4 for name in ("source_codes", "target_codes")})
    evidence = SimpleNamespace(
        cfg=LoopConfig(model={"base": tmp_path}),
        sets={"labelled": same, "held-out": same},
        heldout=pa.table({"pair_id": ["a", "b"]}),
        pictures={},
    )
    found = blind_tokenizer(evidence)
    assert found.level == "refuse"
    assert ("pretrain.tokenizer_steps (it took 4,000)" in found.remedy) == is_own
    assert ("by more than 6 in pretrain.codes_a_side" in found.remedy) == is_own
    assert ("make a base there from your own clips" in found.remedy) != is_own


@pytest.mark.parametrize(
    ("fdp", "spread", "idm", "level", "remedy"),
    [
        ((0.154, 0.416), 0.03, 0.71, "fine", ""),  # the tabletop's
        ((0.260, 0.276), 0.01, 0.46, "warn", "labels are not what this FDP lacks"),  # PushT's
        ((0.970, 0.990), 0.01, 0.98, "warn", "nothing is left for rounds to gain"),
        ((0.300, 0.360), 0.08, 0.71, "warn", "labels are not what this FDP lacks"),  # noise
        ((0.154, 0.416), 0.03, 0.21, "warn", "more labels (dynamics annotate)"),
    ],
)
def test_rounds_are_expected_to_bring_what_more_labels_bring(fdp, spread, idm, level, remedy):
    def estimate(value: float, spread: float = 0.03) -> Estimate:
        return Estimate(value=value, low=value - spread, high=value + spread, num_items=500)

    arms = tuple(
        {
            "eval/code_accuracy_changed": estimate(value),
            "eval/idm_exact": estimate(idm),
            "eval/majority_exact": estimate(0.2),
        }
        for value in fdp
    )
    gain = {
        "eval/code_accuracy_changed": estimate(fdp[1] - fdp[0], spread),
        "eval/idm_exact": estimate(0.2),
    }
    found = expected_of_rounds(MoreLabels(num_labels=(250, 1000), arms=arms, gain=gain))
    assert found.level == level
    assert found.remedy.startswith(remedy)
    assert "from 250 to 1,000 labels" in found.found
    assert f"{100 * fdp[0]:.1f} -> {100 * fdp[1]:.1f}" in found.found
