"""A LoRA comes back from its file in every pipeline: by diffusers' loader, or by our own where that one fails."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

import diffusers
import pytest
import torch
from diffusers.loaders import StableDiffusionXLLoraLoaderMixin
from peft.tuners.lora import LoraLayer

from draft_core import DifferentiableSampler, DraftK, StepPlan
from draft_core.adapters.files import load_lora, loading_lines
from draft_core.adapters.lora import (
    ATTENTION,
    adapter_names,
    adapters_off,
    add_lora,
    default_targets,
    lora_state,
    trainable,
)
from draft_core.adapters.lora_adapter import Lora
from draft_core.adapters.round_trip import unreadable
from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.sampling.pipelines import find_denoisers
from draft_core.sampling.rollout import Rollout
from tests.support import families
from tests.support.image_classes import prx
from tests.support.runs import saved_lora
from tests.support.tiny import byte_tokenizer, embeddings, tiny_pipe
from tests.support.video_classes import animate, text_to_video

pytestmark = pytest.mark.filterwarnings("ignore:`LoraLoaderMixin` is deprecated:FutureWarning")  # PRX's


def flow() -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler()


def ideogram() -> Any:
    """Two denoisers, of which diffusers' loader knows one."""
    conditional, unconditional = (
        diffusers.Ideogram4Transformer2DModel(
            in_channels=8,
            num_layers=1,
            attention_head_dim=8,
            num_attention_heads=2,
            intermediate_size=16,
            adaln_dim=8,
            llm_features_dim=16,
            mrope_section=(2, 1, 1),
        )
        for _ in range(2)
    )
    return diffusers.Ideogram4Pipeline(
        scheduler=flow(),
        vae=None,
        text_encoder=None,
        tokenizer=None,
        transformer=conditional,
        unconditional_transformer=unconditional,
    )


def kandinsky() -> Any:
    unet = diffusers.Kandinsky3UNet(
        time_embedding_dim=8,
        groups=2,
        attention_head_dim=4,
        layers_per_block=1,
        block_out_channels=(8, 8),
        cross_attention_dim=8,
        encoder_hid_dim=8,
    )
    return diffusers.Kandinsky3Pipeline(
        tokenizer=None, text_encoder=None, unet=unet, scheduler=diffusers.DDPMScheduler(), movq=None
    )


class OneEncoderPipeline(diffusers.DiffusionPipeline, StableDiffusionXLLoraLoaderMixin):  # type: ignore[misc]
    """One text encoder and the loader of a pipeline of two, as KolorsPAGPipeline has it."""

    def __init__(self, unet: Any, text_encoder: Any) -> None:
        super().__init__()
        self.register_modules(unet=unet, text_encoder=text_encoder)


def kolors_pag() -> Any:
    return OneEncoderPipeline(tiny_pipe().unet, torch.nn.Linear(1, 1))


UNREADABLE = (prx, ideogram, kandinsky, text_to_video, kolors_pag)


def hidream() -> Any:
    transformer = diffusers.HiDreamImageTransformer2DModel(
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        caption_channels=[16, 16],
        text_emb_dim=16,
        axes_dims_rope=(4, 4),
        max_resolution=(8, 8),
        llama_layers=[0, 1],
    )
    encoders = {f"{part}{number}": None for part in ("text_encoder", "tokenizer") for number in ("", "_2", "_3", "_4")}
    return diffusers.HiDreamImagePipeline(scheduler=flow(), vae=None, transformer=transformer, **encoders)


