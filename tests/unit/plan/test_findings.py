"""What findings read of a run's data."""

from types import SimpleNamespace

from dynamics.plan.findings.finding import Evidence


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
