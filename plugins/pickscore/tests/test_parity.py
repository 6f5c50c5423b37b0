"""The same score as the published code: transformers' processor with Pillow, and its own features."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from draft_reward_pickscore import PickScoreConfig, draft_register_rewards
from draft_reward_pickscore.reward import PickScoreReward, byte_tokenizer
from transformers import CLIPProcessor, CLIPTokenizerFast

from draft_core.images import center_crop, to_pil
from draft_core.testing import Subject

try:  # transformers 5 keeps the processor that works with Pillow under this name
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil as ImageProcessor
except ImportError:
    from transformers import CLIPImageProcessor as ImageProcessor

(SPEC,) = draft_register_rewards()
RANDOM = PickScoreConfig(weights="random", tokenizer="bytes")
# None is more than twice as tall as wide: there Pillow 13 has another order of passes than when this was published.
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


@torch.no_grad()
def original(reward: PickScoreReward, processor: CLIPProcessor, image: torch.Tensor, prompt: str) -> torch.Tensor:
    """The function that the model's card publishes, for one picture, on the reward's own weights."""
    model = reward.clip
    image_inputs = processor(images=[to_pil(image)], return_tensors="pt")
    text_inputs = processor(text=prompt, padding=True, truncation=True, max_length=77, return_tensors="pt")
    image_embs = model.get_image_features(**image_inputs)
    image_embs = getattr(image_embs, "pooler_output", image_embs)
    image_embs = image_embs / torch.norm(image_embs, dim=-1, keepdim=True)
    text_embs = model.get_text_features(**text_inputs)
    text_embs = getattr(text_embs, "pooler_output", text_embs)
    text_embs = text_embs / torch.norm(text_embs, dim=-1, keepdim=True)
    return (model.logit_scale.exp() * (text_embs @ image_embs.T))[0, 0]


def error(height: int, width: int) -> float:
    """Largest difference from the published code, in standard deviations between images."""
    subject = Subject(SPEC, RANDOM)
    images = (subject.images(6, height, width) * 255).round() / 255
    processor = CLIPProcessor(image_processor=ImageProcessor(), tokenizer=byte_tokenizer())
    prompt = PROMPTS[0]
    expected = torch.stack([original(subject.reward, processor, image, prompt) for image in images])
    return float((subject.score(images, (prompt,) * 6) - expected).abs().max() / expected.std())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scores_are_those_of_the_published_code(height: int, width: int) -> None:
    assert error(height, width) <= LIMIT


def test_the_crop_of_another_library_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "draft_reward_pickscore.reward.center_crop",
        lambda images, side, rounding: center_crop(images, side, rounding="half-even"),
    )
    assert error(300, 401) > LIMIT


def test_prompts_are_read_as_published(tokenizer_folder: Path) -> None:
    config = RANDOM.model_copy(update={"tokenizer": str(tokenizer_folder)})
    subject = Subject(SPEC, config)
    processor = CLIPProcessor(
        image_processor=ImageProcessor(), tokenizer=CLIPTokenizerFast.from_pretrained(tokenizer_folder)
    )
    image = (subject.images(1) * 255).round() / 255
    expected = torch.stack([original(subject.reward, processor, image[0], prompt) for prompt in PROMPTS])
    assert expected.std() > 0.1
    torch.testing.assert_close(subject.score(image.repeat(6, 1, 1, 1), PROMPTS), expected, rtol=0, atol=1e-4)


def test_the_vocabulary_is_clips(tokenizer_folder: Path) -> None:
    config = RANDOM.model_copy(update={"tokenizer": str(tokenizer_folder)})
    tokens = PickScoreReward(config).tokenizer(["a photo of a cat"])["input_ids"][0]
    assert tokens == [49406, 320, 1125, 539, 320, 2368, 49407]
