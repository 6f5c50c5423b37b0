"""Trains the preference scorer: the CLIP stage's model, taught which of two images of a prompt a person would pick.

As HPSv2 (Wu et al. 2023) it stays a CLIP whose cosine is the score. What people would say is known here without
asking them: a real picture before a drawing, a drawing of many guided steps before one of few, either before a picture
of another thing, and a picture before the same one spoilt.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms
from transformers import CLIPModel, CLIPTokenizer

from . import captions, clip, drawn, pictures
from .loop import Budget, Recipe, Training
from .pictures import Picture
from .vae import autocast, to_tensor

RECIPE = Recipe(lr=3e-4, weight_decay=0.1, ema=0.995)
PROMPTS = 24  # in a batch
SEED = 77
HELD_OUT_EVERY = 7  # concepts whose drawings are never trained on
CONTRAST = 0.5  # weight of the contrastive loss, which keeps right prompts before wrong ones
SCALE = 100.0  # logit scale of a comparison, HPSv2's


def train(work: Path, budget: Budget, device: torch.device, start: Path, tokenizer_folder: Path) -> None:
    """Leave the scorer in work/preference/model; its accuracies are printed and written beside it."""
    data = Tiers.load(work)
    tokenizer = CLIPTokenizer.from_pretrained(tokenizer_folder)
    module = CLIPModel.from_pretrained(start, dtype=torch.float32).to(device)
    if device.type == "cpu":
        module.set_attn_implementation("eager")
    training = Training(module.train(), RECIPE, budget, work / "preference" / "checkpoint.pt", seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        images, texts = data.batch(generator)
        ids = captions.tokens(tokenizer, texts).to(device)
        count = images.shape[1]
        with autocast(device):
            x, y = embed(module, images.flatten(0, 1).to(device), ids)
        x = x.float().unflatten(0, (-1, count))
        scores = SCALE * (x * y.float()[:, None]).sum(-1)
        return ranking_loss(scores) + CONTRAST * contrastive_loss(x[:, 0], y.float())

    for p in training.run(loss, report_every=25):
        rate = p.steps_per_s * PROMPTS * (2 + len(drawn.SETTINGS))
        print(f"preference {p.share:4.0%} step {p.step} loss {p.loss:.4f} {rate:.0f} img/s", flush=True)

    final = CLIPModel.from_pretrained(start, dtype=torch.float32)
    final.load_state_dict(training.averaged())
    final.eval().save_pretrained(work / "preference" / "model")
    figures = accuracies(final, tokenizer, data)
    (work / "preference" / "accuracies.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for name, (share, count) in figures.items():
        print(f"preference {name}: right in {share:.3f} of {count}", flush=True)


def embed(model: CLIPModel, images: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Image and text embeddings of unit length, (N, D) and (B, D)."""
    x = model.visual_projection(model.vision_model(pixel_values=images).pooler_output)
    y = model.text_projection(model.text_model(input_ids=ids).pooler_output)
    return F.normalize(x, dim=-1), F.normalize(y, dim=-1)


def ranking_loss(scores: Tensor) -> Tensor:
    """Bradley-Terry over all pairs of each prompt's images; scores (B, K) in order, the best first."""
    difference = scores[:, :, None] - scores[:, None, :]
    better, worse = torch.triu_indices(scores.shape[1], scores.shape[1], offset=1)
    return F.softplus(-difference[:, better, worse]).mean()


def contrastive_loss(x: Tensor, y: Tensor) -> Tensor:
    """CLIP's loss between the best image of each prompt and the prompts; (B, D) both."""
    logits = SCALE * x @ y.T
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


