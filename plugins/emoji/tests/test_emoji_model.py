"""The shipped folder: it loads in plain diffusers, stays in the asked precision, draws what it is told."""

from __future__ import annotations

import json
from pathlib import Path

import draft_emoji
import pytest
import torch
from diffusers import StableDiffusionPipeline
from draft_emoji import draft_register_pretrained
from safetensors import safe_open

pytestmark = pytest.mark.filterwarnings(
    "ignore:.torch_dtype. is deprecated:FutureWarning"
)  # the old name works everywhere

SPEC = next(spec for spec in draft_register_pretrained() if spec.alias == "emoji")
MODEL = Path(SPEC.location)


@pytest.fixture(scope="module")
def pipeline() -> StableDiffusionPipeline:
    loaded = StableDiffusionPipeline.from_pretrained(MODEL, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    return loaded


def draw(pipeline: StableDiffusionPipeline, prompts: list[str], seed: int = 0) -> torch.Tensor:
    """(B, 3, 64, 64) in [0, 1] after 8 steps, every image from the same noise."""
    noise = torch.randn(1, 4, 16, 16, generator=torch.Generator().manual_seed(seed)).repeat(len(prompts), 1, 1, 1)
    return pipeline(prompts, latents=noise, num_inference_steps=8, guidance_scale=4.0, output_type="pt").images


def lines(name: str) -> list[str]:
    return Path(SPEC.prompts[name]).read_text(encoding="utf-8").splitlines()


def concept_of(prompt: str) -> str:
    """The prompt without its style."""
    return prompt.split(" style, ")[-1]


def test_every_part_is_float32_when_float32_is_asked_for(pipeline):
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        assert {t.dtype for t in (*part.parameters(), *part.buffers()) if t.is_floating_point()} == {torch.float32}


def test_the_files_are_half_precision_and_small():
    files = [f for f in MODEL.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 25e6
    assert not [f for f in files if f.suffix in {".bin", ".pt", ".ckpt", ".pkl"}]


def test_size_and_scaling_are_those_of_the_latents(pipeline):
    assert pipeline.vae.config.scaling_factor == 1.0
    assert pipeline.unet.config.sample_size == 16
    assert pipeline.scheduler.config.timestep_spacing == "trailing"


def test_tokenizer_files_serve_old_and_new_transformers(pipeline):
    folder = MODEL / "tokenizer"
    vocab = json.loads((folder / "vocab.json").read_text(encoding="utf-8"))
    merges = (folder / "merges.txt").read_text(encoding="utf-8").splitlines()
    fast = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    assert merges[0].startswith("#version")
    assert vocab == fast["vocab"]
    assert [tuple(m.split(" ")) for m in merges[1:]] == [tuple(m) for m in fast["merges"]]
    assert pipeline.text_encoder.config.eos_token_id == pipeline.tokenizer.eos_token_id == max(vocab.values())


def test_text_weights_carry_the_names_that_every_transformers_reads():
    with safe_open(MODEL / "text_encoder" / "model.safetensors", "pt") as weights:
        names = list(weights.keys())
    assert names
    assert all(name.startswith("text_model.") for name in names)


def test_no_file_names_a_folder_of_the_machine_it_was_made_on():
    for file in MODEL.rglob("*.json"):
        text = file.read_text(encoding="utf-8")
        assert '"/' not in text.replace('"/"', "").replace('"/</w>"', ""), file


def test_prompt_lists_are_disjoint_in_concepts():
    train, held_out = lines("emoji-train"), lines("emoji-heldout")
    assert len(train) >= 150
    assert len(held_out) >= 30
    assert len(set(train)) == len(train)
    assert len(set(held_out)) == len(held_out)
    assert all(line == line.strip() and line for line in (*train, *held_out))
    assert not {concept_of(p) for p in train} & {concept_of(p) for p in held_out}


def test_the_plain_list_is_the_training_list_without_styles():
    assert lines("emoji-train-plain") == [concept_of(prompt) for prompt in lines("emoji-train")]


def test_prompts_are_of_concepts_the_model_was_trained_on():
    from emoji_training.pictures import read_concepts

    phrases = {phrase for _, phrase, _ in read_concepts().values()}
    assert {concept_of(p) for name in SPEC.prompts for p in lines(name)} <= phrases


def test_no_prompt_is_cut_off(pipeline):
    longest = max(len(pipeline.tokenizer(p).input_ids) for name in SPEC.prompts for p in lines(name))
    assert longest <= pipeline.tokenizer.model_max_length == 24


def test_sampling_is_deterministic_and_follows_the_prompt(pipeline):
    first = draw(pipeline, ["a red heart", "a green heart", "flat style, a red heart"])
    torch.testing.assert_close(draw(pipeline, ["a red heart", "a green heart", "flat style, a red heart"]), first)
    red, green, flat = first
    assert (red - green).abs().mean() > 0.02
    assert (red - flat).abs().mean() > 0.002
    assert red[0].mean() - red[1].mean() > green[0].mean() - green[1].mean()


def test_seeds_give_different_images(pipeline):
    one, other = (draw(pipeline, ["a dog face"], seed) for seed in (1, 2))
    assert (one - other).abs().mean() > 0.002


def test_no_file_of_the_models_says_where_it_was_made():
    configs = [*Path(draft_emoji.__file__).parent.rglob("*.json")]
    assert len(configs) > 10
    assert [path for path in configs if "_name_or_path" in path.read_text(encoding="utf-8")] == []
