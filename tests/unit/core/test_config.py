"""Configuration: strict keys, teaching errors, a digest over what decides results."""

import pickle
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError

from dynamics.core.config import REPOSITORY_ROOT, LoopConfig, Mark
from dynamics.core.config_file import load
from dynamics.core.errors import UserError
from dynamics.core.places import StorePath
from dynamics.labelling.filter import StratifiedTopKRule, ThresholdRule

ROOT = REPOSITORY_ROOT


@pytest.fixture
def config_file(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text("name: some\nworld: {grid: 3}\n")
    return path


def error_of(path, *overrides) -> str:
    with pytest.raises(UserError) as caught:
        load(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_overrides_win_over_the_file(config_file):
    cfg = load(config_file, ["world.grid=5", "pool.path=some/clips", "evaluate.best_of=[1, 4]"])
    assert (cfg.world.grid, cfg.pool.path) == (5, Path("some/clips"))
    assert cfg.evaluate.best_of == (1, 4)


def test_a_tilde_is_the_home_folder(config_file, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    cfg = load(config_file, ["pool.path=~/clips", "model.base=~/anole-7b"])
    home = Path("/home/somebody")
    assert (cfg.pool.path, cfg.base_path()) == (home / "clips", home / "anole-7b")
    with pytest.raises(UserError, match=r"pool\.path.*home"):
        load(config_file, ["pool.path=~nobody-of-that-name/clips"])


def test_an_empty_file_is_the_default(tmp_path):
    path = tmp_path / "empty.yaml"
    path.write_text("")
    assert load(path) == LoopConfig()


def test_an_unknown_key_names_the_nearest_one(config_file):
    assert "did you mean train.first_steps?" in error_of(config_file, "train.first_step=3")
    assert "did you mean pool.keyframes.top_k?" in error_of(config_file, "pool.keyframes.topk=3")


def test_an_unknown_key_of_a_filter_rule_is_named(config_file):
    message = error_of(config_file, "filter.rule={kind: threshold, treshold: -1, threshold: 0}")
    assert "treshold" in message
    assert "did you mean" in message


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds=0", "rounds"),
        ("labelled.num_pairs=0", "num_pairs must be at least 1"),
        ("labelled.num_heldout=0", "num_heldout must be at least 1"),
        ("labelled.dataset=aurora", "labelled: dataset and path go together"),
        ("labelled.path=somewhere", "labelled: dataset and path go together"),
        ("labelled.heldout_path=somewhere", "heldout_path needs dataset"),
        ("labelled={dataset: aurora, path: a}", "labelled.dataset needs pool.path"),
        ("serve.guidance=2", "guidance other than 1 needs train.action_dropout above 0"),
        ("labelled={dataset: imagenet, path: a}", "labelled.dataset: 'imagenet' is unknown"),
        ("labelled.heldout_fraction=1", "labelled.heldout_fraction"),
        ("pool.source=youtube", "pool.source: 'youtube' is unknown"),
        ("pool.more=[{path: a}]", "pool: more needs path"),
        ("pool={path: a/clips, more: [{path: b/clips}]}", "folders of different names"),
        ("world.max_objects=9", "max_objects < grid * grid"),
        ("model.family=gpt", "model.family: 'gpt' is unknown"),
        ("filter.rule={kind: best}", "filter.rule: kind 'best' is unknown"),
        ("filter.rule={kind: top_fraction, fraction: 2}", "filter.rule.fraction: Input should be"),
        ("serve.port=99999", "serve.port"),
        ("name=a/b", "name"),
        (
            "guards.accept=[copies]",
            "guards.accept.0: 'copies' is unknown; did you mean ",
        ),
        ("rounds", "must look like section.key=value"),
        ("seed.x=1", "seed"),
        ("name.x=1", "name is a value, not a section"),
        ("rounds={a: [}", "not valid YAML"),
        ("train.lora={r: 4, r: 8}", "the key r stands twice"),
    ],
)
def test_a_bad_value_is_one_line_that_names_the_key(config_file, override, said):
    assert said in error_of(config_file, override)


def test_a_missing_file_names_one_to_try(tmp_path):
    assert "configs/tabletop.yaml" in error_of(tmp_path / "nothing.yaml")


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "just words"])
def test_a_file_without_a_mapping_is_refused(tmp_path, text):
    path = tmp_path / "broken.yaml"
    path.write_text(text)
    assert str(path) in error_of(path)