def filled(pipe: Any) -> Any:
    """With random factors."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in trainable(pipe):
            weight.copy_(torch.randn(weight.shape, generator=generator))
    return pipe


@pytest.mark.parametrize("make", [*UNREADABLE, hidream, tiny_pipe])
def test_a_lora_comes_back_from_its_file(make: Callable[[], Any], tmp_path: Path) -> None:
    pipe, other = make(), make()
    lora = Lora(pipe, rank=2, alpha=3)
    lora.attach()
    lora.save(filled(pipe) and tmp_path)
    load_lora(other, tmp_path)
    there, here = lora_state(other), lora_state(pipe)
    assert there.keys() == here.keys()
    assert all(torch.equal(there[name], here[name]) for name in here)
    assert len(lora.notes()) == (make in UNREADABLE), "said before training, where plain diffusers cannot load it"
    lines = " ".join(loading_lines(tmp_path, tmp_path))
    assert ("draft_core" in lines) == (make in UNREADABLE)


def test_trying_the_loader_leaves_no_trace() -> None:
    pipe = tiny_pipe()
    add_lora(pipe, rank=2)
    filled(pipe)

    def state() -> list[Any]:
        layers = [layer for layer in pipe.unet.modules() if isinstance(layer, LoraLayer)]
        return [
            {name: tensor.tolist() for name, tensor in lora_state(pipe).items()},
            [weight.requires_grad for weight in pipe.unet.parameters()],
            [(layer.active_adapters, layer.disable_adapters) for layer in layers],
            adapter_names(pipe.unet),
            sorted(pipe.unet.peft_config),
            torch.get_rng_state().tolist(),
        ]

    before = state()
    assert unreadable(pipe) == ""
    assert state() == before


def test_a_scale_that_a_loader_loses_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without peft's settings in the file, diffusers takes a scale of 1."""
    pipe = tiny_pipe()
    add_lora(pipe, rank=2, alpha=6)
    real = type(pipe).save_lora_weights

    def without(save_directory: Any, unet_lora_layers: Any, weight_name: str, safe_serialization: bool) -> None:
        real(save_directory, unet_lora_layers, weight_name=weight_name, safe_serialization=safe_serialization)

    monkeypatch.setattr(pipe, "save_lora_weights", without)
    assert unreadable(pipe).startswith("32 of 64 tensors come back otherwise")


# What is adapted


def test_a_layer_that_takes_no_lora_is_refused_by_name() -> None:
    with pytest.raises(RecipeError, match=r"motion_modules\.0\.proj_in is called by .*; leave the proj_in of motion"):
        add_lora(animate(), rank=2, targets=["to_q", "proj_in"])


def test_fused_and_joint_attention_are_default_targets() -> None:
    found = {
        make.__name__: {
            name.rpartition(".")[2]
            for denoiser in find_denoisers(make()).values()
            for name in default_targets(denoiser)
            if name not in ATTENTION
        }
        for make in (prx, hidream)
    }
    assert found["prx"] == {"img_qkv_proj", "txt_kv_proj"}
    assert found["hidream"] == {"to_out", "to_q_t", "to_k_t", "to_v_t", "to_out_t"}


def test_a_layer_of_no_attention_block_is_no_default_target() -> None:
    unet = tiny_pipe().unet
    assert default_targets(unet) == ATTENTION, "neither time embeddings nor feed-forward layers"


# A pipeline that carries one already


@pytest.mark.parametrize("name", ["style", "default"])
def test_a_second_lora_is_refused_and_the_first_stays_on(tmp_path: Path, name: str) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "bytes"))
    pipe.load_lora_weights(saved_lora(tmp_path / "lora"), adapter_name=name)
    with pytest.raises(DraftError, match=rf"UNet2DConditionModel carries a LoRA already \({name}\); make it a part of"):
        add_lora(pipe, rank=2)
    assert pipe.get_active_adapters() == [name]


def test_a_lora_that_was_made_a_part_of_the_model_stays_in_it(tmp_path: Path) -> None:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "bytes"))
    weight = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight.clone()
    pipe.load_lora_weights(saved_lora(tmp_path / "lora"))
    pipe.fuse_lora()
    pipe.unload_lora_weights()
    add_lora(pipe, rank=2)
    fused = pipe.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.base_layer.weight
    assert (fused - weight).abs().max() > 1e-3


# Going on from one


