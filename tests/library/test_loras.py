"""The LoRA of a loop of one's own: saved in one line, and loaded by plain diffusers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.utils import get_peft_model_state_dict

from draft_core import add_lora, load_lora, save_lora
from draft_core.errors import DraftError
from tests.support.families import pixart
from tests.support.tiny import byte_tokenizer, tiny_pipe


def drawn(pipe: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    images: torch.Tensor = pipe(["a cat"], num_inference_steps=2, generator=generator, output_type="pt").images
    return images


def tuned(pipe: Any) -> Any:
    """With a LoRA whose scale alpha / rank is 2, as an optimiser may leave it."""
    add_lora(pipe, rank=2, alpha=4.0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in (weight for weight in pipe.unet.parameters() if weight.requires_grad):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return pipe


def test_plain_diffusers_loads_what_was_saved(tmp_path: Path) -> None:
    pipe, other, bare = (tiny_pipe(tokenizer=byte_tokenizer(tmp_path)) for _ in range(3))
    tuned(pipe)
    base = drawn(other)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        file = save_lora(pipe, str(tmp_path / "new" / "lora"))
    assert file == tmp_path / "new" / "lora" / "pytorch_lora_weights.safetensors"
    other.load_lora_weights(file.parent)
    assert not torch.allclose(drawn(pipe), base, atol=0.01)
    torch.testing.assert_close(drawn(other), drawn(pipe))

    # what a loop would write by hand has lost the scale, and the comparison above sees it
    pipe.save_lora_weights(tmp_path / "bare", unet_lora_layers=get_peft_model_state_dict(pipe.unet))
    bare.load_lora_weights(tmp_path / "bare")
    assert not torch.allclose(drawn(bare), drawn(pipe), atol=0.01)


def test_a_pipeline_that_diffusers_loads_no_lora_into_has_a_file_for_load_lora(tmp_path: Path) -> None:
    pipe, other = pixart(), pixart()
    add_lora(pipe, rank=2)
    with torch.no_grad():
        for weight in (weight for weight in pipe.transformer.parameters() if weight.requires_grad):
            weight.fill_(0.5)
    with pytest.warns(UserWarning, match=r"its file will be one that draft_core\.load_lora reads"):
        save_lora(pipe, tmp_path)
    load_lora(other, str(tmp_path))
    there, here = (get_peft_model_state_dict(each.transformer, adapter_name="default") for each in (other, pipe))
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in here)


def test_a_pipeline_without_a_lora_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DraftError, match="carries no LoRA to train; call `add_lora` first"):
        save_lora(tiny_pipe(), tmp_path / "lora")
    assert not (tmp_path / "lora").exists()
