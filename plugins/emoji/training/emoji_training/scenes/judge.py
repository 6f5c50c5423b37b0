"""Trains the judge of scenes: it sees one half of an image at a time, and says which thing it shows, in which colour.

As the judge of single things it is a residual network, other in architecture and seeds than all that a model may be
tuned on, and has seen real pictures only: halves of composed scenes.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from draft_emoji import scene_judge
from draft_emoji.scene_words import COLOURS, things
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms.v2 import functional as transforms
from transformers import ResNetForImageClassification

from .. import clip, judge, pictures, vae
from ..loop import Budget, Recipe, Training
from .composing import Composer, Scene

RECIPE = Recipe(lr=1e-3, weight_decay=5e-2, ema=0.998)
BATCH = 48
SEED = 4321


def train(work: Path, budget: Budget, device: torch.device, start: Path) -> None:
    """Leave the judge in work/scenes-judge/model; `start` is the folder of the judge of single things."""
    images, meta = pictures.load(work)
    held_out = set(clip.held_out_pictures(meta))
    seen = Composer(images, meta, held_out)
    module = build(start).to(device, memory_format=torch.channels_last)
    folder = work / "scenes-judge"
    training = Training(module.train(), RECIPE, budget, folder / "checkpoint.pt", seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        x, shown, colours = batch(seen, generator)
        with vae.autocast(device):
            logits = module(x.to(device, memory_format=torch.channels_last)).logits.float().cpu()
        of_colours = F.cross_entropy(logits[:, len(things()) :], colours, ignore_index=-1)
        return F.cross_entropy(logits[:, : len(things())], shown, label_smoothing=0.05) + 0.5 * of_colours

    for p in training.run(loss, report_every=50):
        print(f"judge {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * BATCH:.0f} img/s", flush=True)

    final = build(start)
    final.load_state_dict(training.averaged())
    measure_statistics(final, seen)
    final.config.id2label = dict(enumerate([*things(), *COLOURS]))
    final.config.label2id = {name: i for i, name in final.config.id2label.items()}
    final.eval().save_pretrained(folder / "model")
    others = set(range(len(meta))) - held_out
    figures = {
        "halves of scenes of images that it never saw": accuracy(final, Composer(images, meta, others)),
        "halves of scenes of images that it saw": accuracy(final, seen),
    }
    (folder / "accuracies.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for name, (thing, colour, count) in figures.items():
        print(f"judge {name}: {count}, thing {thing:.3f}, colour {colour:.3f}", flush=True)


def build(start: Path) -> ResNetForImageClassification:
    """The judge of single things with other outputs: the things of scenes, and the colours."""
    model = judge.build(len(things()) + len(COLOURS))
    state = ResNetForImageClassification.from_pretrained(start, dtype=torch.float32).state_dict()
    model.load_state_dict({**model.state_dict(), **{k: v for k, v in state.items() if not k.startswith("classifier.")}})
    return model


def batch(composer: Composer, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Augmented halves (BATCH, 3, 64, 64) in about [-1, 1], their things (BATCH,), and colours, -1 for an own one."""
    x, shown, colours = halves(composer, BATCH // 2, generator)
    return augment(x, generator), shown, colours


def halves(composer: Composer, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Both halves of `count` random pairs, one after the other, with what they show."""
    scenes: list[Scene] = [composer.scene(generator, pair=1.0) for _ in range(count)]
    images = vae.to_tensor(np.stack([composer.image(s.things, generator) for s in scenes]))
    shown = [t for s in scenes for t in s.things]
    colours = [COLOURS.index(t.colour) if t.colour else -1 for t in shown]
    numbers = [things().index(composer.meta[t.index].phrase) for t in shown]
    return scene_judge.halves(images), torch.tensor(numbers), torch.tensor(colours)


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Turn, scale and shift each half by itself, then CLIP's mirror, contrast and noise; colours stay."""
    rows = []
    for one, r in zip(x, torch.rand(len(x), 2, generator=generator).tolist(), strict=True):
        angle, scale = 16 * (r[0] - 0.5), 0.85 + 0.3 * r[1]
        rows.append(
            transforms.affine(one, angle, [0, 0], scale, [0.0], transforms.InterpolationMode.BILINEAR, fill=[1.0] * 3)
        )
    return clip.augment(torch.stack(rows), generator)


@torch.no_grad()
def measure_statistics(model: ResNetForImageClassification, composer: Composer, batches: int = 100) -> None:
    """Set the batch norms' mean and variance for the averaged weights, which were never run in training."""
    generator = torch.Generator().manual_seed(SEED)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for _ in range(batches):
        model(batch(composer, generator)[0])
    model.eval()


@torch.no_grad()
def accuracy(model: ResNetForImageClassification, composer: Composer, count: int = 400) -> tuple[float, float, int]:
    """Shares of halves whose thing, and of dyed ones whose colour, is the likeliest; and how many halves."""
    generator = torch.Generator().manual_seed(SEED + 1)
    x, shown, colours = halves(composer, count // 2, generator)
    logits = torch.cat([model(part).logits for part in x.split(64)])
    dyed = colours >= 0
    thing = (logits[:, : len(things())].argmax(1) == shown).float().mean()
    colour = (logits[:, len(things()) :].argmax(1) == colours)[dyed].float().mean()
    return float(thing), float(colour), len(x)
