"""LoRA files by themselves: what they add to each weight is what peft and diffusers make of them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from draft_core.adapters.files import CONFIG_KEY, WEIGHTS_FILE
from draft_core.adapters.mixing import export_lora, mix_loras, read_lora
from draft_core.errors import CheckpointError, DraftError
from tests.support.runs import saved_lora
from tests.support.tiny import byte_tokenizer, tiny_pipe

PATTERNS = {  # which peft reads as regular expressions that fit the end of a layer's name
    "rank_pattern": {r"attn1\.to_q": 3, "to_v": 1, r"up_blocks\.\d+\..*attn2\.to_k": 5},
    "alpha_pattern": {r"attn1\.to_.*": 8, r".*attn2.*": 3, "to_v": 7},
}


def uneven_lora(folder: Path, **config: Any) -> dict[str, torch.Tensor]:
    """A file whose layers differ in rank and alpha; and what peft adds to each weight."""
    pipe = tiny_pipe()
    targets = ["to_q", "to_k", "to_v", "to_out.0"]
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe.unet.add_adapter(
            LoraConfig(r=2, lora_alpha=4, target_modules=targets, init_lora_weights=False, **PATTERNS, **config)
        )
    settings = {
        key: sorted(value) if isinstance(value, set) else value
        for key, value in pipe.unet.peft_config["default"].to_dict().items()
    }
    layers = get_peft_model_state_dict(pipe.unet)
    pipe.save_lora_weights(folder, unet_lora_layers=layers, unet_lora_adapter_metadata=settings)
    return deltas(pipe)


def deltas(pipe: Any) -> dict[str, torch.Tensor]:
    """What the adapter adds to each weight of the denoiser."""
    return {
        name: module.get_delta_weight(next(iter(module.lora_A))).detach()
        for name, module in pipe.unet.named_modules()
        if getattr(module, "lora_A", None)
    }


def loaded(path: Path) -> dict[str, torch.Tensor]:
    pipe = tiny_pipe()
    pipe.load_lora_weights(path)
    return deltas(pipe)


def require_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, delta in expected.items():
        torch.testing.assert_close(found[name], delta, atol=1e-5, rtol=1e-5, msg=name)


@pytest.mark.parametrize("use_rslora", [False, True])
def test_ranks_and_alphas_of_single_layers_are_read_as_peft_does(tmp_path: Path, use_rslora: bool) -> None:
    expected = uneven_lora(tmp_path / "lora", use_rslora=use_rslora)
    factors = read_lora(tmp_path / "lora" / WEIGHTS_FILE).factors
    require_same({name.removeprefix("unet."): up @ down for name, (down, up) in factors.items()}, expected)


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
def test_an_export_of_unequal_ranks_adds_the_same(tmp_path: Path, form: str) -> None:
    expected = uneven_lora(tmp_path / "lora")
    exported = export_lora(tmp_path / "lora", form, tmp_path / "out.safetensors")
    require_same(loaded(exported), expected)


def test_a_mix_of_unequal_ranks_adds_the_weighted_sum(tmp_path: Path) -> None:
    uneven = uneven_lora(tmp_path / "one")
    saved_lora(tmp_path / "other", seed=2)
    mix_loras([(tmp_path / "one", 0.6), (tmp_path / "other", 0.4)], tmp_path / "mixed")
    other = loaded(tmp_path / "other")
    require_same(loaded(tmp_path / "mixed"), {name: 0.6 * delta + 0.4 * other[name] for name, delta in uneven.items()})


def test_a_mix_of_limited_rank_is_the_nearest_of_that_rank(tmp_path: Path) -> None:
    """The best approximation by numpy's singular values, of every layer by itself; convolutions as matrices."""
    uneven_lora(tmp_path / "one")
    saved_lora(tmp_path / "other", seed=2)
    sources = [(tmp_path / "one", 0.6), (tmp_path / "other", 0.4)]
    mix_loras(sources, tmp_path / "exact")
    mixed = mix_loras(sources, tmp_path / "mixed", rank=2)
    exact, found = loaded(tmp_path / "exact"), loaded(tmp_path / "mixed")
    kept = total = 0.0
    nearest = {}
    for name, delta in exact.items():
        left, values, right = np.linalg.svd(delta.flatten(1).double().numpy(), full_matrices=False)
        nearest[name] = torch.tensor((left[:, :2] * values[:2]) @ right[:2]).view(delta.shape).float()
        kept, total = kept + float((values[:2] ** 2).sum()), total + float((values**2).sum())
    require_same(found, nearest)
    assert mixed.kept == pytest.approx(kept / total, rel=1e-5)
    assert mixed.kept < 0.999
    assert mix_loras(sources, tmp_path / "whole", rank=64).kept == 1.0
    require_same(loaded(tmp_path / "whole"), exact)


