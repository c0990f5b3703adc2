"""The board and the scrape of deploy/grafana against what the program exports."""

import json
import re

import yaml

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.serving.backend import ServiceStatus
from dynamics.serving.http.metrics import HttpMetrics
from ray_jobs.gauges import NAMES

FOLDER = REPOSITORY_ROOT / "deploy" / "grafana"


def test_every_metric_of_ours_on_the_board_is_one_that_is_exported() -> None:
    board = json.loads((FOLDER / "dynamics.json").read_text())
    queries = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    assert len(queries) > 20
    used = set(re.findall(r"\b(?:ray_)?dynamics_\w+", " ".join(queries)))
    http = HttpMetrics()
    http.begin()
    http.end("/v1/predict", 200, 0.1)
    status = ServiceStatus(promoted=1, refused=None, waiting=0, batch_sizes={}, batch_seconds=0.0)
    served = set(re.findall(r"^dynamics_\w+", http.text(status).decode(), re.MULTILINE))
    assert used <= served | {f"ray_dynamics_{name}" for name in NAMES}
    assert {f"ray_dynamics_{name}" for name in NAMES} - used == {"ray_dynamics_fit_pairs_per_s"}


def test_panels_of_the_board_do_not_overlap() -> None:
    board = json.loads((FOLDER / "dynamics.json").read_text())
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    taken = [
        (x, y)
        for place in (panel["gridPos"] for panel in board["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(taken) == len(set(taken))
    assert max(x for x, _ in taken) < 24


def test_prometheus_reads_the_list_of_nodes_that_ray_writes() -> None:
    config = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    jobs = {job["job_name"]: job for job in config["scrape_configs"]}
    (files,) = (found["files"] for found in jobs["ray"]["file_sd_configs"])
    assert files == ["/tmp/ray/prom_metrics_service_discovery.json"]
