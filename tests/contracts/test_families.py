"""What every family must do, on a tiny checkpoint of its real class in the published layout."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from transformers.cache_utils import DynamicCache

from dynamics.core.config import LoraConfig, ModelConfig, TrainConfig
from dynamics.core.errors import UserError
from dynamics.core.records import TRANSITION_SCHEMA
from dynamics.core.registry import imported
from dynamics.inference.decode import DynamicCacheDecoder
from dynamics.inference.decoder import DECODERS, Decoder
from dynamics.inference.fdp import ForwardDynamics
from dynamics.inference.idm import InverseDynamics
from dynamics.inference.load import load_fdp, load_idm, load_pair, model_ref
from dynamics.inference.sampling import SamplingParams
from dynamics.models import FAMILIES, load_image_tokenizer, load_model
from dynamics.models.image_tokenizer import ImageTokenizer
from dynamics.models.stack import Stack, has_stack
from dynamics.models.tokens import IGNORE
from dynamics.models.vlm import UnifiedVLM
from dynamics.storage.pairs import write_pairs
from dynamics.training.backend import PlainEngine
from dynamics.training.batches import Batches, FitJob
from dynamics.training.fit import fit_adapter
from dynamics.training.loss import RowLoss, Task
from dynamics.training.objectives import objective
from dynamics.training.trainable import stack_of, trainable_model, trainable_parameters
from tests.contracts.checkpoints import CASES, Case

ACTIONS = ["push the red ring left", "remove the blue cross"]


@dataclass(frozen=True)
class Built:
    """A case's folder, and its model as loaded once for the tests that only read."""

    case: Case
    base: Path
    model: UnifiedVLM

    @property
    def family(self) -> str:
        return self.case.family

    def codes(self, num: int = 2, seed: int = 0) -> np.ndarray:
        images = self.model.images
        rng = np.random.default_rng(seed)
        return rng.integers(0, images.num_codes, size=(num, images.num_tokens))


