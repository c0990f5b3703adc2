"""Addresses that are no place of ours are refused by every key and every argument with a path.

Keys are found in the config's schema and arguments in the commands, so new ones are tried too.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args, get_type_hints

import pytest
import typer
from pydantic import BaseModel

from dynamics.cli.main import app
from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load, with_overrides
from dynamics.core.errors import UserError
from dynamics.core.places import StorePath
from dynamics.storage.files import cache_folder
from ray_jobs import bootstrap

ADDRESSES = ("https://host/x", "hdfs://host/x", "file:/x", "S3://b/x", "ssh://h/x", "gcs://b/x")
PATHS = {Path, StorePath}


def types_in(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in get_args(annotation):
        yield from types_in(inner)


def path_keys(model: type[BaseModel], above: str = "") -> Iterator[str]:
    """Dotted keys whose type has a path; of a tuple of sections, its first."""
    for name, field in model.model_fields.items():
        found = list(types_in(field.annotation))
        if PATHS.intersection(kind for kind in found if isinstance(kind, type)):
            yield f"{above}{name}"
        for kind in found:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                yield from path_keys(kind, f"{above}{name}.")


KEYS = sorted({*path_keys(LoopConfig)})


def path_arguments(group: typer.Typer, above: str) -> Iterator[tuple[str, Any]]:
    """Names of arguments that take a path, with what typer knows of each."""
    for inner in group.registered_groups:
        yield from path_arguments(inner.typer_instance, f"{above} {inner.name}")
    for command in group.registered_commands:
        assert command.callback is not None
        name = f"{above} {command.name or command.callback.__name__}"
        for argument, hint in get_type_hints(command.callback, include_extras=True).items():
            (info,) = getattr(hint, "__metadata__", (None,))
            if Path in types_in(hint) or getattr(info, "parser", None):
                yield f"{name} {argument}", info


ARGUMENTS = dict(path_arguments(app, "dynamics"))


def test_the_walks_find_what_is_known_to_take_a_path() -> None:
    assert {"model.base", "pool.path", "pool.more.path", "run_dir", "serve.api_key_file"} <= {*KEYS}
    names = {"dynamics verify run", "dynamics export out", "dynamics ingest folder"}
    assert names <= ARGUMENTS.keys()
    assert len(ARGUMENTS) > 15


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("key", KEYS)
def test_a_key_of_the_config_refuses_an_address(key: str, address: str) -> None:
    override = f"{key}={address}"
    if key.startswith("pool.more."):
        override = f"pool.more=[{{{key.removeprefix('pool.more.')}: '{address}'}}]"
    with pytest.raises(UserError, match=r"/x|//b"):
        with_overrides(LoopConfig(), [override])


@pytest.mark.parametrize("address", ADDRESSES)
@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_of_a_command_refuses_an_address(name: str, address: str) -> None:
    info = ARGUMENTS[name]
    param: Any = SimpleNamespace(opts=[name])
    take = info.parser or partial(info.callback, param)
    with pytest.raises(UserError, match="x"):
        take(address if info.parser else Path(address))


@pytest.mark.parametrize("address", ADDRESSES)
def test_bootstraps_own_flags_refuse_an_address(address: str) -> None:
    parser = bootstrap.parser()
    flags = [one.option_strings[0] for one in parser._actions if one.metavar in ("FILE", "DIR")]
    assert flags == ["--config", "--run-dir"]
    for flag in flags:
        with pytest.raises(UserError, match="x"):
            bootstrap._config(parser.parse_args([flag, address]))


def test_a_base_of_a_config_file_and_the_cache_refuse_an_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "own.yaml"
    config.write_text("base: https://host/tabletop.yaml\n")
    with pytest.raises(UserError, match="not a path of this machine"):
        load(config)
    monkeypatch.setenv("DYNAMICS_CACHE", "s3://bucket/cache")
    with pytest.raises(UserError, match="DYNAMICS_CACHE"):
        cache_folder()
    with pytest.raises(UserError, match="zero byte"):
        with_overrides(LoopConfig(), ['run_dir="runs/a\\0b"'])
