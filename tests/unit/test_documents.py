"""The commands, programs and links of every document, against what there is.

What the commands do has tests of its own; here each line is parsed as it would be by its program,
and those of the README that no other test runs are run.
"""

import ast
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

import pytest
import typer
from typer.testing import CliRunner

import dynamics
from dynamics.cli.main import app
from dynamics.client import Client
from dynamics.core.config import REPOSITORY_ROOT as ROOT
from dynamics.core.config_file import parse_yaml, validate
from ray_jobs.bootstrap import parser
from tests.fake_service import Behaviour, build, running
from tests.runs import LocalRun
from tests.unit.test_cluster_yaml import validated

NAMES = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md")
DOCUMENTS = [*(ROOT / name for name in NAMES), *sorted((ROOT / "docs").rglob("*.md"))]
OWN = {"dynamics", "make", "python", "pip", "pytest", "ruff", "lint-imports", "mlflow", "ray"}
OTHERS = {"curl", "docker", "export", "kubectl", "prometheus", "sbatch", "scancel", "tail", "."}
OTHERS |= {"moto_server"}
TUTORIAL = "integration/test_tutorial.py::test_every_command_of_the_tutorial_runs"
DOCTOR = "unit/cli/test_main.py::test_doctor_is_content_with_this_environment"
BENCH = (
    "unit/evaluation/aurora_bench/test_run.py"
    "::test_a_model_is_measured_once_and_judged_within_the_budget"
)
CONTROLS = (
    "unit/evaluation/test_real_models.py::test_controls_leave_adapters_evaluations_and_a_report"
)
STUDY = "unit/studies/test_runner.py::test_every_experiment_of_the_plan_leaves_its_mark"
MLFLOW = "integration/test_readme.py::test_mlflow_opens_the_page_that_a_run_names"
JOB = "integration/test_readme.py::test_a_job_of_the_own_cluster_makes_a_run"
RAY_UP = "unit/test_cluster_yaml.py::test_ray_hands_the_images_name_to_ec2_as_it_is"
DECODER = "integration/test_readme.py::test_a_decoder_of_the_published_sizes_is_converted"
LABELS = "integration/test_readme.py::test_labels_are_measured_beside_transformers"
ELSEWHERE = {
    "make bootstrap": MLFLOW,
    "make test": "runs all tests",
    "make serve": TUTORIAL,
    "dynamics doctor": DOCTOR,
    "dynamics serve runs/tabletop": TUTORIAL,
    "dynamics ingest CLIPS --sheet pairs.html": TUTORIAL,
    "dynamics annotate CLIPS --out labels.parquet": TUTORIAL,
    "dynamics new mine --videos CLIPS --labels labels.parquet": TUTORIAL,
    "dynamics pretrain mine": TUTORIAL,
    "dynamics check mine": TUTORIAL,
    "dynamics bootstrap --config configs/mine.yaml": TUTORIAL,
    "dynamics convert-vqgan vqgan.ckpt CHECKPOINT": DECODER,
    "dynamics evaluate aurora-bench --data AURORA --model runs/chameleon7b": BENCH,
    ". .venv/bin/activate": JOB,
    "export RAY_AUTH_MODE=token": JOB,
    "ray get-auth-token --generate": JOB,
    "ray start --head --num-cpus 8": JOB,
    "ray job submit --working-dir . -- python ray_jobs/bootstrap.py --rounds 3": JOB,
    "ray up cluster.yaml": RAY_UP,
    "mlflow ui --backend-store-uri sqlite:///$PWD/runs/tabletop/mlflow.db --port 5000": MLFLOW,
    "dynamics evaluate runs/tabletop --controls": CONTROLS,
    "dynamics study --quick": STUDY,
    "python -m benchmarks label": LABELS,
    "curl -N -H content-type: application/json -d @runs/tabletop/example-rollout.json "
    "http://127.0.0.1:8000/v1/rollouts": TUTORIAL,
}
"""Commands of the README that are not run here: the test that runs them, or their like, small."""
MADE = {f"reference/{name}.md" for name in ("commands", "config", "glossary", "http", "python")}
"""Pages of the site that deploy/site/hooks.py makes."""


def blocks(document: Path, language: str) -> list[str]:
    found = re.findall(r"^ *```(\w+)\n(.*?)^ *```", document.read_text(), re.DOTALL | re.MULTILINE)
    return [block for name, block in found if name == language]


def commands(document: Path) -> Iterator[list[str]]:
    for block in blocks(document, "sh"):
        for line in block.replace("\\\n", "").splitlines():
            words = shlex.split(line, comments=True)
            for joined, command in groupby(words, lambda word: word == "&&"):
                if not joined:
                    first, *rest = command
                    yield [first.removeprefix(".venv/bin/"), *rest]


COMMANDS = [command for document in DOCUMENTS for command in commands(document)]


