"""What is missing where work finds no room."""

import pytest

from ray_jobs.demand import grows, lack, lack_gpus, missing, release, room, waiting

NODES = [{"CPU": 2.0}, {"CPU": 8.0, "GPU": 2.0, "memory": 1e9}, {"CPU": 2.0}]


@pytest.mark.parametrize(
    ("resources", "expected"),
    [
        ({"CPU": 1}, 12),
        ({"CPU": 3}, 2),
        ({"CPU": 1, "GPU": 1}, 2),
        ({"CPU": 1, "GPU": 0.5}, 4),
        ({"CPU": 1, "GPU": 0.6}, 2),
        ({"CPU": 5, "GPU": 0.25}, 1),
        ({"CPU": 1, "GPU": 0.0}, 12),
        ({"CPU": 1, "TPU": 1}, 0),
    ],
)
def test_workers_that_fit_are_counted_node_by_node(
    resources: dict[str, float], expected: int
) -> None:
    assert room(resources, NODES) == expected


def test_a_line_names_what_is_needed_and_what_nodes_have() -> None:
    assert lack({"CPU": 1, "GPU": 1}, 2, NODES) is None
    assert lack({"CPU": 1, "GPU": 1}, 4, NODES) == (
        "needs 4 x (1 CPU + 1 GPU); the nodes have room for 2: "
        "2 with 2 CPU + 0 GPU, 1 with 8 CPU + 2 GPU"
    )


@pytest.mark.parametrize(
    ("wanted", "cards", "fits"),
    [
        ({0.0: 4}, [], True),
        ({0.6: 1, 0.5: 1}, [1], False),
        ({0.6: 1, 0.4: 1}, [1], True),
        ({0.6: 2, 0.5: 1}, [2], False),
        ({0.6: 1, 0.5: 2}, [1, 1], True),
        ({2.0: 1, 0.5: 1}, [1, 1], False),
        ({2.0: 1, 0.5: 1}, [1, 2], True),
        ({0.1: 10}, [1], True),
    ],
)
def test_replicas_of_two_kinds_share_the_cards(
    wanted: dict[float, int], cards: list[int], fits: bool
) -> None:
    assert (lack_gpus(wanted, cards) is None) == fits


def test_a_line_names_all_replicas_that_want_cards() -> None:
    assert lack_gpus({0.0: 2, 0.6: 1, 0.5: 1}, [0, 1]) == (
        "needs 1 x 0.5 GPU + 1 x 0.6 GPU; the nodes have 0, 1 GPUs"
    )


def test_only_an_autoscaler_with_kinds_of_nodes_starts_some() -> None:
    plain, grouped = {"Labels": {}}, {"Labels": {"ray.io/node-group": "gpu"}}
    assert not grows([plain], {})
    assert not grows([plain], {"active_nodes": {"node_1f2e": 1}})
    assert grows([plain], {"active_nodes": {"head": 1}})
    assert grows([plain, grouped], {})


@pytest.mark.cluster
@pytest.mark.usefixtures("local_ray")
def test_a_real_cluster_says_what_it_lacks_and_what_others_hold() -> None:
    import ray

    assert missing({"CPU": 1}, 8) is None
    line = "needs 9 x (1 CPU); the nodes have room for 8: 1 with 8 CPU"
    assert missing({"CPU": 1}, 9) == waiting({"CPU": 1}, 9) == line
    # What the tests before have left may hold CPUs, never memory.
    share = ray.cluster_resources()["memory"] // 8
    group = ray.util.placement_group([{"memory": 7 * share}])
    ray.get(group.ready())
    try:
        assert missing({"memory": share}, 8) is None
        held = f"needs 8 x ({share:g} memory); other work leaves room for 1"
        assert waiting({"memory": share}, 8) == held
        assert waiting({"memory": share}, 1) is None
    finally:
        release()
    assert ray.util.placement_group_table(group)["state"] == "REMOVED"