def test_training_goes_on_from_a_lora(tmp_path: Path) -> None:
    """Also where its scale is another: what it adds to each weight is the same."""
    first = saved_lora(tmp_path / "lora", rank=2, alpha=3)
    loaded, pipe = tiny_pipe(), tiny_pipe()
    load_lora(loaded, first)
    lora = Lora(pipe, rank=2, init=first)
    lora.attach()
    assert all(parameter.requires_grad and parameter.dtype == torch.float32 for parameter in lora.parameters())
    assert adapter_names(pipe.unet) == ["default"]
    layers = (dict(each.unet.named_modules()) for each in (loaded, pipe))
    old, new = ({name: layer for name, layer in all_.items() if isinstance(layer, LoraLayer)} for all_ in layers)
    assert old.keys() == new.keys()
    for name, layer in old.items():
        assert layer.get_delta_weight("default").abs().max() > 0
        torch.testing.assert_close(new[name].get_delta_weight("default"), layer.get_delta_weight("default"))


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"rank": 4}, "its rank is 2, the recipe's 4; set model.lora.rank=2."),
        ({"rank": 2, "targets": ["to_q"]}, "set model.lora.targets to what it adapts, [to_k, to_out.0, to_q, to_v]."),
    ],
)
def test_a_lora_that_does_not_fit_is_refused(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        Lora(tiny_pipe(), init=saved_lora(tmp_path / "lora"), **settings).attach()
    assert str(caught.value).startswith(f"model.lora.init {tmp_path / 'lora'}: ")
    assert sentence in str(caught.value)


def test_a_lora_of_another_model_is_refused(tmp_path: Path) -> None:
    pipe = kandinsky()
    lora = Lora(pipe, rank=2)
    lora.attach()
    lora.save(tmp_path)
    with pytest.raises(CheckpointError, match="it is of another model than this StableDiffusionPipeline; give its own"):
        Lora(tiny_pipe(), rank=2, init=tmp_path).attach()


def test_the_base_model_nests() -> None:
    pipe = tiny_pipe()
    add_lora(pipe, rank=2)
    layers = [layer for layer in pipe.unet.modules() if isinstance(layer, LoraLayer)]
    with adapters_off(pipe):
        with adapters_off(pipe):
            pass
        assert all(layer.disable_adapters for layer in layers)
    assert not any(layer.disable_adapters for layer in layers)
    assert list(trainable(pipe))


def test_a_sampler_that_measures_its_distance_draws_the_base_model_inside_it() -> None:
    pipe = tiny_pipe()
    sampler = DifferentiableSampler(pipe, num_inference_steps=3, guidance_scale=3.0, **embeddings())
    add_lora(pipe, rank=2)
    for weight in trainable(pipe):
        torch.nn.init.normal_(weight, std=0.1)

    def draw(grad_steps: Iterable[int] = ()) -> Rollout:
        return sampler(plan=StepPlan(3, frozenset(grad_steps)), generator=torch.Generator().manual_seed(0))

    tuned = draw().images
    with adapters_off(pipe):
        base = draw().images
    assert not torch.equal(tuned, base)
    sampler.base_model = partial(adapters_off, pipe)
    with adapters_off(pipe):
        inside = draw(range(3))
    assert torch.equal(inside.images, base)
    assert float(inside.divergence) == 0  # type: ignore[arg-type]
    outside = draw(range(3))
    assert torch.equal(outside.images, tuned)
    assert float(outside.divergence.detach()) > 0  # type: ignore[union-attr]


@pytest.mark.parametrize("rank", [0, -1, 2.5, True])
def test_a_rank_that_is_none_is_refused(rank: Any) -> None:
    with pytest.raises(DraftError, match=r"add_lora: rank: .* is not a whole number from 1 on"):
        add_lora(tiny_pipe(), rank=rank)


def test_the_divergence_of_a_denoiser_that_gives_a_list_is_of_all_images() -> None:
    pipe = families.z_image()
    torch.manual_seed(0)
    add_lora(pipe, rank=2)
    with torch.no_grad():
        for parameter in trainable(pipe):
            parameter.add_(torch.randn_like(parameter), alpha=0.1)
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=2,
        base_model=partial(adapters_off, pipe),
        guidance_scale=0.0,
        max_sequence_length=16,
        height=16,
        width=16,
    )

    def divergence(prompts: list[str], *seeds: int) -> float:
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        return float(sampler(prompts, plan=DraftK(k=1).plan(2, Random(0)), generator=generators).divergence.detach())

    alone = divergence(["a fox"], 0), divergence(["an owl"], 1)
    assert alone[1] != pytest.approx(alone[0], rel=1e-3), "or the first image would do"
    assert divergence(["a fox", "an owl"], 0, 1) == pytest.approx(sum(alone) / 2, rel=1e-4)
