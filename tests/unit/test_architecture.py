"""The layer rule, the light imports and the shipped configs, checked on the real files."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.config_file import load

ROOT = REPOSITORY_ROOT
ABOVE_THE_CORE = {"ray", "mlflow", "deepspeed", "ray_jobs"}
HEAVY = {"torch", "transformers", "peft", "av", "ray", "mlflow"}
TABLES = {"pyarrow", "pandas"}


def modules() -> list[str]:
    files = sorted((ROOT / "dynamics").rglob("*.py"))
    return [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]


def imported_by(*names: str, among: set[str], arguments: tuple[str, ...] = ()) -> set[str]:
    """Which of the top-level packages a fresh interpreter holds after importing the modules.

    With ``arguments`` the `dynamics` command of the last module has run.
    """
    lines = [
        "import atexit, sys",
        "atexit.register(lambda: print(*{name.partition('.')[0] for name in sys.modules}))",
        *(f"import {name.removesuffix('.__init__')}" for name in names),
        *([f"{names[-1]}.main()"] if arguments else []),
    ]
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return among & set(done.stdout.splitlines()[-1].split())


def test_the_core_imports_neither_ray_nor_mlflow_nor_deepspeed():
    assert not imported_by(*modules(), among=ABOVE_THE_CORE)


def test_the_commands_import_nothing_heavy_before_they_parse():
    assert not imported_by("dynamics.cli.start", among=HEAVY | TABLES, arguments=("--help",))
    assert not imported_by("ray_jobs.bootstrap", among=HEAVY)


def test_the_proxy_of_the_service_loads_no_model_code():
    assert not imported_by("dynamics.serving.http.proxy_limit", among={"torch", "transformers"})


RUN_CONFIGS = [path for path in (ROOT / "configs").glob("*.yaml") if path.stem != "serve"]


@pytest.mark.parametrize("path", sorted(RUN_CONFIGS), ids=lambda p: p.stem)
def test_every_shipped_config_is_valid(path):
    cfg = load(path)
    assert cfg.name == path.stem
    # What is not shipped has published sizes, so that the run can be planned before the download,
    # or is made by `dynamics pretrain`.
    if str(cfg.model.base) == f"runs/{cfg.name}-base":
        return
    published = ROOT / "dynamics" / "assets" / "published" / f"{cfg.base_path().name}.json"
    assert cfg.base_path().is_dir() or published.is_file()


def test_every_dependency_is_pinned_within_its_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    pins = {name.lower().replace("_", "-"): version for name, version in pins.items()}
    extras = project["optional-dependencies"]
    for text in [*project["dependencies"], *extras["dev"], *extras["docs"], *extras["gym"]]:
        wanted = Requirement(text)
        assert wanted.specifier.contains(pins[wanted.name.lower()]), text


def test_ci_runs_the_tests_that_the_readme_names():
    assert re.search(r"^make test$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    assert "make test" in (ROOT / "README.md").read_text()


def test_tests_reach_the_shared_folder_through_one_fixture():
    named = re.compile(r"""(\.\./|["'])shared["'/]""")
    readers = [file for file in (ROOT / "tests").rglob("*.py") if named.search(file.read_text())]
    assert readers == [ROOT / "tests" / "conftest.py"]


def test_the_readme_shows_the_tree_that_is_there():
    tree = (ROOT / "README.md").read_text().partition("## Where things are")[2].split("```")[1]
    folder, shown = "", set()
    for line in tree.strip().splitlines():
        name = line.split()[0]
        folder = folder if line.startswith(" ") else name
        shown.add(name if name == folder else folder + name)
    assert not [path for path in shown if not (ROOT / path).exists()]
    packages = {f"dynamics/{file.parent.name}/" for file in ROOT.glob("dynamics/*/__init__.py")}
    assert packages <= shown


def test_readme_and_design_show_the_floors_of_the_contract():
    (contract,) = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    floors = {
        room.strip().removeprefix("dynamics."): number
        for number, layer in enumerate(reversed(contract["layers"]), start=1)
        for room in layer.split("|")
    }
    tree = (ROOT / "README.md").read_text().partition("## Where things are")[2].split("```")[1]
    shown = re.findall(r"^ *(\w+)(?:/|\.py) +(\d) ", tree, re.MULTILINE)
    assert {name: int(number) for name, number in shown} == floors
    picture = (ROOT / "docs" / "DESIGN.md").read_text().partition("## Nine floors")[2]
    drawn = {
        name: int(line[0])
        for line in picture.split("```")[1].strip().splitlines()
        for name in re.findall(r"(\w+)(?:/|\.py)", line)
    }
    assert {name: number for name, number in drawn.items() if name != "benchmarks"} == floors


def test_pre_commit_clones_no_repository():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    assert {source["repo"] for source in hooks["repos"]} == {"local"}


def test_the_workflow_of_a_public_host_runs_the_same_and_the_templates_are_forms():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    steps = [step.get("run") for step in workflow["jobs"]["test"]["steps"]]
    assert steps[-1] == "make test"
    for form in (ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml"):
        assert {"name", "description", "body"} <= set(yaml.safe_load(form.read_text()))


def test_version_changelog_and_citation_agree():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == version
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert f"## {version} ({citation['date-released']})" in changelog
