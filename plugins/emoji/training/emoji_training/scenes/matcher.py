"""Trains the scorer of scenes: the CLIP stage's model, taught to tell a scene from almost the same one.

Beside the other captions of its batch an image meets one that is nearly right: colours swapped, another colour, another
thing, one thing too few or too many. Beside the other images a caption meets its own spoilt, or decoded from noisy
latents as a weak denoiser draws. So the cosine falls with what is wrong, and with what is badly drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from draft_emoji.scene_words import COLOURS, dyeable
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPModel, CLIPTokenizer

from .. import captions, pictures, preference
from ..loop import Budget, Recipe, Training
from ..vae import autocast
from .composing import Composer, Scene, Thing

RECIPE = Recipe(lr=5e-4, weight_decay=0.1, ema=0.995)
BATCH = 48
DECODED, SPOILT = 8, 8  # images of a batch that stand beside their bad versions
NOISE = (0.2, 0.6)  # of the latents that images are decoded from, which have a standard deviation of 1
SCALE = 50.0  # of the cosines in the loss
TESTED = 600  # pairs
SEED = 21


def train(work: Path, budget: Budget, device: torch.device, start: Path, model: Path) -> None:
    """Leave the scorer in work/scenes-matcher/model; its accuracies are printed and written beside it."""
    composer = Composer(*pictures.load(work))
    coder = AutoencoderKL.from_pretrained(model / "vae", torch_dtype=torch.float32).eval().to(device)
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    module = CLIPModel.from_pretrained(start, dtype=torch.float32).to(device)
    if device.type == "cpu":
        module.set_attn_implementation("eager")
    folder = work / "scenes-matcher"
    training = Training(module.train(), RECIPE, budget, folder / "checkpoint.pt", seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        images, scenes = composer.batch(BATCH, generator)
        bad = [decoded(coder, images[:DECODED], generator)]
        bad += [preference.spoilt(x, generator)[None] for x in images[DECODED : DECODED + SPOILT]]
        pixels = altered(torch.cat([images, *bad]), generator)
        right = [composer.caption(s.things, generator, empty=0.0) for s in scenes]
        wrong = [composer.words(nearly(composer, s, generator)) for s in scenes]
        ids = captions.tokens(tokenizer, right + wrong).to(device)
        with autocast(device):
            x, y = preference.embed(module, pixels.to(device), ids)
        logits = SCALE * x.float() @ y.float().T
        target = torch.arange(BATCH, device=device)
        return (F.cross_entropy(logits[:BATCH], target) + F.cross_entropy(logits.T[:BATCH], target)) / 2

    for p in training.run(loss, report_every=50):
        print(f"matcher {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * BATCH:.0f} img/s", flush=True)

    final = CLIPModel.from_pretrained(start, dtype=torch.float32)
    final.load_state_dict(training.averaged())
    final.eval().save_pretrained(folder / "model")
    figures = accuracies(final, tokenizer, composer, coder.cpu())
    (folder / "accuracies.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for name, (share, count) in figures.items():
        print(f"matcher {name}: right in {share:.3f} of {count}", flush=True)


@torch.no_grad()
def decoded(coder: AutoencoderKL, images: Tensor, generator: torch.Generator) -> Tensor:
    """The images through the autoencoder, with noise in the latents of a size drawn for each."""
    device = next(coder.parameters()).device
    z = coder.encode(images.to(device)).latent_dist.mode().cpu()
    low, high = NOISE
    size = low + (high - low) * torch.rand((len(z), 1, 1, 1), generator=generator)
    noisy = z + size * torch.randn(z.shape, generator=generator)
    return coder.decode(noisy.to(device)).sample.clamp(-1, 1).cpu()


def altered(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirrored, or not, and with a little noise: which thing stands left says nothing."""
    mirror = torch.rand(len(images), generator=generator) < 0.5
    images = torch.where(mirror[:, None, None, None], images.flip(-1), images)
    size = 0.05 * torch.rand((len(images), 1, 1, 1), generator=generator)
    return images + size * torch.randn(images.shape, generator=generator)


def nearly(composer: Composer, scene: Scene, generator: torch.Generator) -> tuple[Thing, ...]:
    """Other things than the scene's, by one change: whose words fit it almost."""
    things = list(scene.things)
    at, which, kind = (int(torch.randint(2**30, (), generator=generator)) for _ in range(3))
    at %= len(things)
    colours = [t.colour for t in things]
    if kind % 4 < 2 and any(colours):
        if len(things) == 2 and kind % 4 == 0 and swappable(composer, things):
            return tuple(Thing(t.index, c) for t, c in zip(things, reversed(colours), strict=True))
        at = next(i for i, c in enumerate(colours) if c)
        free = [c for c in (*COLOURS, "") if c != colours[at]]
        things[at] = Thing(things[at].index, free[which % len(free)])
        return tuple(things)
    new = stranger(composer, scene, generator)
    if len(things) == 1 and kind % 4 == 2:
        return (things[0], Thing(new))
    if len(things) == 2 and kind % 8 == 3:
        return (things[at],)
    things[at] = Thing(new, things[at].colour if dyeable(composer.meta[new].phrase) else "")
    return tuple(things)


def swappable(composer: Composer, things: list[Thing]) -> bool:
    """Whether each of two things can have the other's colour, and that makes a difference."""
    left, right = things
    return left.colour != right.colour and all(dyeable(composer.meta[t.index].phrase) for t in things)


@torch.no_grad()
def accuracies(
    model: CLIPModel, tokenizer: CLIPTokenizer, composer: Composer, coder: AutoencoderKL
) -> dict[str, tuple[float, int]]:
    """How often a pair that was never composed in training scores higher with its caption than otherwise."""
    generator = torch.Generator().manual_seed(SEED + 1)
    found: dict[str, list[bool]] = {}
    for _ in range(TESTED):
        scene = composer.scene(generator, pair=1.0, unseen=True)
        if len(scene.things) == 1:  # it has no such partner
            continue
        image = preference.to_tensor(composer.image(scene.things, generator)[None])
        left, right = scene.things
        texts = {
            "own": scene.things,
            "its caption before one with another thing": (
                Thing(stranger(composer, scene, generator), left.colour),
                right,
            ),
        }
        if swappable(composer, [left, right]):
            texts["before one with the colours swapped"] = (
                Thing(left.index, right.colour),
                Thing(right.index, left.colour),
            )
        texts["before one of two that names the first thing only"] = (left,)
        images = torch.cat([image, decoded(coder, image, generator), preference.spoilt(image[0], generator)[None]])
        ids = captions.tokens(tokenizer, [composer.words(t) for t in texts.values()])
        x, y = preference.embed(model, images, ids)
        scores = x @ y.T
        for name, score in zip(list(texts)[1:], scores[0, 1:], strict=True):
            found.setdefault(name, []).append(bool(scores[0, 0] > score))
        found.setdefault("an image before itself from noisy latents", []).append(bool(scores[0, 0] > scores[1, 0]))
        found.setdefault("an image before itself spoilt", []).append(bool(scores[0, 0] > scores[2, 0]))
    return {name: (sum(right) / len(right), len(right)) for name, right in found.items()}


def stranger(composer: Composer, scene: Scene, generator: torch.Generator) -> int:
    """A random picture of a concept that the scene does not show."""
    shown = {composer.meta[t.index].concept for t in scene.things}
    while True:
        index = composer.choices[int(torch.randint(len(composer.choices), (), generator=generator))]
        if composer.meta[index].concept not in shown:
            return index
