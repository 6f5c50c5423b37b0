"""The same score as the published code: its transform on torchvision, and its use of open_clip."""

from __future__ import annotations

from collections.abc import Sequence

import open_clip
import pytest
import torch
import torchvision.transforms.functional as F
from draft_reward_hpsv2 import Hpsv2Config, draft_register_rewards
from draft_reward_hpsv2.reward import TINY, Hpsv2Reward
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, Normalize, ToTensor

from draft_core.images import CLIP_MEAN, CLIP_STD, center_crop, resize_shortest_like_pil, to_pil
from draft_core.testing import Subject

(SPEC,) = draft_register_rewards()
RANDOM = Hpsv2Config(weights="random", architecture="tiny")
SIZES = [(224, 224), (512, 512), (256, 256), (300, 401), (427, 640), (97, 64), (513, 255), (640, 300)]
LIMIT = 1e-5  # of the standard deviation between images
PROMPTS = (
    "a photograph of a red apple on a table",
    "Two CATS,   sleeping",
    "“curly quotes” and it’s &amp; entities",
    "",
    "an oil painting of the sea at night, " * 12,  # more than fits
    "naïve café 東京 🙂",
)


class ResizeMaxSize(torch.nn.Module):
    """The published resize: it runs after the conversion to a tensor."""

    def __init__(self, max_size: int, antialias: bool) -> None:
        super().__init__()
        self.max_size, self.antialias = max_size, antialias

    def forward(self, img: torch.Tensor) -> torch.Tensor:
        height, width = img.shape[1:]
        scale = self.max_size / float(max(height, width))
        if scale != 1.0:
            new_size = tuple(round(dim * scale) for dim in (height, width))
            img = F.resize(img, new_size, InterpolationMode.BICUBIC, antialias=self.antialias)
            pad_h, pad_w = self.max_size - new_size[0], self.max_size - new_size[1]
            img = F.pad(img, padding=[pad_w // 2, pad_h // 2, pad_w - pad_w // 2, pad_h - pad_h // 2], fill=0)
        return img


@torch.no_grad()
def original(reward: Hpsv2Reward, images: list[Image.Image], prompts: Sequence[str]) -> torch.Tensor:
    """The published scoring, one picture at a time, on the reward's own weights."""
    model = open_clip.CLIP(**TINY).eval()
    model.load_state_dict(reward.clip.state_dict())
    preprocess = Compose([ToTensor(), ResizeMaxSize(224, reward.antialias), Normalize(CLIP_MEAN, CLIP_STD)])
    tokenizer = open_clip.get_tokenizer("ViT-H-14")
    scores = []
    for image, prompt in zip(images, prompts, strict=True):
        image_features = model.encode_image(preprocess(image.convert("RGB"))[None], normalize=True)
        text_features = model.encode_text(tokenizer([prompt]), normalize=True)
        scores.append(torch.diagonal(image_features @ text_features.T)[0])
    return torch.stack(scores)


def error(height: int, width: int, antialias: bool = True) -> float:
    """Largest difference from the published code, in standard deviations between images."""
    subject = Subject(SPEC, RANDOM.model_copy(update={"antialias": antialias}))
    images = (subject.images(6, height, width) * 255).round() / 255
    prompts = PROMPTS[:1] * 6
    expected = original(subject.reward, [to_pil(image) for image in images], prompts)
    return float((subject.score(images, prompts) - expected).abs().max() / expected.std())


@pytest.mark.parametrize(("height", "width"), SIZES)
def test_scores_are_those_of_the_published_code(height: int, width: int) -> None:
    assert error(height, width) <= LIMIT


def test_scores_without_antialiasing_are_those_of_older_torchvisions() -> None:
    assert error(427, 640, antialias=False) <= LIMIT


def test_the_crop_of_other_scorers_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def crop(images: torch.Tensor, side: int, antialias: bool) -> torch.Tensor:
        return center_crop(resize_shortest_like_pil(images, side), side, rounding="half-even")

    monkeypatch.setattr("draft_reward_hpsv2.reward.letterbox", crop)
    assert error(300, 401) > LIMIT


def test_prompts_are_read_as_published() -> None:
    subject = Subject(SPEC, RANDOM)
    image = (subject.images(1) * 255).round() / 255
    expected = original(subject.reward, [to_pil(image[0])] * 6, PROMPTS)
    assert expected.std() > 1e-3
    torch.testing.assert_close(subject.score(image.repeat(6, 1, 1, 1), PROMPTS), expected, rtol=0, atol=1e-6)
