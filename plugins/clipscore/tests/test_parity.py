"""The same score as each library's own pipeline: its transform or processor with Pillow, and its features."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import open_clip
import pytest
import torch
from draft_reward_clipscore import ClipScoreConfig, draft_register_rewards
from draft_reward_clipscore.encoders import TINY
from draft_reward_clipscore.reward import ClipScoreReward
from open_clip.transform import image_transform
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, CLIPTokenizerFast

from draft_core.images import CLIP_MEAN, CLIP_STD, center_crop, to_pil
from draft_core.testing import Subject

try:  # transformers 5 keeps the processor that works with Pillow under this name
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor as ImageProcessor

(SPEC,) = draft_register_rewards()
OPEN_CLIP = ClipScoreConfig(model="tiny", weights="random", definition="cosine")
# None is more than twice as tall as wide: there Pillow 13 has another order of passes than older ones.
SIZES = [(224, 224), (512, 512), (256, 256), (300, 401), (427, 640), (97, 64), (513, 300)]
LIMIT = 0.002  # of the standard deviation between images
PROMPTS = (
    "a photograph of a red apple on a table",
    "Two CATS,   sleeping",
    "“curly quotes” and it’s &amp; entities",
    "",
    "an oil painting of the sea at night, " * 12,  # more than fits
    "naïve café 東京 🙂",
)


@pytest.fixture
def transformers_config(folder: Path) -> ClipScoreConfig:
    return ClipScoreConfig(library="transformers", model=str(folder), definition="cosine")


@torch.no_grad()
def cosines_of_open_clip(reward: ClipScoreReward, images: list[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
    clip = open_clip.CLIP(**TINY).eval()
    clip.load_state_dict(reward.encoder.clip.state_dict())
    preprocess = image_transform(224, is_train=False, mean=CLIP_MEAN, std=CLIP_STD)
    tokenizer = open_clip.get_tokenizer("ViT-B-32")
    pictures = torch.cat([clip.encode_image(preprocess(image)[None], normalize=True) for image in images])
    return (pictures * clip.encode_text(tokenizer(list(prompts)), normalize=True)).sum(1)


@torch.no_grad()
def cosines_of_transformers(folder: Path, images: list[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
    clip = CLIPModel.from_pretrained(folder).eval()
    processor = CLIPProcessor(image_processor=ImageProcessor(), tokenizer=CLIPTokenizerFast.from_pretrained(folder))
    cosines = []
    for image, prompt in zip(images, prompts, strict=True):
        limits = {"truncation": True, "max_length": 77}
        outputs = clip(**processor(images=[image], text=[prompt], return_tensors="pt", **limits))
        cosines.append(outputs.logits_per_image[0, 0] / clip.logit_scale.exp())
    return torch.stack(cosines)


def cosines(
    config: ClipScoreConfig, reward: ClipScoreReward, images: torch.Tensor, prompts: Sequence[str]
) -> torch.Tensor:
    pictures = [to_pil(image) for image in images]
    if config.library == "open_clip":
        return cosines_of_open_clip(reward, pictures, prompts)
    return cosines_of_transformers(Path(config.model), pictures, prompts)


def error(config: ClipScoreConfig, height: int, width: int) -> float:
    """Largest difference from the library's own pipeline, in standard deviations between images."""
    subject = Subject(SPEC, config)
    images = (subject.images(6, height, width) * 255).round() / 255
    prompts = PROMPTS[:1] * 6
    expected = cosines(config, subject.reward, images, prompts)
    return float((subject.score(images, prompts) - expected).abs().max() / expected.std())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cosines_are_those_of_open_clip(height: int, width: int) -> None:
    assert error(OPEN_CLIP, height, width) <= LIMIT


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_cosines_are_those_of_transformers(transformers_config: ClipScoreConfig, height: int, width: int) -> None:
    assert error(transformers_config, height, width) <= LIMIT


@pytest.mark.parametrize("library", ["open_clip", "transformers"])
def test_prompts_are_read_as_the_library_does(library: str, transformers_config: ClipScoreConfig) -> None:
    config = OPEN_CLIP if library == "open_clip" else transformers_config
    subject = Subject(SPEC, config)
    images = ((subject.images(1) * 255).round() / 255).repeat(6, 1, 1, 1)
    expected = cosines(config, subject.reward, images, PROMPTS)
    assert expected.std() > 1e-3
    torch.testing.assert_close(subject.score(images, PROMPTS), expected, rtol=0, atol=2e-6)


def test_each_library_crops_in_its_own_way(
    monkeypatch: pytest.MonkeyPatch, transformers_config: ClipScoreConfig
) -> None:
    other = {"half-even": "floor", "floor": "half-even"}
    monkeypatch.setattr(
        "draft_reward_clipscore.encoders.center_crop",
        lambda images, side, rounding: center_crop(images, side, rounding=other[rounding]),
    )
    assert error(OPEN_CLIP, 300, 401) > LIMIT
    assert error(transformers_config, 300, 401) > LIMIT
