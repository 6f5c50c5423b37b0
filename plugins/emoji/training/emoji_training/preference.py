"""Trains the preference scorer: the CLIP stage's model, taught which of two images of a prompt a person would pick.

As HPSv2 (Wu et al. 2023) it stays a CLIP whose cosine is the score. What people would say is known here without
asking them: a real picture before the same one spoilt, or decoded from noisy latents, which blurs and blotches it as a
weak denoiser does; a real picture before a drawing of its prompt, and a drawing of many guided steps before one of few;
and any of these before a picture of another thing.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms
from transformers import CLIPModel, CLIPTokenizer

from . import captions, clip, drawn, pictures
from .loop import Budget, Recipe, Training
from .pictures import Picture
from .vae import autocast, chunks, to_tensor

RECIPE = Recipe(lr=3e-4, weight_decay=0.1, ema=0.995)
PAIRS = 40  # in a batch
DECODED, SPOILT = 0.35, 0.25  # shares of the pairs; the rest are of drawings
NOISES = (0.1, 0.3, 0.5)  # of the latents that pictures are decoded from, which have a standard deviation of 1
SEED = 77
HELD_OUT_EVERY = 7  # concepts whose drawings are never trained on
CONTRAST = 0.5  # weight of the contrastive loss, which keeps right prompts before wrong ones
SCALE = 100.0  # logit scale of a comparison, HPSv2's


def train(work: Path, budget: Budget, device: torch.device, start: Path, model: Path) -> None:
    """Leave the scorer in work/preference/model; its accuracies are printed and written beside it.

    `start` is the folder of the CLIP stage's model, `model` that of the pipeline that drew.
    """
    data = Pairs(*pictures.load(work), through_autoencoder(work, model / "vae"), *drawn.load(work))
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    module = CLIPModel.from_pretrained(start, dtype=torch.float32).to(device)
    if device.type == "cpu":
        module.set_attn_implementation("eager")
    training = Training(module.train(), RECIPE, budget, work / "preference" / "checkpoint.pt", seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        better, worse, texts = data.batch(generator)
        ids = captions.tokens(tokenizer, texts).to(device)
        with autocast(device):
            x, y = embed(module, torch.cat([better, worse]).to(device), ids)
        good, bad = x.float().chunk(2)
        y = y.float()
        return F.softplus(-SCALE * ((good - bad) * y).sum(1)).mean() + CONTRAST * contrastive_loss(good, y)

    for p in training.run(loss, report_every=25):
        rate = p.steps_per_s * 2 * PAIRS
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


def contrastive_loss(x: Tensor, y: Tensor) -> Tensor:
    """CLIP's loss between the better image of each prompt and the prompts; (B, D) both."""
    logits = SCALE * x @ y.T
    target = torch.arange(len(x), device=x.device)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


