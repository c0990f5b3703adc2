"""The service in one process, on the real models of a small run."""

import asyncio
import base64
import json
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pytest
from safetensors.numpy import load_file, save_file

from dynamics.core.config import LoopConfig
from dynamics.core.domain import load_domain
from dynamics.evaluation.heldout import results_schema
from dynamics.inference.best_of_n import best_of_n
from dynamics.inference.sampling import SamplingParams
from dynamics.serving.examples import contrast, heldout_frames
from dynamics.serving.images import to_base64
from dynamics.serving.schemas import LookReply, PredictReply, ScenesReply
from dynamics.serving.service import RoundService
from dynamics.storage.files import adapter_digest
from dynamics.storage.run_folder import RunFolder, read_json, write_json
from dynamics.storage.tables import read_table, write_table
from tests.runs import LocalRun
from tests.serving import copy_of, damage, local_service, png

T = TypeVar("T")
TIME_S = 30.0


def body(**fields: Any) -> bytes:
    return json.dumps({"image": png(), "action": "push the red ring left"} | fields).encode()


async def predict(service: RoundService, **fields: Any) -> dict[str, Any]:
    answer = await service.predict(body(**fields), TIME_S)
    return {"status": answer.status} | json.loads(answer.body)


def run(main: Awaitable[T]) -> T:
    async def inside() -> T:
        return await main

    return asyncio.run(inside())


@pytest.fixture
def copy(local_run: LocalRun, tmp_path: Path) -> RunFolder:
    return RunFolder(copy_of(local_run.folder, tmp_path / "run"))


def poison(cfg: LoopConfig, folder: RunFolder, round_id: int) -> None:
    """Weights that are no numbers, in a file whose digest is the report's."""
    adapter = folder.round(round_id) / "fdp"
    path = adapter / "adapter_model.safetensors"
    save_file({name: np.full_like(w, np.nan) for name, w in load_file(path).items()}, path)
    report = read_json(folder.round(round_id) / "report.json")
    report["models"]["fdp_digest"] = adapter_digest(cfg.base_path(), adapter)
    write_json(folder.round(round_id) / "report.json", report)


def test_answers_do_not_depend_on_company(small: LoopConfig, local_run: LocalRun) -> None:
    service = local_service(small, local_run.folder)
    asked = [
        {"seed": seed, "n": n, "temperature": t, "image": png(colour=(90 * seed) % 255)}
        for n, t in ((1, 1.0), (2, 1.0), (3, 0.7), (8, 1.0))
        for seed in range(8)
    ]

    async def main() -> None:
        await service.promote(1)
        alone = [await predict(service, **fields) for fields in asked]
        together = await asyncio.gather(*[predict(service, **fields) for fields in asked])
        assert list(together) == alone
        assert max((await service.status()).batch_sizes) > 4

    asyncio.run(main())


def test_the_answer_is_the_engines_own(small: LoopConfig, local_run: LocalRun) -> None:
    service = local_service(small, local_run.folder)

    async def main() -> None:
        await service.promote(1)
        told = PredictReply.model_validate_json((await service.predict(body(n=8), TIME_S)).body)
        worker = service._registry.get(None)
        side = worker.images.frame_px
        own = best_of_n(
            worker.encode(np.zeros((side, side, 3), np.uint8)),
            ["push the red ring left"],
            worker.inverse,
            worker.forward,
            SamplingParams(num_samples=8, temperature=1.0),
            verifier=small.serve.verifier,
            seeds=[0],
        )
        assert told.scores == own.scores[0].tolist()
        assert told.chosen == own.chosen[0]

    asyncio.run(main())


def test_pictures_of_any_origin_are_scored_alike_alone_and_in_company(
    small: LoopConfig, local_run: LocalRun
) -> None:
    service = local_service(small, local_run.folder)

    async def score(candidates: list[str], **fields: Any) -> dict[str, Any]:
        answer = await service.score(body(candidates=candidates, **fields), TIME_S)
        return {"status": answer.status} | json.loads(answer.body)

    async def main() -> None:
        await service.promote(1)
        made = await predict(service, n=4, candidates=True)
        pictures = [*made["candidates"], made["source"]]
        found = await score(pictures)
        sums = np.add(found["action_logprobs"], found["frame_logprobs"])
        assert found["scores"] == sums.tolist()
        assert found["chosen"] == np.argmax(sums)
        assert found["is_copy"][-1]
        assert found["action_logprobs"][-1] == found["action_logprob_of_copy"]
        assert (found["round"], found["fdp"]) == (1, made["fdp"])
        named = await score(pictures, verifier="idm")
        assert named["scores"] == found["action_logprobs"]
        alone = await asyncio.gather(*[score([one]) for one in pictures])
        assert [one["scores"][0] for one in alone] == found["scores"]
        for wrong in ([], [png()] * 17, ["no picture"]):
            assert (await score(wrong))["status"] == 422

    asyncio.run(main())