def test_the_rule_decides_its_own_keys(config_file):
    threshold = load(config_file, ["filter.rule={kind: threshold, threshold: -2}"])
    top_k = load(config_file, ["filter.rule={kind: stratified_top_k, k: 10}"])
    assert threshold.filter.rule == ThresholdRule(threshold=-2)
    assert top_k.filter.rule == StratifiedTopKRule(k=10)


def test_a_pool_may_have_several_folders(config_file):
    more = "[{path: b/k700, source: kinetics700}, {path: c/mit, source: moments}]"
    cfg = load(config_file, ["pool.path=a/ucf", "pool.source=ucf101", f"pool.more={more}"])
    assert [(part.name, part.source) for part in cfg.pool.parts] == [
        ("ucf", "ucf101"),
        ("k700", "kinetics700"),
        ("mit", "moments"),
    ]
    assert load(config_file).pool.parts == ()


def test_values_are_frozen():
    with pytest.raises(ValidationError):
        LoopConfig().rounds = 5  # type: ignore[misc]


FREE = {
    *("name", "rounds", "run_dir", "serve", "track", "cluster", "guards.accept", "pretrain"),
    *("pool.decode_timeout_s", "pool.decode_cpu_per_s", "pool.decode_memory_mb"),
    "pool.max_bad_fraction",
    *("model.device", "model.merge_adapters", "model.decoder"),
    *("label.batch_size", "label.num_actors", "label.num_gpus_per_actor", "label.shard_rows"),
    *("train.strategy", "train.schedule", "train.max_failures"),
    *("train.num_workers", "train.min_workers", "train.num_gpus_per_worker"),
    *("train.micro_batch_rows", "train.gradient_checkpointing", "train.checkpoint_every"),
    *("evaluate.batch_size", "evaluate.num_actors"),
    *("ingest.num_actors", "ingest.num_gpus_per_actor", "ingest.part_clips"),
}
CONTENT = {"pool.path", "pool.more.path", "labelled.path", "labelled.heldout_path", "model.base"}
"""Reviewed: a new key decides results until it is marked, and marked ones stand here."""


