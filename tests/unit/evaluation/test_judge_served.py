"""A real vision model behind a real `transformers serve` as the judge.

The model is built here, of the smallest size, and learns one reply by heart: what is tested is the
whole way from pictures to scores, not anybody's taste.
"""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from dynamics.core.progress import silent
from dynamics.evaluation.judge.client import Budget, ChatClient, Endpoint
from dynamics.evaluation.judge.judge import Case, ReplyStore, judge
from dynamics.evaluation.judge.protocol import prompt_text

pytestmark = pytest.mark.slow

REPLY = '{"score": [3, 7], "reasoning": "seen"}'
INSTRUCTION = "make it red"
PICTURES = (Image.new("RGB", (60, 40), "black"), Image.new("RGB", (60, 40), "green"))
TEMPLATE = (
    "{% for m in messages %}{% for c in m['content'] %}"
    "{% if c['type'] == 'image' %}<image> {% else %}{{ c['text'] }} {% endif %}"
    "{% endfor %}{% endfor %}"
)


def build_processor() -> LlavaProcessor:
    words = ["<pad>", "<eos>", "<unk>", "<image>", REPLY]
    words = list(dict.fromkeys([*words, *prompt_text(INSTRUCTION).split()]))
    tokenizer = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, "<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return LlavaProcessor(
        CLIPImageProcessorPil(
            size={"height": 28, "width": 28}, crop_size={"height": 28, "width": 28}
        ),
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            pad_token="<pad>",
            eos_token="<eos>",
            unk_token="<unk>",
            additional_special_tokens=["<image>"],
        ),
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=TEMPLATE,
        num_additional_image_tokens=1,
    )


def save_judge(folder: Path) -> None:
    """A LLaVA of two small layers that answers REPLY to the prompt."""
    torch.manual_seed(0)
    processor = build_processor()
    tokenizer = processor.tokenizer
    small = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    model = LlavaForConditionalGeneration(
        LlavaConfig(
            vision_config=CLIPVisionConfig(**small, image_size=28, patch_size=14),
            text_config=LlamaConfig(
                **small,
                vocab_size=len(tokenizer),
                bos_token_id=None,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                max_position_embeddings=1024,
            ),
            image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
            vision_feature_layer=-1,
        )
    )
    content = [{"type": "text", "text": prompt_text(INSTRUCTION)}, *[{"type": "image"}] * 2]
    chat = processor.apply_chat_template([{"role": "user", "content": content}])
    batch = processor(text=chat, images=list(PICTURES), return_tensors="pt")
    answer = torch.tensor([[tokenizer.convert_tokens_to_ids(REPLY), tokenizer.eos_token_id]])
    ids = torch.cat([batch["input_ids"], answer], dim=1)
    labels = ids.clone()
    labels[:, :-2] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(60):
        output = model(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            pixel_values=batch["pixel_values"],
            labels=labels,
        )
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
    model.eval().save_pretrained(folder)
    processor.save_pretrained(folder)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """Base URL and model folder of a running server."""
    folder = tmp_path_factory.mktemp("judge-model")
    save_judge(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = Path(sys.executable).with_name("transformers")
    arguments = [
        "serve",
        str(folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    with (tmp_path_factory.mktemp("log") / "serve.log").open("w+") as log:
        server = subprocess.Popen(
            [command, *arguments],
            stdout=log,
            stderr=log,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )
        try:
            await_health(f"http://127.0.0.1:{port}/health", server, Path(log.name))
            yield f"http://127.0.0.1:{port}/v1", folder
        finally:
            server.terminate()
            server.wait(30)


def await_health(url: str, server: "subprocess.Popen[bytes]", log: Path) -> None:
    for _ in range(240):
        assert server.poll() is None, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.5)
    raise AssertionError(log.read_text())


def test_a_served_vision_model_judges_an_edit(served, tmp_path):
    url, folder = served
    case = Case(item_id="one", subset="ag", instruction=INSTRUCTION, pictures=lambda: PICTURES)
    endpoint = Endpoint(url=url, model=str(folder), timeout_s=120)
    budget = Budget(left=1)
    with ChatClient(endpoint, None, budget) as client:
        store = ReplyStore(folder=tmp_path, model=endpoint.model)
        (found,) = judge([case], client, store, silent)
    assert (found.outcome, budget.spent) == ("judged", 1)
    assert found.verdict is not None
    assert (found.verdict.success, found.verdict.restraint, found.verdict.score) == (3, 7, 3)