@torch.no_grad()
def through_autoencoder(work: Path, folder: Path) -> np.ndarray:
    """Every picture, decoded from its latents with noise of each size: uint8 (sizes, N, 64, 64, 3); kept on disk."""
    file = work / "preference" / "decoded.npy"
    if not file.exists():
        coder = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32).eval()
        generator = torch.Generator().manual_seed(SEED)
        rows = []
        for size in NOISES:
            parts = []
            for x in chunks(pictures.load(work)[0]):
                z = coder.encode(x).latent_dist.mode()
                y = coder.decode(z + size * torch.randn(z.shape, generator=generator)).sample
                parts.append(((y.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy())
            rows.append(np.concatenate(parts))
            print(f"preference: pictures with noise {size} decoded", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        drawn.save(file, np.stack(rows))
    return np.load(file)


class Pairs:
    """Pairs of images of one prompt, the better one first.

    Of every `HELD_OUT_EVERY`-th label, and of every `HELD_OUT_EVERY`-th concept, no image is ever trained on.
    """

    def __init__(
        self,
        images: np.ndarray,
        meta: Sequence[Picture],
        decoded: np.ndarray,
        drawings: np.ndarray,
        wanted: Sequence[drawn.Drawing],
    ) -> None:
        self.images, self.meta, self.decoded, self.drawings = images, meta, decoded, drawings
        hidden = {label for i, label in enumerate(sorted({p.label for p in meta})) if i % HELD_OUT_EVERY == 0}
        hidden |= {p.label for p in meta if p.concept >= 0 and p.concept % HELD_OUT_EVERY == 0}
        self.seen = [i for i, p in enumerate(meta) if p.label not in hidden]
        self.unseen = [i for i, p in enumerate(meta) if p.label in hidden]
        self.real = {(p.concept, p.style): i for i, p in enumerate(meta) if p.concept >= 0}
        rows: dict[tuple[int, str], list[int]] = {}
        for i, d in enumerate(wanted):
            rows.setdefault((d.concept, d.style), [0] * len(drawn.SETTINGS))[d.setting] = i
        self.rows = rows
        labels = {p.concept: p.label for p in meta if p.concept >= 0}
        self.seen_rows = [k for k in sorted(rows) if labels[k[0]] not in hidden]
        self.unseen_rows = [k for k in sorted(rows) if labels[k[0]] in hidden]
        self.phrases = {p.concept: p.phrase for p in meta if p.concept >= 0}

    def text(self, key: tuple[int, str]) -> str:
        """The prompt of a drawing."""
        phrase = self.phrases[key[0]]
        return f"{captions.styled(key[1])}, {phrase}" if key[1] else phrase

    def tiers(self, key: tuple[int, str]) -> Tensor:
        """(1 + settings, 3, 64, 64) in [-1, 1]: a real picture of the prompt, then its drawings from good to bad."""
        styles = [key[1]] if key[1] else [*list(drawn.STYLES)[key[0] % 3 :], *drawn.STYLES]
        real = next(self.real[key[0], s] for s in styles if (key[0], s) in self.real)
        return to_tensor(np.stack([self.images[real], *self.drawings[self.rows[key]]]))

    def batch(self, generator: torch.Generator) -> tuple[Tensor, Tensor, list[str]]:
        """Better and worse images (PAIRS, 3, 64, 64) and prompts.

        Both images of a pair are mirrored, shifted and given noise alike, so that none of these tells them apart.
        """
        rows, texts = [], []
        for kind in torch.rand(PAIRS, generator=generator).tolist():
            if kind < DECODED + SPOILT:
                i = self.seen[int(torch.randint(len(self.seen), (), generator=generator))]
                better = to_tensor(self.images[i][None])[0]
                if kind < DECODED:
                    size = int(torch.randint(len(NOISES), (), generator=generator))
                    worse = to_tensor(self.decoded[size, i][None])[0]
                else:
                    worse = spoilt(better, generator)
                texts.append(captions.caption(self.meta[i], generator, empty=0.0))
            else:
                key = self.seen_rows[int(torch.randint(len(self.seen_rows), (), generator=generator))]
                first, second = sorted(torch.randperm(1 + len(drawn.SETTINGS), generator=generator)[:2].tolist())
                better, worse = self.tiers(key)[[first, second]]
                texts.append(self.text(key))
            rows.append(alike(torch.stack([better, worse]), generator))
        return *torch.stack(rows).unbind(1), texts


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
def accuracies(model: CLIPModel, tokenizer: CLIPTokenizer, data: Pairs) -> dict[str, tuple[float, int]]:
    """How often the better of two has the higher score, over labels and concepts that were never trained on."""

    def scores(images: Tensor, text: str) -> Tensor:
        x, y = embed(model, images, captions.tokens(tokenizer, [text]))
        return (x @ y.T)[:, 0]

    generator = torch.Generator().manual_seed(SEED)
    pairs: dict[str, list[bool]] = {}
    for i in data.unseen[::3]:
        picture = to_tensor(data.images[i][None])[0]
        worse = {f"a picture before itself with noise {s}": data.decoded[n, i] for n, s in enumerate(NOISES)}
        versions = [picture, *(to_tensor(w[None])[0] for w in worse.values()), spoilt(picture, generator)]
        best, *others = scores(torch.stack(versions), f"{captions.styled(data.meta[i].style)}, {data.meta[i].phrase}")
        for name, other in zip([*worse, "a picture before itself spoilt"], others, strict=True):
            pairs.setdefault(name, []).append(bool(best > other))
    names = ["a picture", *(f"{s.steps} steps at {s.guidance:g}" for s in drawn.SETTINGS), "another thing"]
    for key, stranger in zip(data.unseen_rows, data.unseen_rows[3:] + data.unseen_rows[:3], strict=True):
        row = scores(torch.cat([data.tiers(key), data.tiers(stranger)[:1]]), data.text(key))
        for a in range(len(names)):
            for b in range(a + 1, len(names)):
                pairs.setdefault(f"{names[a]} before {names[b]}", []).append(bool(row[a] > row[b]))
    return {name: (sum(right) / len(right), len(right)) for name, right in pairs.items()}
