"""Prompts are encoded once: how often the encoder runs, what it gives, and where it stays."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict, set_peft_model_state_dict

from draft_core import DifferentiableSampler, StepPlan
from draft_core.adapters.lora import adapters_off, adapters_scaled
from draft_core.plan import Renoising
from draft_core.recipe.load import load_recipe
from draft_core.runs.build import build
from draft_core.sampling.prompt_cache import PromptEmbeddingCache, remember_prompts
from tests.support.families import FAMILIES
from tests.support.tiny import GOOD, PROMPTS, byte_tokenizer, tiny_catalog, tiny_pipe


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def counted(encoder: torch.nn.Module) -> list[int]:
    """Rows of each forward pass through the encoder's first layer, from now on."""
    rows: list[int] = []
    embedding = next(module for module in encoder.modules() if isinstance(module, torch.nn.Embedding))
    embedding.register_forward_hook(lambda module, args, output: rows.append(len(args[0])))
    return rows


def images(pipe: Any, prompts: list[str]) -> torch.Tensor:
    return pipe(
        prompts,
        num_inference_steps=2,
        guidance_scale=4.0,
        output_type="pt",
        generator=torch.Generator().manual_seed(1),
    ).images


def test_one_prompt_gives_the_plain_image_in_every_bit(tokenizer: Any) -> None:
    plain, remembering = tiny_pipe(tokenizer=tokenizer), tiny_pipe(tokenizer=tokenizer)
    remember_prompts(remembering)
    for _ in range(2):  # the second time from memory
        assert torch.equal(images(remembering, PROMPTS[:1]), images(plain, PROMPTS[:1]))


def test_a_batch_gives_the_plain_images(tokenizer: Any) -> None:
    plain, remembering = tiny_pipe(tokenizer=tokenizer), tiny_pipe(tokenizer=tokenizer)
    remember_prompts(remembering)
    torch.testing.assert_close(images(remembering, PROMPTS), images(plain, PROMPTS), rtol=1e-4, atol=1e-5)
    swapped = PROMPTS[::-1]
    torch.testing.assert_close(images(remembering, swapped), images(plain, swapped), rtol=1e-4, atol=1e-5)


def test_an_encoder_runs_once_for_each_distinct_prompt_over_several_updates(tmp_path: Path) -> None:
    catalog = tiny_catalog(tmp_path)
    given = {**GOOD, "model": {**GOOD["model"], "remember_prompts": True}, "train": {"steps": 4, "batch_size": 3}}
    trainer = build(load_recipe({**given, "device": "cpu"}, catalog=catalog), catalog=catalog)
    rows = counted(trainer.sampler.pipe.text_encoder)
    assert trainer.sampler.steps == 3  # encodes a prompt of its own, and the empty negative one
    rows.clear()
    list(trainer)
    assert rows == [1] * 3, "three prompts, each alone; the negative one was known"


def test_two_encoders_of_different_outputs_remember_too() -> None:
    family = next(family for family in FAMILIES if family.name == "Stable Diffusion XL")
    plain, remembering = family.pipe(), family.pipe()
    memories = remember_prompts(remembering)
    assert set(memories) == {"text_encoder", "text_encoder_2"}
    call = {"num_inference_steps": 2, "output_type": "pt", **family.call(torch.float32)}
    expected, first, again = (
        pipe(list(PROMPTS), generator=torch.Generator().manual_seed(1), **call).images
        for pipe in (plain, remembering, remembering)
    )
    torch.testing.assert_close(first, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(again, first)
    assert all(memory.rows for memory in memories.values())


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(1)


def test_the_gradient_is_the_one_without_memory(tokenizer: Any) -> None:
    plan = StepPlan(steps=2, grad_steps=frozenset({1}))
    grads = []
    for remember in (False, True):
        pipe = tiny_pipe(tokenizer=tokenizer)
        if remember:
            remember_prompts(pipe)
        sampler = DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=4.0)
        sampler(PROMPTS, plan=plan, renoising=Renoising(copies=1), generator=seeded()).images.sum().backward()
        grads.append(pipe.unet.conv_in.weight.grad)
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