@pytest.fixture(scope="module", params=CASES)
def built(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Built:
    case: Case = CASES[request.param]
    base = tmp_path_factory.mktemp(request.param)
    case.build(base)
    return Built(case, base, load_model(case.family, base))


def test_every_family_has_a_checkpoint_here_and_can_be_configured() -> None:
    assert {case.family for case in CASES.values()} == set(FAMILIES)
    for family in FAMILIES:
        assert ModelConfig(family=family).family == family


def test_frames_survive_as_codes_in_shape_and_type(built: Built) -> None:
    images = load_image_tokenizer(built.family, built.base)
    assert isinstance(images, ImageTokenizer)
    size = (images.frame_px, images.frame_px, 3)
    frames = np.random.default_rng(0).integers(0, 256, size=(5, *size), dtype=np.uint8)
    codes = images.encode(frames)
    assert codes.dtype == np.int64
    assert codes.shape == (5, images.num_tokens)
    assert codes.min() >= 0
    assert codes.max() < images.num_codes
    decoded = images.decode(codes)
    assert decoded.dtype == np.uint8
    assert decoded.shape == frames.shape
    again, features = images.encode_with_features(frames)
    assert np.array_equal(again, codes)
    assert features.dtype == np.float32
    assert features.shape[:2] == codes.shape
    assert np.isfinite(features).all()


def test_a_frame_has_the_same_codes_and_features_alone_and_in_company(built: Built) -> None:
    images = load_image_tokenizer(built.family, built.base)
    size = (images.frame_px, images.frame_px, 3)
    frames = np.random.default_rng(0).integers(0, 256, size=(19, *size), dtype=np.uint8)
    codes, features = images.encode_with_features(frames)
    for start, stop in ((0, 1), (1, 8), (8, 19)):
        alone = images.encode_with_features(frames[start:stop])
        assert np.array_equal(alone[0], codes[start:stop])
        assert np.array_equal(alone[1], features[start:stop])


def test_an_encoder_in_half_precision_gives_float32_features_of_nearly_the_same_codes(
    built: Built,
) -> None:
    images = load_image_tokenizer(built.family, built.base)
    half = load_image_tokenizer(built.family, built.base, "cpu", "bfloat16")
    size = (images.frame_px, images.frame_px, 3)
    frames = np.random.default_rng(0).integers(0, 256, size=(2, *size), dtype=np.uint8)
    codes, features = half.encode_with_features(frames)
    assert features.dtype == np.float32
    assert np.mean(codes == images.encode(frames)) > 0.5


def test_frames_of_another_size_are_refused(built: Built) -> None:
    with pytest.raises(ValueError, match="uint8"):
        built.model.images.encode(np.zeros((1, 7, 7, 3), np.uint8))


@pytest.mark.parametrize("size", [(90, 40), (40, 90), (3, 3)])
def test_a_picture_of_any_size_becomes_a_frame(built: Built, size: tuple[int, int]) -> None:
    images = built.model.images
    frame = images.fit(Image.new("RGB", size))
    assert frame.dtype == np.uint8
    assert images.encode(frame[None]).shape == (1, images.num_tokens)


def test_every_code_has_one_id_of_its_own_and_gets_it_back(built: Built) -> None:
    tokens = built.model.tokens
    ids = tokens.image_ids
    assert len(ids) == built.model.images.num_codes
    assert len(ids.unique()) == len(ids)
    codes = built.codes()
    block = tokens.image_block(codes)
    assert (block[:, 0] == tokens.boi).all()
    assert (block[:, -1] == tokens.eoi).all()
    code_of = {int(token): code for code, token in enumerate(ids)}
    assert [[code_of[int(i)] for i in row[1:-1]] for row in block] == codes.tolist()
    text_and_control = {*tokens.special_ids, *tokens.text_ids("push the ring! 0123"), tokens.pad}
    assert not text_and_control & set(code_of)


def test_prompts_hold_their_frames_in_order_and_end_where_the_answer_begins(built: Built) -> None:
    tokens, source, target = built.model.tokens, built.codes(), built.codes(seed=1)
    fdp, idm = tokens.fdp_prompt(source, ACTIONS), tokens.idm_prompt(source, target)
    images = torch.isin(fdp, tokens.image_ids), torch.isin(idm, tokens.image_ids)
    expected = tokens.image_ids[torch.from_numpy(source)]
    assert (fdp[images[0]].reshape(2, -1) == expected).all()
    both = torch.cat([expected, tokens.image_ids[torch.from_numpy(target)]], dim=1)
    assert (idm[images[1]].reshape(2, -1) == both).all()
    for prompt in (fdp, idm):
        lead = tokens.lead(prompt)
        for row, fillers in zip(prompt, [0, 0] if lead is None else lead, strict=True):
            assert (row[:fillers] == tokens.pad).all()
            assert row[fillers] == tokens.bos
        assert ((prompt == tokens.bos).sum(1) == 1).all()
        assert ((prompt == tokens.boi).sum(1) == 2).all()
    assert (fdp[:, -1] == tokens.boi).all()
    for row, action in zip(fdp.tolist(), ACTIONS, strict=True):
        wanted = tokens.action_ids(action)
        windows = (row[i : i + len(wanted)] for i in range(len(row)))
        assert sum(window == wanted for window in windows) == 1


def test_no_token_sees_the_fillers_before_a_shorter_prompt(built: Built) -> None:
    model, source, target = built.model, built.codes(), built.codes(seed=1)
    prompt = model.tokens.fdp_prompt(source, ACTIONS)
    lead = model.tokens.lead(prompt)
    if lead is None:
        pytest.skip("fixed offsets")
    assert lead[0] != lead[1]
    sampling = SamplingParams(num_samples=2, temperature=1.0)
    for name in DECODERS:
        decoder: Decoder = imported(DECODERS[name])(model, "fdp")
        drawn = decoder.sample_codes(prompt, sampling, [1, 2])
        given = decoder.score_codes(prompt, target)
        for row, fillers in enumerate(lead):
            bare = prompt[row : row + 1, fillers:]
            assert np.allclose(decoder.score_codes(bare, target[row : row + 1]), given[row])
            scored = decoder.score_codes(bare.expand(2, -1), drawn.codes[row])
            assert np.allclose(scored, drawn.logprobs[row], atol=1e-4)


def test_teacher_forced_rows_score_the_answer_only(built: Built) -> None:
    tokens, source, target = built.model.tokens, built.codes(), built.codes(seed=1)
    fdp = tokens.fdp_rows(source, ACTIONS, target).labels
    assert (fdp[fdp != IGNORE].reshape(2, -1) == tokens.image_ids[torch.from_numpy(target)]).all()
    for row, action in zip(tokens.idm_rows(source, target, ACTIONS).labels, ACTIONS, strict=True):
        assert row[row != IGNORE].tolist() == [*tokens.action_ids(action), tokens.eos]


def test_text_never_becomes_a_control_or_an_image_token(built: Built) -> None:
    tokens = built.model.tokens
    forbidden = tokens.special_ids | set(tokens.image_ids.tolist())
    assert {tokens.boi, tokens.eoi, tokens.bos, tokens.eos} <= tokens.special_ids
    for name in built.case.controls:
        for text in (name, f"push the {name} ring", f"push{name}{name}"):
            ids = tokens.text_ids(text)
            assert ids
            assert not forbidden & set(ids)
    assert tokens.text(tokens.text_ids(ACTIONS[0])) == ACTIONS[0]


@torch.inference_mode()
def test_hidden_states_equal_transformers_own_forward(built: Built) -> None:
    model = built.model
    ids = model.tokens.idm_rows(built.codes(), built.codes(seed=1), ACTIONS).ids
    reference = built.case.reference(model, ids)
    ours = model.logits(model.hidden(ids))
    assert ours.shape == reference.shape
    # Chameleon's forward puts the lowest number on every image token: only the rest is comparable.
    told = reference > torch.finfo(reference.dtype).min
    assert told.any()
    assert torch.isfinite(ours).all()
    assert torch.allclose(ours[told], reference[told], atol=1e-4)


@torch.inference_mode()
def test_a_cache_does_not_change_hidden_states(built: Built) -> None:
    model = built.model
    ids = model.tokens.fdp_rows(built.codes(), ACTIONS, built.codes(seed=1)).ids
    whole = model.hidden(ids)
    cache, cut = DynamicCache(), ids.shape[1] - 5
    steps = [model.hidden(ids[:, :cut], cache)]
    steps += [model.hidden(ids[:, i : i + 1], cache) for i in range(cut, ids.shape[1])]
    assert whole.shape[:2] == ids.shape
    assert torch.allclose(torch.cat(steps, dim=1), whole, atol=1e-4)


@torch.inference_mode()
def test_image_logits_are_the_image_part_of_all_logits(built: Built) -> None:
    model = built.model
    hidden = model.hidden(model.tokens.fdp_prompt(built.codes(), ACTIONS))
    image = model.image_logits(hidden)
    assert image.shape == (*hidden.shape[:2], model.images.num_codes)
    assert torch.allclose(image, model.logits(hidden)[..., model.image_ids], atol=1e-5)


@torch.inference_mode()
def test_the_laid_out_stack_computes_what_the_layers_do(built: Built) -> None:
    model = built.model
    ids = model.tokens.fdp_rows(built.codes(), ACTIONS, built.codes(seed=1)).ids
    reference = model.hidden(ids).flatten(0, 1)
    wanted = torch.tensor([3, 4, len(reference) - 1])
    assert has_stack(model.decoder)
    found = Stack(model.decoder, "default")(model.embed(ids), wanted)
    assert torch.allclose(found, reference[wanted], atol=1e-5)
    assert torch.allclose(model.hidden(ids).flatten(0, 1), reference, atol=1e-6)


@pytest.mark.parametrize("task", ["idm", "fdp"])
def test_merged_products_train_like_peft_for_20_steps(job: FitJob, task: Task) -> None:
    learns = objective("nll")
    losses = []
    for with_stack in (False, True):
        model = trainable_model(job)
        trained = list(trainable_parameters(model.network).values())
        optimizer = torch.optim.AdamW(trained, lr=1e-3)
        engine = PlainEngine(
            RowLoss(model, learns, stack_of(job, model) if with_stack else None), optimizer
        )
        rows, weights = Batches(replace(job, task=task), model, learns).batch(0)
        losses.append([])
        for _ in range(20):
            loss = engine.module(rows.ids, rows.labels, weights, task) / len(rows.ids)
            engine.backward(loss)
            engine.step()
            losses[-1].append(float(loss.detach()))
    assert losses[0][-1] < losses[0][0]
    assert np.allclose(losses[1], losses[0], rtol=1e-5, atol=1e-5)


@pytest.fixture
def job(built: Built, tmp_path: Path) -> FitJob:
    """Two steps of LoRA on two transitions."""
    rows = [
        {
            "pair_id": f"{index:032d}", "clip_sha256": "0" * 64, "clip_path": "a.mp4",
            "clip_class": "", "frame0": 0, "frame1": 1, "t0_s": 0.0, "t1_s": 1.0, "motion": 0.1,
            "source_codes": built.codes()[index].tolist(),
            "target_codes": built.codes(seed=1)[index].tolist(),
            "recognition": [1.0] * built.model.images.num_tokens, "action": action,
            "origin": "labelled",
        }
        for index, action in enumerate(ACTIONS)
    ]  # fmt: skip
    table = pa.Table.from_pylist(rows, schema=TRANSITION_SCHEMA)
    return FitJob(
        task="fdp",
        family=built.family,
        base=built.base,
        device="cpu",
        transitions=write_pairs(
            tmp_path / "rows.parts", table, TRANSITION_SCHEMA, tmp_path / "codes"
        ).path,
        steps=2,
        train=TrainConfig(
            batch_size=2, warmup_steps=0, learning_rate=1e-2, lora=LoraConfig(r=4, alpha=8)
        ),
        seed=0,
        init_from=None,
        out=tmp_path / "fdp",
        checkpoint_dir=tmp_path / "checkpoint",
    )


@pytest.mark.parametrize("task", ["fdp", "idm"])
def test_one_step_on_an_adapter_lowers_the_loss(built: Built, job: FitJob, task: Task) -> None:
    model = trainable_model(replace(job, task=task))
    trainable = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    assert not [name for name in trainable if "vqmodel" in name or "vision_model" in name]
    loss = RowLoss(model, objective("nll")).eval()
    arguments = built.codes(), ACTIONS, built.codes(seed=1)
    tokens = model.tokens
    rows = (
        tokens.fdp_rows(*arguments)
        if task == "fdp"
        else tokens.idm_rows(arguments[0], arguments[2], ACTIONS)
    )
    optimizer = torch.optim.AdamW(trainable.values(), lr=1e-2)
    before = loss(rows.ids, rows.labels, None, task)
    before.backward()
    optimizer.step()
    with torch.no_grad():
        assert loss(rows.ids, rows.labels, None, task) < before - 0.1


@pytest.mark.parametrize("task", ["fdp", "idm"])
def test_what_draws_and_what_writes_is_trained(built: Built, job: FitJob, task: Task) -> None:
    """Workers that wait for a gradient which never comes hang: a family has to say so."""
    model = trainable_model(replace(job, task=task))
    arguments = built.codes(), ACTIONS, built.codes(seed=1)
    rows = (
        model.tokens.fdp_rows(*arguments)
        if task == "fdp"
        else model.tokens.idm_rows(arguments[0], arguments[2], ACTIONS)
    )
    RowLoss(model, objective("nll"))(rows.ids, rows.labels, None, task).backward()
    trained = {name: p for name, p in model.network.named_parameters() if p.requires_grad}
    unused = [name for name, p in trained.items() if p.grad is None]
    assert not unused or model.heads_apart
    head = "generation_head" if model.heads_apart and task == "fdp" else "lm_head"
    assert any(head in name and p.grad is not None for name, p in trained.items())


def fdp_of(model: UnifiedVLM) -> ForwardDynamics:
    return ForwardDynamics(DynamicCacheDecoder(model, "fdp"), "")


def test_fitted_adapters_say_the_same_merged_and_on_a_shared_base(
    built: Built, job: FitJob, tmp_path: Path
) -> None:
    fit_adapter(job)
    fit_adapter(replace(job, task="idm", out=tmp_path / "idm"))
    ref = model_ref(built.base, tmp_path / "idm", tmp_path / "fdp")
    config = ModelConfig.model_construct(family=built.family, device="cpu", merge_adapters=True)
    idm, fdp = load_idm(ref, config), load_fdp(ref, config)
    shared_idm, shared_fdp = load_pair(ref, config.model_copy(update={"merge_adapters": False}))
    source, target = built.codes(), built.codes(seed=1)
    assert np.allclose(
        idm.action_logprobs(source, target, ACTIONS),
        shared_idm.action_logprobs(source, target, ACTIONS),
        atol=1e-3,
    )
    frames = [model.frame_logprobs(source, ACTIONS, target) for model in (fdp, shared_fdp)]
    assert np.allclose(*frames, atol=1e-3)
    untrained = fdp_of(built.model).frame_logprobs(source, ACTIONS, target)
    assert not np.allclose(frames[0], untrained, atol=3e-3)  # it is in force


def test_a_fully_fitted_checkpoint_stands_alone(built: Built, job: FitJob) -> None:
    full = job.train.model_copy(update={"method": "full", "learning_rate": 1e-3})
    folder = fit_adapter(replace(job, train=full)).adapter
    again = load_model(built.family, folder)
    frames = built.model.images.decode(built.codes())
    assert (again.images.encode(frames) == built.model.images.encode(frames)).all()
    assert (again.images.decode(built.codes()) == frames).all()
    arguments = built.codes(), ACTIONS, built.codes(seed=1)
    fitted, base = (fdp_of(model).frame_logprobs(*arguments) for model in (again, built.model))
    assert (fitted > base).all()


def test_labels_are_sentences_with_a_logprob_a_token(built: Built) -> None:
    idm = InverseDynamics(DynamicCacheDecoder(built.model, "idm"), "")
    source, target = built.codes(), built.codes(seed=1)
    captions = idm.label(source, target, max_action_tokens=6)
    sampling = SamplingParams(num_samples=3, temperature=1.0, max_tokens=6)
    sampled = idm.sample(source, target, sampling, seeds=[1, 100])
    for caption in [*captions, *(one for row in sampled for one in row)]:
        assert 1 <= len(caption.token_logprobs) <= 6
        assert max(caption.token_logprobs) <= 0
    again = idm.sample(source[1:], target[1:], sampling, seeds=[100])
    assert [c.action for c in again[0]] == [c.action for c in sampled[1]]
    scored = idm.action_logprobs(source, target, ACTIONS)
    assert scored.shape == (2,)
    assert (scored < 0).all()


def test_drawn_frames_are_valid_codes_with_their_own_logprob(built: Built) -> None:
    fdp = fdp_of(built.model)
    sampling = SamplingParams(num_samples=3, temperature=1.0)
    drawn = fdp.generate(built.codes(), ACTIONS, sampling, seeds=[1, 2])
    images = built.model.images
    assert drawn.codes.shape == (2, 3, images.num_tokens)
    assert drawn.codes.min() >= 0
    assert drawn.codes.max() < images.num_codes
    scored = fdp.frame_logprobs(built.codes(), ACTIONS, drawn.codes[:, 1])
    assert np.allclose(scored, drawn.logprobs[:, 1], atol=1e-3)
    assert images.decode(drawn.codes[:, 0]).shape == (2, images.frame_px, images.frame_px, 3)


def test_another_familys_checkpoint_is_refused_in_one_line(built: Built) -> None:
    for family in FAMILIES.keys() - {built.family}:
        for loader in (load_model, load_image_tokenizer):
            if loader is load_image_tokenizer and family == "liquid":
                continue  # it asks for the VQGAN alone, which Chameleon's folder may have too
            with pytest.raises(UserError, match=str(built.base)) as caught:
                loader(family, built.base)
            assert "\n" not in str(caught.value)


def test_a_folder_that_lacks_a_weight_is_refused_in_one_line(built: Built, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    for file in built.base.iterdir():
        if not file.name.startswith("model"):
            (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = {}
    for file in sorted(built.base.glob("model*.safetensors")):
        weights |= load_file(file)
    name = next(name for name in weights if name.endswith("mlp.up_proj.weight"))
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="up_proj") as caught:
        load_model(built.family, tmp_path)
    assert "\n" not in str(caught.value)