class Tiers:
    """Images of each prompt, the best first: a real one, drawings from good to bad, another thing's picture."""

    def __init__(
        self, images: np.ndarray, meta: Sequence[Picture], drawings: np.ndarray, wanted: Sequence[drawn.Drawing]
    ) -> None:
        self.images, self.drawings = images, drawings
        self.real: dict[tuple[int, str], int] = {}
        for i, p in enumerate(meta):
            if p.concept >= 0:
                self.real[p.concept, p.style] = i
        self.phrases = {p.concept: p.phrase for p in meta if p.concept >= 0}
        rows: dict[tuple[int, str], list[int]] = {}
        for i, d in enumerate(wanted):
            rows.setdefault((d.concept, d.style), [0] * len(drawn.SETTINGS))[d.setting] = i
        order = sorted(range(len(drawn.SETTINGS)), key=lambda s: -drawn.SETTINGS[s].tier)
        self.rows = {key: [row[s] for s in order] for key, row in rows.items()}
        keys = sorted(self.rows)
        self.seen = [k for k in keys if k[0] % HELD_OUT_EVERY]
        self.unseen = [k for k in keys if not k[0] % HELD_OUT_EVERY]

    @classmethod
    def load(cls, work: Path) -> Tiers:
        """Those of the work folder."""
        return cls(*pictures.load(work), *drawn.load(work))

    def text(self, key: tuple[int, str]) -> str:
        """The prompt."""
        phrase = self.phrases[key[0]]
        return f"{captions.styled(key[1])}, {phrase}" if key[1] else phrase

    def of(self, key: tuple[int, str], other: tuple[int, str]) -> Tensor:
        """(K, 3, 64, 64) in [-1, 1], the best first: `other` is the prompt whose real picture comes last."""
        real = [self.images[self.real_of(k)] for k in (key, other)]
        levels = np.stack([real[0], *self.drawings[self.rows[key]], real[1]])
        return to_tensor(levels)

    def real_of(self, key: tuple[int, str]) -> int:
        """The index of a picture that fits the prompt."""
        styles = [key[1]] if key[1] else list(drawn.STYLES[key[0] % 3 :]) + list(drawn.STYLES)
        return next(self.real[key[0], s] for s in styles if (key[0], s) in self.real)

    def batch(self, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Images (PROMPTS, K, 3, 64, 64) and prompts, each of another concept.

        One of two rows has a spoilt real picture in place of its worst drawing. All images of a row are mirrored,
        shifted and given noise alike, so that none of these tells them apart.
        """
        order = torch.randperm(len(self.seen), generator=generator).tolist()
        keys: list[tuple[int, str]] = []
        for i in order:
            if len(keys) < PROMPTS and self.seen[i][0] not in {k[0] for k in keys}:
                keys.append(self.seen[i])
        rows = []
        for key, other in zip(keys, keys[1:] + keys[:1], strict=True):
            row = self.of(key, other)
            if torch.rand((), generator=generator) < 0.5:
                row[-2] = spoilt(row[0], generator)
            rows.append(alike(row, generator))
        return torch.stack(rows), [self.text(k) for k in keys]


def spoilt(image: Tensor, generator: torch.Generator) -> Tensor:
    """The image (3, H, W) blurred, faded, over-coloured, blotched or noisy, plainly worse than before."""
    kind = int(torch.randint(6, (), generator=generator))
    size = 0.5 + 0.5 * float(torch.rand((), generator=generator))
    if kind == 0:
        return transforms.gaussian_blur(image, [9, 9], [3.0 * size])
    if kind == 1:
        return 1 + (image - 1) * (0.65 - 0.4 * size)
    if kind == 2:
        return (image * (1 + 2 * size)).clamp(-1, 1)
    if kind == 3:
        coarse = torch.randn((1, 3, 8, 8), generator=generator)
        return (image + size * F.interpolate(coarse, size=image.shape[-2:], mode="bilinear")[0]).clamp(-1, 1)
    if kind == 4:
        return (image + 0.6 * size * torch.randn(image.shape, generator=generator)).clamp(-1, 1)
    grey = image.mean(0, keepdim=True)
    return (grey + (1 + 3 * size) * (image - grey)).clamp(-1, 1)


def alike(row: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, shift and add noise, the same for all images of the row (K, 3, H, W)."""
    draws = torch.rand(2, generator=generator).tolist()
    if draws[0] < 0.5:
        row = row.flip(-1)
    padded = F.pad(row, (clip.SHIFT,) * 4, value=1.0)
    a, b = torch.randint(2 * clip.SHIFT + 1, (2,), generator=generator).tolist()
    side = row.shape[-1]
    row = padded[..., a : a + side, b : b + side]
    return row + 0.1 * draws[1] * torch.randn(row.shape[1:], generator=generator)


@torch.no_grad()
def accuracies(model: CLIPModel, tokenizer: CLIPTokenizer, data: Tiers) -> dict[str, tuple[float, int]]:
    """How often the better of two has the higher score, over prompts whose drawings were never trained on."""
    names = ["real", *(f"{s.steps} steps at {s.guidance:g}" for s in ordered_settings()), "another thing"]
    texts = [data.text(k) for k in data.unseen]
    rows = []
    for key, other in zip(data.unseen, data.unseen[3:] + data.unseen[:3], strict=True):
        x, y = embed(model, data.of(key, other), captions.tokens(tokenizer, [data.text(key)]))
        rows.append((x @ y.T)[:, 0])
    scores = torch.stack(rows)
    found = {}
    for i in range(len(names)):
        for j in range(i + 1, len(names)):
            found[f"{names[i]} before {names[j]}"] = (float((scores[:, i] > scores[:, j]).float().mean()), len(texts))
    return found


def ordered_settings() -> list[drawn.Setting]:
    """The settings of drawings, the best first."""
    return sorted(drawn.SETTINGS, key=lambda s: -s.tier)
