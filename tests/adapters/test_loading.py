"""LoRA files loaded into a pipeline: from wherever they lie, and one sentence where they do not fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from draft_core.adapters import files
from draft_core.adapters.files import WEIGHTS_FILE, load_lora
from draft_core.errors import CheckpointError, DraftError
from tests.support.runs import saved_lora
from tests.support.tiny import byte_tokenizer, tiny_pipe


def adapted(pipe: Any) -> dict[str, torch.Tensor]:
    """The LoRA's weights in a pipeline's networks, by name."""
    networks = [pipe.unet, pipe.text_encoder] if pipe.text_encoder else [pipe.unet]
    named = (item for network in networks for item in network.named_parameters())
    return {name: weight.detach() for name, weight in named if "lora_" in name}


@pytest.mark.parametrize("place", ["", "lora", f"lora/{WEIGHTS_FILE}", "elsewhere.safetensors"])
def test_a_lora_is_found_in_a_run_in_its_folder_and_as_a_file(tmp_path: Path, place: str) -> None:
    saved_lora(tmp_path / "lora")
    content = (tmp_path / "lora" / WEIGHTS_FILE).read_bytes()
    (tmp_path / "elsewhere.safetensors").write_bytes(content)
    pipe, plain = tiny_pipe(), tiny_pipe()
    load_lora(pipe, tmp_path / place)
    plain.load_lora_weights(tmp_path / "lora", adapter_name="default")
    found, expected = adapted(pipe), adapted(plain)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def saved_text_lora(folder: Path, pipe: Any) -> None:
    """A LoRA of the text encoder alone."""
    modules = ["q_proj", "k_proj", "v_proj", "out_proj"]
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=modules, init_lora_weights=False))
    pipe.save_lora_weights(folder, text_encoder_lora_layers=get_peft_model_state_dict(pipe.text_encoder))


def test_a_lora_of_the_text_encoder_alone_counts_and_is_scaled(tmp_path: Path) -> None:
    saved_text_lora(tmp_path, tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "bytes")))
    words = {}
    for scale in (0.0, 1.0, None):
        pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "bytes"))
        if scale is not None:
            load_lora(pipe, tmp_path, scale=scale)
        ids = pipe.tokenizer(["a cat"], padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            words[scale] = pipe.text_encoder(ids)[0]
    assert torch.equal(words[0.0], words[None])
    assert (words[1.0] - words[None]).abs().max() > 1e-3


def wider(name: str, tensor: torch.Tensor) -> tuple[str, torch.Tensor]:
    return name, torch.cat([tensor, tensor], 1).contiguous() if "lora_A" in name else tensor


@pytest.mark.parametrize(
    ("change", "sentence"),
    {
        "another width": (
            wider,
            r"its 32 layers have another shape, first unet\.down_blocks\.1\S+; give a LoRA of this",
        ),
        "a block more": (
            lambda name, tensor: (name.replace("down_blocks.1", "down_blocks.7"), tensor),
            r"8 of the 32 layers that it adapts are not in StableDiffusionPipeline, first unet\.down_blocks\.7",
        ),
        "other layers": (
            lambda name, tensor: (name.replace("attn", "attention_"), tensor),
            r"32 of the 32 layers that it adapts are not in StableDiffusionPipeline",
        ),
        "another denoiser": (
            lambda name, tensor: (name.replace("unet", "transformer"), tensor),
            r"it adapts no layer of StableDiffusionPipeline; give a LoRA of this model",
        ),
        "no LoRA": (
            lambda name, tensor: (name.replace("lora", "x"), tensor),
            r"it cannot be loaded into StableDiffusion",
        ),
    }.values(),
)
def test_a_lora_of_another_model_is_one_sentence_and_nothing_else(
    tmp_path: Path, change: Any, sentence: str, capfd: pytest.CaptureFixture[str]
) -> None:
    saved_lora(tmp_path / "lora")
    state = load_file(tmp_path / "lora" / WEIGHTS_FILE)
    save_file(dict(change(*item) for item in state.items()), tmp_path / "other.safetensors", {"format": "pt"})
    pipe = tiny_pipe()
    capfd.readouterr()
    with pytest.raises(CheckpointError, match=r"other\.safetensors: .*" + sentence) as caught:
        load_lora(pipe, tmp_path / "other.safetensors")
    assert len(str(caught.value)) < 500
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("scale", [float("nan"), float("inf")])
def test_a_scale_that_is_no_number_is_refused(tmp_path: Path, scale: float) -> None:
    with pytest.raises(DraftError, match=r"scale: (nan|inf) is not a finite number; give one, such as 0\.5"):
        load_lora(tiny_pipe(), saved_lora(tmp_path / "lora"), scale=scale)


def test_what_is_no_safetensors_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "lora.ckpt").write_text("words")
    with pytest.raises(
        CheckpointError, match=r"lora\.ckpt: it is not a safetensors file .*give the \.safetensors file"
    ):
        load_lora(tiny_pipe(), tmp_path / "lora.ckpt")
    with pytest.raises(CheckpointError, match=r"the lora folder in it, or a \.safetensors file"):
        load_lora(tiny_pipe(), tmp_path / "nowhere.safetensors")


def test_the_files_of_a_lora_are_looked_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Path] = []
    find = files.lora_files
    monkeypatch.setattr(files, "lora_files", lambda path: [looked.append(path), find(path)][1])
    load_lora(tiny_pipe(), saved_lora(tmp_path / "lora"))
    assert len(looked) == 1