class Recorder(torch.nn.Module):
    """An encoder that notes where it was sent."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[str] = []
        self.runs = 0

    def to(self, device: Any) -> Any:
        self.sent.append(str(device))
        return self

    def forward(self, ids: torch.Tensor, scale: Any = 1.0) -> tuple[torch.Tensor]:
        self.runs += 1
        return (ids.float()[:, None] * scale if isinstance(scale, float) else ids.float()[:, None],)


class OnDevice(PromptEmbeddingCache):
    """A memory whose home is not where the input lies, on a machine with one device."""

    def __init__(self, encoder: Recorder, sees: str) -> None:
        super().__init__(encoder, SimpleNamespace(_execution_device=sees), home="cpu")
        self.home = torch.device("cpu", 1)


@pytest.mark.parametrize(
    ("sees", "after"), [("cpu", ["cpu", "cpu:1"]), ("meta", ["cpu", "cpu:1", "cpu"])], ids=["goes home", "stays"]
)
def test_on_another_device_the_encoder_goes_there_for_unknown_prompts_only(sees: str, after: list[str]) -> None:
    encoder = Recorder()
    OnDevice(encoder, sees)
    encoder(torch.tensor([5]))
    assert encoder.sent == after
    encoder.sent.clear()
    assert torch.equal(encoder(torch.tensor([5, 5]))[0], torch.tensor([[5.0], [5.0]]))
    assert encoder.runs == 1
    assert "cpu" not in encoder.sent, "a known prompt brings nothing in"


def test_what_cannot_be_told_apart_by_rows_goes_through_as_it_is() -> None:
    encoder = Recorder()
    memory = PromptEmbeddingCache(encoder, SimpleNamespace())
    for _ in range(2):
        encoder(torch.tensor([1, 2]), scale=object())
    assert encoder.runs == 2
    assert not memory.rows


def adapted_encoder(pipe: Any) -> Any:
    """The text encoder of a pipeline, with a LoRA that matters."""
    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.text_encoder.add_adapter(config, adapter_name="default")
    return pipe.text_encoder


def test_an_adapter_in_the_encoder_is_part_of_what_is_remembered(tokenizer: Any) -> None:
    plain, remembering = tiny_pipe(tokenizer=tokenizer), tiny_pipe(tokenizer=tokenizer)
    for pipe in (plain, remembering):
        adapted_encoder(pipe)
        with torch.no_grad():
            for name, weight in pipe.text_encoder.named_parameters():
                if "lora" in name:
                    weight.mul_(20)
    remember_prompts(remembering)

    def drawn(pipe: Any, context: Any) -> torch.Tensor:
        with context(pipe):
            return images(pipe, PROMPTS[:1])

    ways = [
        lambda pipe: nullcontext(),
        adapters_off,
        lambda pipe: adapters_scaled(pipe, 0.5),
        lambda pipe: nullcontext(),
    ]
    found = [drawn(remembering, way) for way in ways]
    assert all(torch.equal(image, drawn(plain, way)) for image, way in zip(found, ways, strict=True))
    assert not torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])
    rows = counted(remembering.text_encoder)
    assert torch.equal(drawn(remembering, adapters_off), found[1])
    assert rows == [], "each state is remembered by itself"


def test_weights_that_are_put_into_an_adapter_are_not_taken_for_the_old_ones(tokenizer: Any) -> None:
    pipe = tiny_pipe(tokenizer=tokenizer)
    encoder = adapted_encoder(pipe)
    remember_prompts(pipe)
    before = images(pipe, PROMPTS[:1])
    state = get_peft_model_state_dict(encoder)
    set_peft_model_state_dict(encoder, {name: 30 * tensor for name, tensor in state.items()})
    assert not torch.equal(images(pipe, PROMPTS[:1]), before)


def test_plain_arguments_are_part_of_what_is_remembered() -> None:
    encoder = Recorder()
    PromptEmbeddingCache(encoder, SimpleNamespace())
    assert encoder(torch.tensor([3]), scale=2.0)[0].item() == 6.0
    assert encoder(torch.tensor([3]), scale=3.0)[0].item() == 9.0
    assert encoder.runs == 2
