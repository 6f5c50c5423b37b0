"""`draft sample` with a search: what it writes, what it prints, and what it refuses before anything is loaded."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.transforms.functional import pil_to_tensor

import draft_core
from draft_core.rewards.images import to_pil
from draft_core.search.latents_file import read_latents
from tests.support.runs import saved_lora

Draft = Callable[..., tuple[int, str]]
WORDS = ("sample", "tiny", "--prompts", "a cat", "--prompts", "a red dog")


def pixels(path: Path | str) -> torch.Tensor:
    with Image.open(path) as image:
        return pil_to_tensor(image)


def test_the_best_of_several_lies_beside_the_grid_with_all_scores(draft: Draft, catalog: Any) -> None:
    code, text = draft(
        *WORDS, "--best-of", "3", "--images", "2", "--seed", "5", "--reward", "redness", "-o", "out/b.png"
    )
    assert code == 0, text
    drawn = draft_core.sample("tiny", ["a cat", "a red dog"], images_per_prompt=3, seed=5, catalog=catalog)[0]
    red, green, blue = drawn.mean((-2, -1)).unbind(-1)
    scores = red - (green + blue) / 2
    record = json.loads(Path("out/b.json").read_text())
    assert record["search"] == {"kind": "best-of", "n": 3}
    assert [reward["kind"] for reward in record["rewards"]] == ["redness"]
    for row, found in enumerate(record["prompts"]):
        torch.testing.assert_close(torch.tensor(found["scores"]["redness"]), scores[row])
        order = scores[row].argsort(descending=True).tolist()
        assert [image["seed"] for image in found["images"]] == [5 + order[0], 5 + order[1]]
        assert found["tried"] == [5, 6, 7]
        for place, image in enumerate(found["images"]):
            expected = pil_to_tensor(to_pil(drawn[row, order[place]]))
            assert torch.equal(pixels(Path("out") / image["file"]), expected)
    assert "redness, seed 5" in text
    assert f"{float(scores[:, 0].mean()):.4g}" in text
    assert "wrote out/b.png" in text
    assert not Path("out/b.safetensors").exists()


def test_noise_that_was_found_is_drawn_again_from_its_file(draft: Draft) -> None:
    how = ("--steps", "2", "--guidance", "1.5", "--set", "contrast=100", "--seed", "7", "--batch-size", "2")
    code, text = draft(*WORDS, "--optimise-noise", "3", "--images", "2", "-r", "redness", *how, "-o", "n.png")
    assert code == 0, text
    assert "after 3 iterations" in text
    record = json.loads(Path("n.json").read_text())
    assert record["search"] == {
        "kind": "optimise-noise",
        "iterations": 3,
        "learning_rate": 5.0,
        "max_grad_norm": 0.1,
        "norm_weight": 0.01,
    }
    for found in record["prompts"]:
        assert [image["seed"] for image in found["images"]] == [7, 8]
        for place, image in enumerate(found["images"]):
            tried = found["scores"]["redness"][place]
            assert len(tried) == len(found["norms"][place]) == 4
            assert image["scores"]["redness"] == max(tried) > tried[0]
    saved = read_latents(Path("n.safetensors"))
    assert saved.latents.shape == (2, 2, 4, 8, 8)
    assert (saved.prompts, saved.seed) == (("a cat", "a red dog"), 7)
    assert saved.drawn == {"model": "tiny", "lora": None, "scale": 1.0, "steps": 2, "guidance": 1.5}

    code, text = draft("sample", "tiny", "--latents", "n.safetensors", "--output", "again.png")
    assert code == 0, text
    assert "was found for" not in text
    both, again = pixels("n.png"), pixels("again.png")
    assert torch.equal(both[:, -136:, -272:], again[:, -136:, -272:])
    code, text = draft("sample", "tiny", "--latents", "n.safetensors", "--steps", "3", "--output", "other.png")
    assert not torch.equal(again, pixels("other.png"))


def test_a_lora_is_searched_at_its_scale_and_its_noise_knows_it(draft: Draft, tmp_path: Path) -> None:
    lora = str(saved_lora(tmp_path / "lora"))
    words = ("sample", "tiny", "--prompts", "a cat", "--lora", lora, "--scale", "0.5")
    code, text = draft(*words, "--optimise-noise", "1", "--recompute", "--reward", "redness")
    assert code == 0, text
    assert read_latents(Path("samples.safetensors")).drawn["scale"] == 0.5
    code, text = draft("sample", "tiny", "--latents", "samples.safetensors")
    assert code == 0, text
    assert f"the noise in samples.safetensors was found for model tiny, lora {lora}, scale 0.5" in text


RECIPE = """
model: {pretrained: tiny, num_inference_steps: 2, gradient_checkpointing: true, lora: {rank: 2}}
prompts: tiny-train
rewards:
- {kind: redness, weight: 2.0, contrast: 3.0}
metrics: [{kind: brightness}]
"""


def test_the_rewards_of_a_run_are_those_of_its_search(draft: Draft, tmp_path: Path) -> None:
    saved_lora(tmp_path / "run" / "lora")
    (tmp_path / "run" / "recipe.yaml").write_text(RECIPE)
    (tmp_path / "run" / "metrics.jsonl").write_text("")
    words = ("sample", "tiny", "--prompts", "a cat", "--lora", "run")
    code, text = draft(*words, "--best-of", "2")
    assert code == 0, text
    assert "rewards of the run: redness" in text
    (reward,) = json.loads(Path("samples.json").read_text())["rewards"]
    assert (reward["contrast"], reward["weight"]) == (3.0, 2.0)
    assert draft(*words, "--optimise-noise", "1", "--reward", "redness")[0] == 0
    (reward,) = json.loads(Path("samples.json").read_text())["rewards"]
    assert (reward["contrast"], reward["weight"]) == (1.0, 1.0)


def test_a_reward_without_gradient_is_searched_among_seeds(draft: Draft) -> None:
    assert draft(*WORDS, "--best-of", "2", "--reward", "brightness")[0] == 0
    code, text = draft(*WORDS, "--optimise-noise", "2", "--reward", "brightness")
    assert code == 2
    assert "--optimise-noise: reward 'brightness' has no gradient for the noise to climb; use --best-of" in text


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("--best-of 0 --reward redness", "Invalid value for '--best-of'"),
        ("--optimise-noise 0 --reward redness", "Invalid value for '--optimise-noise'"),
        ("--best-of 2 --optimise-noise 2", "--best-of and --optimise-noise contradict each other; give one of them"),
        ("--best-of 2", "--reward: nothing says which image is better; name a reward that `draft rewards` lists"),
        ("--best-of 2 --reward rednes", "unknown reward 'rednes'"),
        ("--best-of 2 --reward redness --set contrast=0", "reward 'redness': contrast: input should be greater than 0"),
        ("--best-of 2 --set contrast=2", "--set: it gives fields of a reward, and none is named"),
        ("--best-of 2 --reward redness --images 3", "--images: it keeps 3 of 2 images; keep 2 or fewer"),
        ("--best-of 2 --reward redness --recompute", "--recompute: --best-of has no backward pass; leave it out"),
        ("--best-of 2 --reward redness --lora lora --scale 0,1", "--scale 0,1: a search draws at one scale"),
        ("--reward redness", "--reward: it belongs to a search; give --best-of or --optimise-noise too"),
        ("--batch-size 2", "--batch-size: it belongs to a search"),
        ("--recompute", "--recompute: it belongs to a search"),
        ("--latents n.safetensors", "--prompts: the file of latents says that; leave it out, or leave out --latents"),
        ("--best-of 2 --reward redness --output x.txt", "ending '.txt' names no format of images"),
    ],
)
def test_words_that_contradict_are_refused(draft: Draft, words: str, sentence: str, monkeypatch: Any) -> None:
    monkeypatch.setattr("draft_core.runs.sample.build_sampler", lambda *_, **__: pytest.fail("it was loaded"))
    code, text = draft("sample", "tiny", "--prompts", "a cat", *words.split())
    assert code == 2
    assert sentence in " ".join(text.replace("│", " ").split())


def test_a_seed_of_zero_beside_a_file_of_latents_is_refused_like_any_other(draft: Draft) -> None:
    for seed in ("0", "7"):
        code, text = draft("sample", "tiny", "--latents", "n.safetensors", "--seed", seed)
        assert code == 2
        assert "--seed: the file of latents says that" in text


def test_files_of_latents_that_are_none_are_refused(draft: Draft, tmp_path: Path) -> None:
    (tmp_path / "text.safetensors").write_text("words")
    save_file({"latents": torch.zeros(2, 2, 3)}, tmp_path / "bare.safetensors")
    about = json.dumps({"prompts": ["a cat"], "seed": 0, "drawn": {"model": "tiny", "lora": None, "scale": 1.0}})
    for name, shape in (("two", (2, 1, 4, 8, 8)), ("wide", (1, 1, 4, 8, 16))):
        save_file({"latents": torch.zeros(shape)}, tmp_path / f"{name}.safetensors", {"draft_core.search": about})
    for name, sentence in {
        "none": "none.safetensors: no such file; check the path",
        "text": "text.safetensors: it is not a safetensors file",
        "bare": "bare.safetensors: it holds no latents of a search; give what `draft sample --optimise-noise` wrote",
        "two": "two.safetensors: it holds latents of shape (2, 1, 4, 8, 8) for 1 prompts",
        "wide": "latents: they are (1, 4, 8, 16), and StableDiffusionPipeline starts 1 such images from (1, 4, 8, 8)",
    }.items():
        code, text = draft("sample", "tiny", "--latents", f"{name}.safetensors")
        assert code == 2, text
        assert sentence in text
    assert "--prompts: there are no prompts; give at least one" in draft("sample", "tiny")[1]