@pytest.mark.parametrize("kind", ["damaged", "not numbers", "gone"])
def test_a_bad_round_is_refused_and_the_old_one_goes_on(
    small: LoopConfig, copy: RunFolder, kind: str
) -> None:
    service = local_service(small, copy.root)

    async def main() -> None:
        assert await service.promote(0)
        if kind == "damaged":
            damage(copy.round(1) / "idm")
        elif kind == "not numbers":
            poison(small, copy, 1)
        else:
            for path in (copy.round(1) / "fdp").iterdir():
                path.unlink()
        assert not await service.promote(1)
        status = await service.status()
        assert status.promoted == 0
        reason = "NaN or above 0" if kind == "not numbers" else "is not what its report names"
        assert status.refused is not None
        assert status.refused.startswith("round 1 is refused: ")
        assert reason in status.refused
        assert (await predict(service))["round"] == 0

    asyncio.run(main())


def test_a_replica_that_starts_with_a_bad_round_takes_the_newest_good_one(
    small: LoopConfig, copy: RunFolder
) -> None:
    damage(copy.round(1) / "fdp")
    service = local_service(small, copy.root)

    async def main() -> None:
        assert (await predict(service))["status"] == 503
        assert not await service.promote(1)
        assert (await service.status()).promoted == 0
        damage(copy.round(0) / "fdp")
        nothing = local_service(small, copy.root)
        assert not await nothing.promote(1)
        assert (await nothing.status()).promoted is None

    asyncio.run(main())


def test_other_rounds_are_loaded_on_demand_and_two_stay_in_memory(
    small: LoopConfig, copy: RunFolder
) -> None:
    for number in (2, 3):  # more rounds with the same models
        report = read_json(copy.round(1) / "report.json")
        write_json(copy.round(number) / "report.json", report | {"round_id": number})
    service = local_service(small, copy.root)

    async def main() -> None:
        await service.promote(3)
        for number in (0, 1, 2, 0):
            assert (await predict(service, round=number))["round"] == number
            assert (await predict(service))["round"] == 3
            assert set(service._registry._loaded) == {3, number}
        assert (await predict(service, round=4))["detail"] == (
            "round 4 is not served; rounds: 0, 1, 2, 3"
        )
        models = json.loads((await service.models()).body)
        assert [r["round"] for r in models["rounds"] if r["promoted"]] == [3]

    asyncio.run(main())


@pytest.mark.parametrize("text", ["<boi>", "<image> push </s>", "IMGIMGA", "<pad><pad>"])
def test_strings_of_special_tokens_stay_text(
    small: LoopConfig, local_run: LocalRun, text: str
) -> None:
    service = local_service(small, local_run.folder)

    async def main() -> None:
        await service.promote(1)
        tokens = service._registry.get(None).forward.tokens
        assert not set(tokens.text_ids(text)) & (
            tokens.special_ids | set(tokens.image_ids.tolist())
        )
        assert (await predict(service, action=text))["status"] in (200, 422)

    asyncio.run(main())


def test_a_request_that_waits_too_long_is_told_so(small: LoopConfig, local_run: LocalRun) -> None:
    service = local_service(small, local_run.folder)

    async def main() -> None:
        await service.promote(1)
        late = await service.predict(body(), -1.0)
        assert late.status == 503
        assert "within the time limit" in late.body
        events = [e async for e in service.rollout(rollout_body(), -1.0)]
        assert [event.name for event in events] == ["start", "error"]

    asyncio.run(main())


def rollout_body(**fields: Any) -> bytes:
    return json.dumps({"image": png(), "actions": ["push the red ring left"] * 2} | fields).encode()