def keys(model: type[BaseModel] = LoopConfig, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys with their mark; a section that has one stands for its keys."""
    for name, field in model.model_fields.items():
        mark = next((found for found in field.metadata if isinstance(found, Mark)), None)
        inner = sections(field.annotation)
        if inner and mark is None:
            yield from keys(inner[0], f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", mark


def test_the_keys_that_do_not_decide_results_are_the_reviewed_ones():
    assert {key for key, mark in keys() if mark is Mark.FREE} == FREE
    assert {key for key, mark in keys() if mark is Mark.CONTENT} == CONTENT


def test_every_other_key_decides_results():
    cfg = LoopConfig(pool={"path": "a/ucf", "more": [{"path": "b/k700"}]})
    found = {key.replace(".more.0.", ".more.") for key in cfg.deciding()}
    of_rule = {f"filter.rule.{name}" for name, _ in cfg.filter.rule}
    assert found == {key for key, _ in keys()} - FREE | of_rule


@pytest.mark.parametrize(
    "override",
    [
        "rounds=9",
        "run_dir=elsewhere",
        "serve.port=9000",
        "cluster.num_cpus=4",
        "track.uri=x",
        "guards.accept=[leakage]",
        "label.num_actors=1",
        "model={device: cuda, base: elsewhere/tiny-4x4}",
        "train={strategy: fsdp2, num_workers: 2}",
    ],
)
def test_the_digest_ignores_where_and_how_long_it_runs(config_file, override):
    assert load(config_file, [override]).digest() == load(config_file).digest()


@pytest.mark.parametrize(
    "override",
    [
        "seed=1",
        "world.grid=4",
        "train.learning_rate=0.1",
        "train.fdp.batch_size=2",
        "guards.max_copy_rate=0.1",
        "filter.rule={kind: threshold, threshold: 0}",
        "labelled.num_heldout=7",
        "pool.path=clips",
    ],
)
def test_the_digest_changes_with_what_decides_results(config_file, override):
    assert load(config_file, [override]).digest() != load(config_file).digest()


def test_the_digest_covers_what_differs_from_the_defaults(config_file):
    cfg = load(config_file, ["train.lora.r=8", "label.num_actors=1", "seed=0"])
    assert cfg.chosen() == {"world.grid": 3, "train.lora.r": 8}
    assert load(config_file, ["seed=0"]).digest() == load(config_file).digest()


def test_the_resolved_config_reads_back_equal(config_file, tmp_path):
    cfg = load(config_file)
    resolved = tmp_path / "resolved.yaml"
    resolved.write_text(cfg.model_dump_json())
    assert load(resolved) == cfg


def sections(kind: Any = LoopConfig) -> list[type[BaseModel]]:
    """Every section, also those inside of tuples and unions."""
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        inner = [field.annotation for field in kind.model_fields.values()]
        return [kind, *(section for part in inner for section in sections(part))]
    return [section for part in get_args(kind) for section in sections(part)]


ADDRESSES = ["s3://lab/runs", "s3:/lab/runs", "file:///runs", "gs+x.y-2://lab", "C:/runs"]


def path_keys() -> set[tuple[type[BaseModel], str, bool]]:
    """Sections, their keys that are paths, and whether these may lie in a store."""
    return {
        (model, name, "StorePath" in str(field))
        for model in sections()
        for name, field in model.model_fields.items()
        if "Path" in str(field.annotation)
    }


@pytest.mark.parametrize("address", ADDRESSES)
def test_no_path_of_the_config_takes_an_address(address):
    assert len(path_keys()) > 5
    for model, name, in_store in path_keys():
        if in_store and address == "s3://lab/runs":
            continue
        said = "is no place that can be used" if in_store else "is not a path of this machine"
        for value in (address, Path(address)):
            with pytest.raises(ValidationError, match=rf"{name}\n.* {said}"):
                model.model_validate({name: value})


def test_every_place_of_a_run_may_lie_in_a_store_and_its_config_is_kept(config_file):
    keys = ["run_dir", "pool.path", "labelled.path", "labelled.heldout_path", "model.base"]
    given = [f"{key}=s3://lab/{key}" for key in keys]
    more = ["labelled.dataset=parquet", "pool.more=[{path: gs://lab/k700}]"]
    cfg = load(config_file, [*given, *more])
    assert cfg.run_dir == StorePath("s3://lab/run_dir")
    assert cfg.base_path() == StorePath("s3://lab/model.base")
    assert cfg.pool.parts[1].name == "k700"
    assert LoopConfig.model_validate_json(cfg.model_dump_json()) == cfg
    assert pickle.loads(pickle.dumps(cfg)) == cfg


def test_an_address_is_refused_by_its_key_and_a_tracking_uri_is_not(config_file):
    said = "run_dir: file:///runs is no place that can be used; give a path, or s3://bucket/folder"
    assert said in error_of(config_file, "run_dir=file:///runs")
    more = "[{path: ftp://lab/k700}]"
    assert "pool.more.0.path: ftp://lab/k700" in error_of(
        config_file, "pool.path=a", f"pool.more={more}"
    )
    assert load(config_file, ["track.uri=http://tracker:5000"]).track.uri == "http://tracker:5000"


def test_every_field_is_read_by_something():
    files = [path for folder in ("dynamics", "ray_jobs") for path in (ROOT / folder).rglob("*.py")]
    source = "\n".join(path.read_text() for path in files)
    fields = {(model.__name__, name) for model in sections() for name in model.model_fields}
    unread = {field for field in fields if not re.search(rf"\.{field[1]}\b", source)}
    assert not unread
