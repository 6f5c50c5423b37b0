"""The training program on tiny data: captions, tokenizer, latent folding, exact resume, export."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, UNet2DConditionModel
from emoji_training import captions, clip, export, pictures, unet, vae
from emoji_training.loop import Budget, Recipe, Training
from emoji_training.pictures import Picture
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

APPLE = Picture("1f34e", "red apple", "a red apple", ("fruit", "ripe", "food"), "3d", 0, True)
CLOCK = Picture("23f0", "alarm clock", "an alarm clock", ("time",), "flat", 1, False)


pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch_dtype. is deprecated:FutureWarning"
)  # the old name works everywhere


def random(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_captions_name_the_style_first_and_are_sometimes_empty():
    drawn = [captions.caption(APPLE, random(i)) for i in range(500)]
    assert 0.05 < drawn.count("") / 500 < 0.16
    full = [c for c in drawn if c]
    styled = [c for c in full if c.startswith("3d style, a red apple")]
    assert 0.6 < len(styled) / len(full) < 0.8
    assert all(c in styled or c.startswith("a red apple") for c in full)
    extra = {tag for c in full for tag in c.split(", ")} - {"3d style", "a red apple"}
    assert extra == set(APPLE.tags)
    assert captions.caption(APPLE, random(3)) == drawn[3]


def test_concepts_have_distinct_names_and_articles():
    concepts = pictures.read_concepts()
    assert len({phrase for _, phrase, _ in concepts.values()}) == len(concepts) > 200
    assert [number for number, _, _ in concepts.values()] == list(range(len(concepts)))
    assert concepts["owl"][1] == "an owl"
    assert concepts["cherries"][1] == "cherries"
    assert not concepts["alarm clock"][2]
    assert concepts["owl"][2]


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (128, 128), (0, 0, 0, 0))
    assert np.asarray(pictures.on_white(image)).min() == 255
    assert pictures.on_white(image).size == (64, 64)
    assert pictures.bare("2764-FE0F") == "2764"


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> CLIPTokenizer:
    return captions.make_tokenizer(tmp_path_factory.mktemp("tokenizer"), [APPLE, CLOCK])


def test_tokenizer_pads_as_the_pipeline_does_and_reloads(tokenizer):
    ids = captions.tokens(tokenizer, ["", "3d style, a red apple"])
    assert ids.shape == (2, captions.LENGTH)
    assert ids[0, 0] == tokenizer.bos_token_id
    assert set(ids[0, 1:].tolist()) == {tokenizer.eos_token_id}
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    unseen = tokenizer("zürich!").input_ids[1:-1]
    assert tokenizer.eos_token_id not in unseen, "an unknown word must not look like the end of the text"


def test_a_tokenizer_is_made_once_because_training_it_again_gives_another(tmp_path):
    first = captions.make_tokenizer(tmp_path, [APPLE, CLOCK])
    written = (tmp_path / "vocab.json").read_text(encoding="utf-8")
    again = captions.make_tokenizer(tmp_path, [CLOCK])
    assert again.get_vocab() == first.get_vocab()
    assert (tmp_path / "vocab.json").read_text(encoding="utf-8") == written


def test_folding_leaves_pictures_alone_and_standardises_latents():
    torch.manual_seed(0)
    model = vae.build().eval()
    with torch.no_grad():
        model.quant_conv.bias[:4] += torch.tensor([2.0, -1.0, 0.5, 0.0])
    images = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), dtype=np.uint8)
    x = vae.to_tensor(images)
    with torch.no_grad():
        before = model.decode(model.encode(x).latent_dist.mode()).sample
        spread_before = model.encode(x).latent_dist.std
        mean, std = vae.latent_statistics(model, images)
        vae.fold(model, mean, std)
        posterior = model.encode(x).latent_dist
        after = model.decode(posterior.mode()).sample
    torch.testing.assert_close(after, before, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(posterior.std, spread_before / std[:, None, None], atol=1e-4, rtol=1e-4)
    mean, std = vae.latent_statistics(model, images)
    torch.testing.assert_close(mean, torch.zeros(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(std, torch.ones(4), atol=1e-3, rtol=0)


def tiny_training(tokenizer: CLIPTokenizer, checkpoint: Path) -> tuple[Training, object]:
    torch.manual_seed(0)
    denoiser = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=(8, 16),
        layers_per_block=1,
        norm_num_groups=4,
        attention_head_dim=2,
        cross_attention_dim=16,
    )
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=captions.LENGTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    module = nn.ModuleDict({"unet": denoiser, "text": CLIPTextModel(config)})
    latents = torch.randn(2, 2, 4, 16, 16, generator=random(0))
    data = unet.Latents(latents, torch.full_like(latents, 0.1), [APPLE, CLOCK])
    recipe = Recipe(lr=1e-3, checkpoint_minutes=0.0, slow=("text.", 0.25))  # a checkpoint after every step
    training = Training(module, recipe, Budget(steps=6), checkpoint)
    return training, unet.denoising_loss(module, data, tokenizer, torch.device("cpu"), batch=4)


def test_a_resumed_run_equals_an_uninterrupted_one(tokenizer, tmp_path):
    whole, loss = tiny_training(tokenizer, tmp_path / "whole" / "checkpoint.pt")
    assert [p.share for p in whole.run(loss)] == [1.0]

    class Killed(Exception):
        pass

    def killed_in_the_fourth_step(generator):
        calls.append(1)
        if len(calls) == 4:
            torch.randn(5, generator=generator)  # a kill may come after some numbers were drawn
            raise Killed
        return first_loss(generator)

    calls: list[int] = []
    first, first_loss = tiny_training(tokenizer, tmp_path / "parts" / "checkpoint.pt")
    with pytest.raises(Killed):
        list(first.run(killed_in_the_fourth_step))
    second, loss = tiny_training(tokenizer, tmp_path / "parts" / "checkpoint.pt")
    assert second.step == 3
    list(second.run(loss))
    assert second.step == whole.step == 6
    torch.testing.assert_close(second.averaged(), whole.averaged(), rtol=0, atol=0)
    torch.testing.assert_close(second.module.state_dict(), whole.module.state_dict(), rtol=0, atol=0)
    assert not list(tmp_path.rglob("*.tmp"))


def test_the_slow_part_gets_its_share_of_the_learning_rate(tokenizer, tmp_path):
    training, loss = tiny_training(tokenizer, tmp_path / "checkpoint.pt")
    list(training.run(loss))
    fast, slow = training.optimizer.param_groups
    assert slow["lr"] == 0.25 * fast["lr"]
    assert {id(p) for p in slow["params"]} == {id(p) for p in training.module["text"].parameters()}


def test_the_schedule_follows_the_clock_and_ends_low():
    budget, recipe = Budget(minutes=10), Recipe(lr=1.0)
    assert budget.share(elapsed_s=300, step=7) == 0.5
    assert recipe.lr_at(recipe.warm_up) == 1.0
    assert recipe.lr_at(0.0) < 0.01
    assert recipe.lr_at(1.0) == pytest.approx(recipe.final)


def test_timesteps_cover_the_range_evenly():
    t = unet.timesteps(torch.full((unet.TIMESTEPS,), 1 / unet.TIMESTEPS), 10, random(0))
    assert (t // 100).tolist() == list(range(10))


def test_mirroring_is_withheld_from_pictures_that_forbid_it():
    mean = torch.stack([torch.zeros(2, 4, 16, 16), torch.ones(2, 4, 16, 16)])
    data = unet.Latents(mean, torch.zeros_like(mean), [APPLE, CLOCK])
    x, chosen = data.draw(400, random(0))
    mirrored = {p.label: {v for v, q in zip(x[:, 0, 0, 0].tolist(), chosen, strict=True) if q == p} for p in chosen}
    assert mirrored == {"red apple": {0.0, 1.0}, "alarm clock": {0.0}}


def test_export_is_a_folder_of_plain_diffusers(tokenizer, tmp_path, capsys):
    work = tmp_path / "work"
    captions.make_tokenizer(work / "clip" / "model", [APPLE, CLOCK])
    model = clip.build(tokenizer)
    model.save_pretrained(work / "clip" / "model")
    (work / "vae").mkdir()
    save_file(vae.build().state_dict(), work / "vae" / "folded.safetensors")
    unet.build().save_pretrained(work / "unet" / "unet")
    unet.text_tower(work)[0].save_pretrained(work / "unet" / "text_encoder")

    export.export(work, tmp_path / "model")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "model", torch_dtype=torch.float32)
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {p.dtype for p in part.parameters()} == {torch.float32}
    config = json.loads((tmp_path / "model" / "tokenizer" / "tokenizer_config.json").read_text(encoding="utf-8"))
    assert config["tokenizer_class"] == "CLIPTokenizer"
    assert "name_or_path" not in config
    assert not any("_name_or_path" in path.read_text(encoding="utf-8") for path in (tmp_path / "model").rglob("*.json"))
    text = pipeline.text_encoder.state_dict()
    for name, value in model.text_model.state_dict().items():
        found = text[name] if name in text else text[f"text_model.{name}"]
        torch.testing.assert_close(found, value, rtol=1e-3, atol=1e-4)
