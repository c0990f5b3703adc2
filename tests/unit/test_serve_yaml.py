"""configs/serve.yaml against Ray's own schema, and the application that it names."""

from pathlib import Path

import pytest
import yaml

from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.errors import UserError
from tests.runs import LocalRun

CONFIG = REPOSITORY_ROOT / "configs" / "serve.yaml"


def test_it_is_a_valid_serve_config_on_loopback() -> None:
    from ray.serve.schema import ServeDeploySchema

    from ray_jobs.serving.ingress import AppArgs

    schema = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = schema.applications
    assert application.import_path == "ray_jobs.serving.ingress:app"
    assert schema.http_options.host == "127.0.0.1"
    AppArgs.model_validate(application.args)


def test_its_application_has_the_layout_that_the_overrides_ask_for(local_run: LocalRun) -> None:
    from ray_jobs.serving.ingress import AppArgs, app

    def deployments(*overrides: str) -> list[str]:
        graph = app(AppArgs(run=local_run.folder, overrides=list(overrides)))
        found, names = [graph._bound_deployment], []
        while found:
            deployment = found.pop()
            names.append(deployment.name)
            found += [
                argument._bound_deployment
                for argument in deployment.init_args
                if hasattr(argument, "_bound_deployment")
            ]
        return names

    apart = "serve.ingress_replicas=1"
    assert deployments() == ["Generator"]
    assert deployments("serve.verifier_replicas=2") == ["Generator", "Verifier"]
    assert deployments(apart) == ["Ingress", "Generator"]
    assert deployments(apart, "serve.verifier_replicas=2") == ["Ingress", "Generator", "Verifier"]
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    assert {entry["name"] for entry in application["deployments"]} <= set(deployments())


def test_a_folder_without_a_run_is_one_line(tmp_path: Path) -> None:
    from ray_jobs.serving.ingress import AppArgs, app

    with pytest.raises(UserError, match="holds no run"):
        app(AppArgs(run=tmp_path))
