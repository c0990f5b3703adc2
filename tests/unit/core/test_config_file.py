"""A config file that differs from another in what it names."""

from pathlib import Path

import pytest

from dynamics.core.config import LoopConfig
from dynamics.core.config_file import load, with_overrides
from dynamics.core.errors import UserError


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_keys_of_a_file_go_over_those_of_its_base(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "rounds: 2\nevaluate: {best_of: [1, 2, 4], batch_size: 7}\n")
    own = write(tmp_path, "own.yaml", "base: base.yaml\nevaluate: {best_of: [1]}\n")
    cfg = load(own, ["rounds=5"])
    assert (cfg.rounds, cfg.evaluate.best_of, cfg.evaluate.batch_size) == (5, (1,), 7)


def test_a_base_may_have_a_base(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "seed: 3\n")
    write(tmp_path, "b.yaml", "base: a.yaml\nrounds: 2\n")
    cfg = load(write(tmp_path, "c.yaml", "base: b.yaml\n"))
    assert (cfg.seed, cfg.rounds) == (3, 2)


def test_a_base_that_is_missing_or_goes_round_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"none\.yaml does not exist"):
        load(write(tmp_path, "own.yaml", "base: none.yaml\n"))
    write(tmp_path, "a.yaml", "base: b.yaml\n")
    with pytest.raises(UserError, match=r"a\.yaml is its own base, by way of .*b\.yaml"):
        load(write(tmp_path, "b.yaml", "base: a.yaml\n").parent / "a.yaml")


def test_a_key_that_stands_twice_is_named_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path, "own.yaml", "seed: 3\nlabelled:\n  num_pairs: 1\n  num_pairs: 2\n")
    with pytest.raises(UserError, match=r"the key num_pairs stands twice.*line 4"):
        load(path)


def test_files_in_other_encodings_are_read_or_named(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_bytes("seed: 3\r\n".encode("utf-16"))
    assert load(path).seed == 3
    path.write_bytes("name: café\n".encode("latin-1"))
    with pytest.raises(UserError, match="unacceptable character"):
        load(path)


@pytest.mark.parametrize("text", ["? [a, b]\n: 1\n", "[" * 5000, "seed: !!python/name:os.system x"])
def test_strange_yaml_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match="is not valid YAML") as caught:
        load(path)
    assert "\n" not in str(caught.value)


def test_an_error_blames_the_command_line_or_the_file_whichever_made_it(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("rounds: 2\n")
    with pytest.raises(UserError, match=r"^command line: rounds: "):
        load(path, ["rounds=0"])
    path.write_text("rounds: 0\n")
    with pytest.raises(UserError, match=rf"^{path}: rounds: "):
        load(path, ["seed=1"])


def test_a_shipped_config_is_found_from_any_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert load("configs/liquid7b.yaml").name == "liquid7b"
    Path("configs").mkdir()
    Path("configs/liquid7b.yaml").write_text("name: mine\n")
    assert load("configs/liquid7b.yaml").name == "mine"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rounds", "'rounds' must look like section.key=value"),
        ("rounds=abc", "rounds: Input should be a valid integer"),
        ("rounds=[1", "rounds: the value is not valid YAML"),
        ("name.first=a", "name.first: name is a value, not a section"),
        ("world.gird=3", "unknown key world.gird; did you mean world.grid?"),
    ],
)
def test_a_mistake_on_the_command_line_blames_it_and_names_the_key_once(
    tmp_path: Path, override: str, said: str
) -> None:
    path = write(tmp_path, "own.yaml", "name: mine\n")
    for refused in (load, lambda _, typed: with_overrides(LoopConfig(), typed)):
        with pytest.raises(UserError) as caught:
            refused(path, ["seed=1", override])
        assert str(caught.value).startswith(f"command line: {said}")