def test_a_longer_roll_out_begins_with_the_same_steps(
    small: LoopConfig, local_run: LocalRun
) -> None:
    service = local_service(small, local_run.folder)

    async def told(num_steps: int) -> list[str]:
        actions = ["push the red ring left", "remove the blue cross", "swap the red ring"][
            :num_steps
        ]
        request = rollout_body(actions=actions, beam=3, n=4)
        return [event.body async for event in service.rollout(request, TIME_S)]

    async def main() -> None:
        await service.promote(1)
        assert (await told(2))[1:3] == (await told(3))[1:3]

    asyncio.run(main())


def test_bad_pictures_and_sentences_are_one_line(small: LoopConfig, local_run: LocalRun) -> None:
    service = local_service(small, local_run.folder)

    async def main() -> None:
        await service.promote(1)
        text = base64.b64encode(b"no picture").decode()
        assert (await predict(service, image=text))["detail"].startswith("the picture is no PNG")
        assert "tokens" in (await predict(service, action="push " * 50))["detail"]
        unknown = await predict(service, action="push the red rign left")
        assert unknown["status"] == 422
        assert "know the word 'rign'" in unknown["detail"]
        assert unknown["detail"].endswith("knows is 'ring'")
        (event,) = [e async for e in service.rollout(rollout_body(actions=["a " * 200]), TIME_S)]
        assert (event.name, event.status) == ("error", 422)

    asyncio.run(main())


def test_a_picture_is_judged_by_what_held_out_frames_lose(
    small: LoopConfig, local_run: LocalRun
) -> None:
    service, run = local_service(small, local_run.folder), RunFolder(local_run.folder)

    async def look(image: str) -> LookReply:
        answer = await service.look(json.dumps({"image": image}).encode(), TIME_S)
        return LookReply.model_validate_json(answer.body)

    async def main() -> None:
        await service.promote(1)
        worker = service._registry.get(None)
        frames = heldout_frames(small, load_domain(small), run, worker.images)
        errors = [float(np.abs(worker.look(one).astype(float) - one).mean()) for one in frames]
        reply = await look(to_base64(frames[0]))
        assert (reply.error, reply.limit) == (errors[0], max(errors))
        assert reply.source == to_base64(frames[0])
        assert reply.seen == to_base64(worker.look(frames[0]))
        assert (await look(png(colour=99))).limit == reply.limit

    asyncio.run(main())


def test_the_contrast_is_the_first_pair_that_a_later_round_gained(
    small: LoopConfig, copy: RunFolder
) -> None:
    schema = results_schema(small.evaluate.best_of)
    success = {0: [True, False, False, None], 1: [False, False, True, True]}
    for number, values in success.items():
        table = read_table(copy.results(number), schema)
        values = [*values, *[None] * (len(table) - 4)]
        column = pa.array(values, pa.bool_())
        at = table.schema.get_field_index("fdp_greedy_success")
        write_table(copy.results(number), table.set_column(at, schema.field(at), column), schema)
    found = contrast(small, copy, 0, 1)
    assert found is not None
    assert (found.num_pairs, found.num_gained, found.num_lost) == (3, 1, 1)
    third = read_table(copy.results(0), schema).slice(2, 1).to_pylist()[0]
    assert found.action == third["action"]
    assert found.codes[2].tolist() == third["greedy_codes"]
    assert contrast(small, copy, 1, 1) is None
    service = local_service(small, copy.root)

    async def main() -> None:
        await service.promote(1)
        shown = ScenesReply.model_validate_json((await service.scenes()).body).contrast
        assert shown is not None
        assert (shown.action, [*shown.drawn]) == (found.action, [0, 1])
        frames = map(service._registry.get(None).decode, found.codes)
        pictures = [shown.source, shown.target, *shown.drawn.values()]
        assert pictures == list(map(to_base64, frames))

    asyncio.run(main())


def test_unknown_words_come_with_the_nearest_known_one(
    small: LoopConfig, local_run: LocalRun
) -> None:
    service = local_service(small, local_run.folder)

    async def main() -> None:
        await service.promote(1)
        answer = await service.words(b'{"action": "push the red rinng left"}', TIME_S)
        assert json.loads(answer.body) == {"unknown": {"rinng": "ring"}}

    asyncio.run(main())
