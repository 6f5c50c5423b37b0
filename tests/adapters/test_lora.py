"""Scaling and switching off reach every component that carries the LoRA, and leave it as it was."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig

from draft_core.adapters.adapter import Adapter
from draft_core.adapters.lora import set_scale
from draft_core.adapters.lora_adapter import Lora
from draft_core.errors import DraftError
from tests.support.tiny import byte_tokenizer, tiny_pipe


@pytest.fixture
def pipe(tmp_path: Path) -> Any:
    """A pipeline whose denoiser and CLIP text encoder carry a LoRA that does something."""
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        Lora(pipe, rank=2, alpha=4).attach()
        config = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        pipe.text_encoder.add_adapter(config, adapter_name="default")
        pipe.text_encoder.requires_grad_(False)
        for parameter in Lora(pipe).parameters():
            parameter.data += 0.3 * torch.randn_like(parameter)
    return pipe


def words(pipe: Any) -> torch.Tensor:
    ids = pipe.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
    with torch.no_grad():
        return pipe.text_encoder(ids)[0]


def prediction(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    latents, text = torch.randn(1, 4, 8, 8, generator=generator), torch.randn(1, 5, 16, generator=generator)
    with torch.no_grad():
        return pipe.unet(latents, 10, text).sample


def outputs(pipe: Any) -> list[torch.Tensor]:
    return [words(pipe), prediction(pipe)]


def by_hand(pipe: Any, scale: float) -> list[torch.Tensor]:
    """The outputs with `scale` times the LoRA, by changing its second factor."""
    factors = [
        weight
        for component in (pipe.unet, pipe.text_encoder)
        for name, weight in component.named_parameters()
        if "lora_B" in name
    ]
    before = [weight.detach().clone() for weight in factors]
    with torch.no_grad():
        for weight in factors:
            weight *= scale
        found = outputs(pipe)
        for weight, value in zip(factors, before, strict=True):
            weight.copy_(value)
    return found


def test_the_base_model_is_without_it_in_every_component(pipe: Any) -> None:
    lora: Adapter = Lora(pipe)
    tuned, expected = outputs(pipe), by_hand(pipe, 0.0)
    trained = [
        id(parameter)
        for component in pipe.components.values()
        if isinstance(component, torch.nn.Module)
        for parameter in component.parameters()
        if parameter.requires_grad
    ]
    with lora.base_model():
        base = outputs(pipe)
    for without, hand, with_ in zip(base, expected, tuned, strict=True):
        torch.testing.assert_close(without, hand)
        assert (without - with_).abs().max() > 1e-3
    assert all(torch.equal(*pair) for pair in zip(outputs(pipe), tuned, strict=True))
    after = [
        id(parameter)
        for component in pipe.components.values()
        if isinstance(component, torch.nn.Module)
        for parameter in component.parameters()
        if parameter.requires_grad
    ]
    assert after == trained, "the text encoder's LoRA stays frozen"


@pytest.mark.parametrize("scale", [0.0, 0.25, 1.0, 2.0])
def test_a_scale_reaches_every_component_and_ends(pipe: Any, scale: float) -> None:
    tuned, expected = outputs(pipe), by_hand(pipe, scale)
    with Lora(pipe).scaled(scale):
        torch.testing.assert_close(outputs(pipe), expected)
    assert all(torch.equal(*pair) for pair in zip(outputs(pipe), tuned, strict=True))
    set_scale(pipe, scale)
    torch.testing.assert_close(outputs(pipe), expected)


def test_a_pipeline_without_an_adapter_is_left_alone(tmp_path: Path) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path))
    with Lora(pipe).scaled(0.5), Lora(pipe).base_model(), pytest.raises(DraftError, match="carries no LoRA to train"):
        Lora(pipe).parameters()


def test_state_goes_out_and_in_again_and_into_a_file(pipe: Any, tmp_path: Path) -> None:
    lora = Lora(pipe)
    state, norm = lora.state_dict(), float(lora.penalty().detach())
    with torch.no_grad():
        for parameter in lora.parameters():
            parameter.zero_()
    assert float(lora.penalty().detach()) == 0.0
    lora.load_state_dict(state)
    assert float(lora.penalty().detach()) == norm > 0
    assert lora.save(tmp_path / "lora").is_file()