def test_a_mix_for_a_pipeline_without_a_loader_says_its_ranks(tmp_path: Path) -> None:
    uneven_lora(tmp_path / "lora")
    state = load_file(tmp_path / "lora" / WEIGHTS_FILE)
    config = {"r": 2, "lora_alpha": 4, "target_modules": ["to_q"], "use_rslora": True, **PATTERNS}
    for name in ("a", "b"):
        save_file(state, tmp_path / f"{name}.safetensors", {CONFIG_KEY: json.dumps(config)})
    mix_loras([(tmp_path / "a.safetensors", 0.5), (tmp_path / "b.safetensors", 0.5)], tmp_path / "mixed")
    mixed = read_lora(tmp_path / "mixed" / WEIGHTS_FILE)
    one = read_lora(tmp_path / "a.safetensors")
    for name, (down, up) in one.factors.items():
        torch.testing.assert_close(mixed.factors[name][1] @ mixed.factors[name][0], up @ down)
        assert mixed.config["rank_pattern"][name.removeprefix("unet.").replace(".", r"\.")] == 2 * len(down)


@pytest.mark.parametrize("prefix", ["", "text_model."])
def test_a_text_encoders_layers_are_exported_under_the_names_that_comfyui_knows(tmp_path: Path, prefix: str) -> None:
    """With and without the prefix that transformers 5 leaves out."""
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "bytes"))
    modules = ["q_proj", "k_proj", "v_proj", "out_proj"]
    pipe.text_encoder.add_adapter(LoraConfig(r=2, target_modules=modules, init_lora_weights=False))
    layers = get_peft_model_state_dict(pipe.text_encoder)
    bare = {key.removeprefix("text_model."): tensor.contiguous() for key, tensor in layers.items()}
    save_file({f"text_encoder.{prefix}{key}": tensor for key, tensor in bare.items()}, tmp_path / "lora.safetensors")
    exported = load_file(export_lora(tmp_path / "lora.safetensors", "comfyui", tmp_path / "out.safetensors"))
    assert set(exported) == {
        f"lora_te1_text_model_encoder_layers_0_self_attn_{module}.lora_{factor}.weight"
        for module in modules
        for factor in ("down", "up")
    }


@pytest.mark.parametrize("weight", [math.nan, math.inf])
def test_a_weight_that_is_no_number_is_refused(tmp_path: Path, weight: float) -> None:
    lora = saved_lora(tmp_path / "lora")
    with pytest.raises(DraftError, match=r"the weight of \S+: (nan|inf) is not a finite number"):
        mix_loras([(lora, weight)], tmp_path / "mixed")
    assert not (tmp_path / "mixed").exists()


@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_a_lora_with_a_weight_that_is_not_finite_is_refused(tmp_path: Path, value: float) -> None:
    """Mixed or exported, it would spoil every image."""
    file = saved_lora(tmp_path / "lora") / WEIGHTS_FILE
    weights = load_file(file)
    name = next(iter(weights))
    weights[name].view(-1)[0] = value
    save_file(weights, file)
    layer = name.partition(".lora")[0].replace(".", r"\.")
    for use in (
        lambda: mix_loras([(file, 1.0)], tmp_path / "mixed"),
        lambda: export_lora(file, "diffusers", tmp_path / "out.safetensors"),
    ):
        with pytest.raises(CheckpointError, match=rf"its factors of {layer} are not finite"):
            use()
    assert not (tmp_path / "mixed").exists()


def test_a_file_is_not_exported_onto_itself_or_under_another_ending(tmp_path: Path) -> None:
    lora = saved_lora(tmp_path / "lora") / WEIGHTS_FILE
    before = lora.read_bytes()
    with pytest.raises(DraftError, match="it is the LoRA itself; name another file to write"):
        export_lora(lora, "diffusers", lora)
    with pytest.raises(DraftError, match=r"out\.ckpt: it is no name of a \.safetensors file; end it in \.safetensors"):
        export_lora(lora, "diffusers", tmp_path / "out.ckpt")
    assert lora.read_bytes() == before


@pytest.mark.parametrize("pattern", ["to_(q", "*"])
def test_a_pattern_that_is_none_is_refused(tmp_path: Path, pattern: str) -> None:
    state = load_file(saved_lora(tmp_path / "lora") / WEIGHTS_FILE)
    settings = {"unet.lora_alpha": 2, "unet.alpha_pattern": {pattern: 1}}
    save_file(state, tmp_path / "odd.safetensors", {"lora_adapter_metadata": json.dumps(settings)})
    with pytest.raises(CheckpointError, match="its settings cannot be read"):
        read_lora(tmp_path / "odd.safetensors")


def test_loras_of_two_models_are_told_apart_from_wherever_they_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("one", "other"):
        saved_lora(tmp_path / name / "lora")
        (tmp_path / name / "recipe.yaml").write_text("")
        (tmp_path / name / "run.json").write_text(json.dumps({"model": name}))
    monkeypatch.chdir(tmp_path / "one" / "lora")
    sources = [(Path(WEIGHTS_FILE), 0.5), (Path("../../other/lora"), 0.5)]
    with pytest.raises(DraftError, match=r"it is a LoRA of other, .* is one of one; mix LoRAs of one model"):
        mix_loras(sources, tmp_path / "mixed")
