"""TRL's AlignProp example, ported, trains as TRL's loop does: one written here, and TRL's own if it is installed."""

from __future__ import annotations

import importlib
import importlib.util
import re
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler

from draft_core import load_catalog
from draft_core.adapters.lora import trainable
from draft_core.recipe.schema import RecipeBase
from draft_core.training.batches import Batches
from tests.project.test_tutorial import fields
from tests.support.pages import ROOT, code_blocks, run_code, text_of
from tests.support.tiny import byte_tokenizer, tiny_pipe, with_lora

STEPS, FIRST, UPDATES, GUIDANCE = 4, 2, 5, 3.0


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "examples" / "from_trl")
    yield importlib.import_module("alignprop")
    del sys.modules["alignprop"]


def new_pipe(folder: Path) -> Any:
    pipe = tiny_pipe(tokenizer=byte_tokenizer(folder))
    # as Stable Diffusion's: TRL's step goes to the first noise level also where the scheduler would go to none
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, set_alpha_to_one=False)
    return pipe


def drawn(batches: Batches, pipe: Any) -> Iterator[tuple[list[str], torch.Tensor]]:
    """The prompts and initial latents of each update, as the ported trainer draws them."""
    side = pipe.unet.config.sample_size
    for update in range(UPDATES):
        (batch,) = batches.draw(update)
        noise = [torch.randn(1, pipe.unet.config.in_channels, side, side, generator=g) for g in batch.generators]
        yield [str(prompt) for prompt in batch.prompts], torch.cat(noise)


def plain_loop(pipe: Any, reward: Any, batches: Batches, first: int = FIRST) -> list[float]:
    """The mean reward of every update: TRL's `step` with `truncated_backprop_rand=False`, in plain torch."""
    parameters = list(trainable(pipe))
    optimizer = torch.optim.AdamW(parameters, lr=1e-3, betas=(0.9, 0.999), weight_decay=1e-4, eps=1e-8)
    rewards = []
    for prompts, latents in drawn(batches, pipe):
        with torch.no_grad():
            positive, negative = pipe.encode_prompt(prompts, "cpu", 1, True)
        pipe.scheduler.set_timesteps(STEPS)
        for number, timestep in enumerate(pipe.scheduler.timesteps):
            inputs = torch.cat([latents] * 2), timestep, torch.cat([negative, positive])
            noise = pipe.unet(*inputs, return_dict=False)[0]
            noise = noise.detach() if number < first else noise
            without, with_prompt = noise.chunk(2)
            guided = without + GUIDANCE * (with_prompt - without)
            latents = pipe.scheduler.step(guided, timestep, latents, eta=0.0).prev_sample
        images = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
        scores, _ = reward((images / 2 + 0.5).clamp(0, 1), prompts, [{}] * len(prompts))
        (10.0 - scores.mean()).backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        rewards.append(float(scores.detach().mean()))
    return rewards


