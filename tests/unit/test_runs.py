"""The Python API: a finished run from a program, with the service's own answers."""

import asyncio
import json
import re
from pathlib import Path

import pytest
from PIL import Image

import dynamics
from dynamics.client.client import encode_image, to_prediction
from dynamics.core.config import REPOSITORY_ROOT
from dynamics.core.errors import UserError
from dynamics.serving.in_process import local_service
from dynamics.serving.schemas import PredictReply
from dynamics.storage.run_folder import RunFolder
from tests.runs import LocalRun
from tests.unit.test_architecture import imported_by

PICTURE = Image.new("RGB", (24, 24), "white")


@pytest.fixture(scope="module")
def run(local_run: LocalRun) -> dynamics.Run:
    return dynamics.open(local_run.folder)


@pytest.fixture(scope="module")
def model(run: dynamics.Run) -> dynamics.Round:
    return run.round()


def test_importing_the_package_and_opening_a_run_loads_no_model(local_run: LocalRun) -> None:
    assert not imported_by("dynamics", among={"torch", "numpy", "pydantic", "pyarrow"})
    assert not imported_by("dynamics.runs", among={"torch", "transformers", "av", "ray", "mlflow"})


def test_the_api_is_what_all_names() -> None:
    assert all(hasattr(dynamics, name) for name in dynamics.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        dynamics.nothing  # noqa: B018  the access is the test
    assert (Path(dynamics.__file__).parent / "py.typed").is_file()


def test_a_prediction_is_that_of_the_service(run: dynamics.Run, model: dynamics.Round) -> None:
    found = model.predict(PICTURE, "left", n=2, seed=3, candidates=True)
    service = local_service(run.config, RunFolder(run.folder))
    body = {"image": encode_image(PICTURE), "action": "left", "n": 2, "seed": 3}

    async def asked() -> bytes:
        await service.promote(model.report.round_id)
        return (await service.predict(json.dumps(body | {"candidates": True}).encode(), 60)).body

    expected = to_prediction(PredictReply.model_validate_json(asyncio.run(asked())))
    assert found == expected
    assert len(found.candidates or ()) == 2


def test_a_roll_out_has_a_frame_an_action_and_can_be_watched(
    model: dynamics.Round, tmp_path: Path
) -> None:
    episode = model.rollout(PICTURE, ["left", "up"], n=2)
    assert [step.action for step in episode.steps] == ["left", "up"]
    assert len(episode.frames) == 3
    for name in ("episode.gif", "episode.mp4"):
        episode.save(tmp_path / name, seconds=0.1)
        assert (tmp_path / name).stat().st_size > 200
    with Image.open(tmp_path / "episode.gif") as gif:
        assert gif.width >= 256
    with pytest.raises(UserError, match=r"must end in \.gif or \.mp4"):
        episode.save(tmp_path / "episode.webm")


def test_two_pictures_get_a_sentence_with_its_log_probability(model: dynamics.Round) -> None:
    reply = model.label(PICTURE, PICTURE)
    assert reply.round == model.report.round_id
    assert reply.logprob == pytest.approx(sum(reply.token_logprobs))


def test_labels_are_a_table_with_the_filters_decisions(run: dynamics.Run) -> None:
    labels = run.labels(1)
    assert labels.num_rows == 48
    assert {"pair_id", "action", "accepted", "score", "reason"} <= set(labels.column_names)
    assert len(labels.to_pandas()) == 48


def test_what_is_not_there_is_named(run: dynamics.Run, model: dynamics.Round) -> None:
    with pytest.raises(UserError, match=r"no finished round 7; finished: 0, 1"):
        run.round(7)
    with pytest.raises(UserError, match="round 0 is not committed"):
        run.labels(0)
    with pytest.raises(UserError, match=r"^n: "):
        model.predict(PICTURE, "left", n=0)
    with pytest.raises(UserError, match=r"missing\.png"):
        model.predict("missing.png", "left")


def test_the_notebook_runs_from_its_first_cell_to_its_last(
    local_run: LocalRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    notebook = json.loads((REPOSITORY_ROOT / "docs" / "tour.ipynb").read_text())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("RUN", str(local_run.folder))
    names: dict[str, object] = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            # The tiny test model knows a few words only.
            source = re.sub(r'"(remove|nudge) the [a-z ]+"', '"left"', "".join(cell["source"]))
            exec(source, names)
    assert (tmp_path / "episode.gif").is_file()