def test_every_command_is_of_a_known_kind() -> None:
    assert {command[0] for command in COMMANDS} <= OWN | OTHERS


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_dynamics_command_is_understood(document: Path) -> None:
    for command in commands(document):
        if command[0] != "dynamics" or command[1].startswith("-"):
            continue
        _, verb, *arguments = command
        if verb == "bootstrap":
            parser().parse_intermixed_args(arguments)
            continue
        found = typer.main.get_command(app).commands[verb]  # type: ignore[attr-defined]
        if verb == "evaluate":
            named = arguments[0] in found.commands
            found = found.commands[arguments[0] if named else "run"]
            arguments = arguments[named:]
        found.make_context(verb, arguments)


def test_every_make_target_and_program_is_there() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for command in COMMANDS:
        if command[0] == "make":
            assert re.search(rf"^{command[1]}:", makefile, re.MULTILINE), command
        if "ray_jobs/bootstrap.py" in command:
            at = command.index("ray_jobs/bootstrap.py")
            parser().parse_intermixed_args(command[at + 1 :])
        if command[:2] == ["python", "-m"] and (ROOT / command[2]).is_dir():
            assert (ROOT / command[2] / f"{command[3]}.py").is_file()
        for word in command:
            if re.fullmatch(r"(configs|deploy|tests)/[\w/.-]+", word) and "my-" not in word:
                assert (ROOT / word).exists() or word == "configs/mine.yaml", command


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_yaml_block_is_a_config_or_a_cluster_that_ray_takes(document: Path) -> None:
    for block in blocks(document, "yaml"):
        tree = parse_yaml(block)
        if "cluster_name" in tree:
            validated(tree)
        else:
            validate(tree, where=document.name)


@pytest.mark.skipif(
    importlib.util.find_spec("mkdocs") is None, reason="`make docs` installs mkdocs"
)
def test_the_site_builds_without_a_warning_and_names_the_python_api(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", tmp_path]
    quiet = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(build, cwd=ROOT, env=quiet, capture_output=True, text=True)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")
    pages = {page: page.read_text() for page in tmp_path.rglob("*.html")}
    assert not [page for page, text in pages.items() if "::: dynamics" in text]
    made = {name: pages[tmp_path / name.removesuffix(".md") / "index.html"] for name in MADE}
    named = set(re.findall(r'id="(dynamics[\w.]*)"', made["reference/python.md"]))
    assert {f"dynamics.{name}" for name in dynamics.__all__} <= named
    assert {"dynamics.client.Client", "dynamics.client.gym_env.RolloutEnv"} <= named
    assert "<td>a sentence that the IDM wrote" in made["reference/glossary.md"]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.stem)
def test_every_program_compiles_and_every_link_leads_somewhere(document: Path) -> None:
    for block in blocks(document, "python"):
        ast.parse(block)
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if re.match(r"\w+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = (document.parent / name).resolve() if name else document
        if target.is_relative_to(ROOT / "docs") and str(target.relative_to(ROOT / "docs")) in MADE:
            continue
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target), link


def anchors(document: Path) -> set[str]:
    """Of the headings, as GitHub and the site make them."""
    headings = re.findall(r"^#+ (.+)$", document.read_text(), re.MULTILINE)
    plain = (re.sub(r"[^\w\s-]", "", heading.lower()).strip() for heading in headings)
    return {re.sub(r"\s", "-", heading) for heading in plain}


def test_the_picture_above_the_fold_is_small() -> None:
    assert (ROOT / "docs" / "rollout.gif").stat().st_size < 1_000_000


def test_every_command_of_the_readme_has_a_test_that_runs_it() -> None:
    lines = [" ".join(command) for command in commands(ROOT / "README.md")]
    assert set(ELSEWHERE) <= set(lines)
    unclaimed = {line for line in lines if line not in ELSEWHERE}
    assert all(line.startswith("dynamics ") for line in unclaimed), unclaimed  # the test below
    for place in set(ELSEWHERE.values()) - {"runs all tests"}:
        file, _, name = place.partition("::")
        assert f"def {name}(" in (ROOT / "tests" / file).read_text()


def test_every_command_of_the_readme_about_a_finished_run_runs(
    local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("tabletop", "other"):
        shutil.copytree(local_run.folder, tmp_path / "runs" / name)
    for line in map(" ".join, commands(ROOT / "README.md")):
        if line not in ELSEWHERE:
            done = CliRunner().invoke(app, line.split()[1:])
            assert done.exit_code == 0, (line, done.output)
    assert (tmp_path / "runs/tabletop/versus-other.html").is_file()


def test_every_program_of_the_readme_runs(
    local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs/tabletop").symlink_to(local_run.folder)
    with running(build(Behaviour())) as url:
        with Client(url) as client:
            scene = client.scenes()[0]
        for name in ("table", "before", "after"):
            scene.image.save(f"{name}.png")
        for block in blocks(ROOT / "README.md", "python"):
            # The run of the tests has fewer rounds and words.
            action = "left" if "dynamics.open" in block else scene.actions[0]
            program = block.replace("http://127.0.0.1:8000", url).replace("(3)", "(1)")
            exec(re.sub(r'"(remove|nudge) the [a-z ]+"', repr(action), program), {})
    assert (tmp_path / "episode.gif").is_file()
    assert (tmp_path / "step-0.png").is_file()