def of_trl(pipe: Any, reward: Any, batches: Batches, factors: list[torch.Tensor]) -> list[float]:
    """The same by TRL's own trainer, given the same LoRA, prompts and latents."""
    if importlib.util.find_spec("trl") is None:
        pytest.skip("trl is not installed; 0.23.1 has AlignPropTrainer, and is needed without its dependencies only")
    # it imports pandas and more for the card of the model, which is not written here
    unused: Any = types.ModuleType("trl.trainer.utils")
    unused.generate_model_card = unused.get_comet_experiment_url = None
    sys.modules.setdefault(unused.__name__, unused)
    config = importlib.import_module("trl.trainer.alignprop_config")
    trainers = importlib.import_module("trl.trainer.alignprop_trainer")
    models = importlib.import_module("trl.models.modeling_sd_base")
    updates = list(drawn(batches, pipe))
    prompts = iter([(prompt, {}) for texts, _ in updates for prompt in texts])
    noise = iter([latents for _, latents in updates])

    class Pipeline(models.DefaultDDPOStableDiffusionPipeline):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            self.sd_pipeline, self.use_lora = pipe, True
            for network in (pipe.vae, pipe.text_encoder, pipe.unet):
                network.requires_grad_(False)

        def get_trainable_layers(self) -> Any:
            layers = super().get_trainable_layers()
            own = [parameter for parameter in layers.parameters() if parameter.requires_grad]
            for parameter, factor in zip(own, factors, strict=True):
                parameter.data.copy_(factor)
            return layers

        def rgb_with_grad(self, **call: Any) -> Any:
            return super().rgb_with_grad(latents=next(noise), **call)

    rewards = []

    def noted(*given: Any) -> Any:
        scores, info = reward(*given)
        rewards.append(float(scores.detach().mean()))
        return scores, info

    settings = config.AlignPropConfig(
        seed=0,
        mixed_precision="no",
        sample_num_steps=STEPS,
        sample_eta=0.0,
        sample_guidance_scale=GUIDANCE,
        train_batch_size=2,
        truncated_backprop_rand=False,
        truncated_backprop_timestep=FIRST,
        save_freq=UPDATES,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainers.AlignPropTrainer(settings, noted, lambda: next(prompts), Pipeline()).train(epochs=UPDATES)
    return rewards


@pytest.mark.parametrize("reference", ["a plain loop", "trl"])
def test_the_port_reaches_the_reward_of_trls_loop(reference: str, example: Any, tmp_path: Path) -> None:
    call = {"guidance_scale": GUIDANCE, "eta": 0.0}
    prompts = example.ANIMALS
    torch.manual_seed(0)
    trainer = example.alignprop(
        new_pipe(tmp_path), example.darkness, prompts, updates=UPDATES, steps=STEPS, first=FIRST, **call
    )
    factors = [parameter.detach().clone() for parameter in trainer.parameters]
    theirs = new_pipe(tmp_path)
    if reference == "trl":
        expected = of_trl(theirs, example.darkness, trainer.batches, factors)
        final = [parameter for parameter in theirs.unet.parameters() if parameter.requires_grad]
    else:
        with_lora(theirs, rank=4)
        for parameter, factor in zip(trainable(theirs), factors, strict=True):
            parameter.data.copy_(factor)
        expected = plain_loop(theirs, example.darkness, trainer.batches)
        final = list(trainable(theirs))
    rewards = [report.reward for report in trainer]
    assert rewards == pytest.approx(expected, rel=1e-6)
    assert any((factor - parameter).abs().max() > 1e-3 for factor, parameter in zip(factors, final, strict=True))
    for ours, their in zip(trainer.parameters, final, strict=True):
        torch.testing.assert_close(ours, their, rtol=0, atol=2e-5)


def test_another_truncation_would_be_found(example: Any, tmp_path: Path) -> None:
    ends = []
    for first in (FIRST, FIRST + 1):
        pipe = with_lora(new_pipe(tmp_path), rank=4)
        batches = example.alignprop(new_pipe(tmp_path), example.darkness, example.ANIMALS, updates=UPDATES).batches
        plain_loop(pipe, example.darkness, batches, first)
        ends.append([parameter.detach() for parameter in trainable(pipe)])
    assert max(float((one - other).abs().max()) for one, other in zip(*ends, strict=True)) > 1e-3


PAGE = text_of("docs/how-to/coming-from-other-libraries.md")


def test_the_block_of_the_page_gives_a_gradient() -> None:
    (block,) = code_blocks(PAGE, "python")
    names: dict[str, Any] = {}
    run_code(block, names)
    torch.testing.assert_close(names["images"].grad, torch.full((2, 3, 64, 64), -10 / (2 * 3 * 64 * 64)))


def test_the_settings_of_the_page_are_there() -> None:
    schema = RecipeBase.model_json_schema()
    known = {*fields(schema, schema["$defs"]), "method", "prompts", "evaluation", "trackers", "train.frames.choice"}
    methods = {kind: set(entry.spec.config.model_fields) for kind, entry in load_catalog().methods.items()}
    named = set()
    for line in re.findall(r"(?m)^\| .*$", PAGE):
        ours = line.strip("| ").split(" | ", 1)[1]
        named |= set(re.findall(r"`((?:model|train|evaluation|regularizers|checkpoint)\.[a-z_.]+)", ours))
        for kind, rest in re.findall(r"\{kind: ([a-z-]+)((?:, [a-z_]+: [^,}]+)*)\}", ours):
            if kind in methods:
                assert set(re.findall(r", ([a-z_]+):", rest)) <= methods[kind], line
        if "of `ddpo`" in ours:
            assert set(re.findall(r"`([a-z_]+)`", ours.partition("`ddpo`")[0])) <= methods["ddpo"], line
    assert len(named) > 20
    assert named <= known, named - known
