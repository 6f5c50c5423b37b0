"""Trains the judge: a convolutional network that says which of the concepts an image shows.

It is made to be independent of all that a model may be tuned on: another architecture than the CLIPs, other seeds, and
real pictures only, as they are. So it is strict: what is soft or blotched is foreign to it.
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
from transformers import ResNetConfig, ResNetForImageClassification

from . import clip, drawn, pictures, vae
from .loop import Budget, Recipe, Training
from .pictures import Picture

RECIPE = Recipe(lr=2e-3, weight_decay=5e-2, ema=0.998)
BATCH = 64
FROM_CONCEPTS = 0.6  # of a batch; the rest are all other emoji, which teach features and then are forgotten
SEED = 1234


def train(work: Path, budget: Budget, device: torch.device) -> None:
    """Leave the judge of the concepts in work/judge/model; its accuracies are printed and written beside it."""
    images, meta = pictures.load(work)
    labels = numbered(meta)
    held_out = clip.held_out_pictures(meta)
    pools = pools_of(labels, held_out)
    torch.manual_seed(SEED)
    module = build(int(labels.max()) + 1).to(device, memory_format=torch.channels_last)
    training = Training(module, RECIPE, budget, work / "judge" / "checkpoint.pt", seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        x, y = batch(images, labels, pools, generator)
        with vae.autocast(device):
            logits = module(x.to(device, memory_format=torch.channels_last)).logits.float()
        return F.cross_entropy(logits, y.to(device), label_smoothing=0.05)

    for p in training.run(loss):
        print(f"judge {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * BATCH:.0f} img/s", flush=True)

    final = build(int(labels.max()) + 1)
    final.load_state_dict(training.averaged())
    measure_statistics(final, images, labels, pools)
    judge = of_concepts(final, images, labels, held_out)
    judge.save_pretrained(work / "judge" / "model")
    figures = accuracies(judge, work, images, meta, held_out)
    (work / "judge" / "accuracies.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for name, (top1, log_probability, count) in figures.items():
        print(f"judge {name}: {count} images, top-1 {top1:.3f}, log-probability {log_probability:.3f}", flush=True)


def build(classes: int) -> ResNetForImageClassification:
    """A residual network (He et al. 2016) of four stages, 2.5 million parameters without its last layer."""
    return ResNetForImageClassification(
        ResNetConfig(
            embedding_size=40,
            hidden_sizes=[40, 80, 160, 320],
            depths=[2, 2, 2, 1],
            layer_type="basic",
            num_labels=classes,
        )
    )


def numbered(meta: Sequence[Picture]) -> np.ndarray:
    """A class for each picture: its concept, or a number beyond them for each other label."""
    concepts = 1 + max(p.concept for p in meta)
    others = {label: i for i, label in enumerate(sorted({p.label for p in meta if p.concept < 0}))}
    return np.array([p.concept if p.concept >= 0 else concepts + others[p.label] for p in meta])


def pools_of(labels: np.ndarray, held_out: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
    """Indices of the pictures of concepts and of all others, without those held out."""
    seen = np.setdiff1d(np.arange(len(labels)), held_out)
    concepts = labels[seen] < len(pictures.read_concepts())
    return seen[concepts], seen[~concepts]


def batch(
    images: np.ndarray, labels: np.ndarray, pools: tuple[np.ndarray, np.ndarray], generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Augmented pictures (BATCH, 3, 64, 64) in about [-1, 1] and their classes (BATCH,)."""
    count = round(BATCH * FROM_CONCEPTS)
    chosen = np.concatenate(
        [
            pool[torch.randint(len(pool), (n,), generator=generator).numpy()]
            for pool, n in zip(pools, (count, BATCH - count), strict=True)
        ]
    )
    return augment(vae.to_tensor(images[chosen]), generator), torch.from_numpy(labels[chosen])


def augment(x: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror, turn, scale, shift and recolour each picture by itself, then CLIP's contrast and noise."""
    rows = []
    for one, r in zip(x, torch.rand(len(x), 3, generator=generator).tolist(), strict=True):
        angle, scale = 24 * (r[0] - 0.5), 0.8 + 0.35 * r[1]
        turned = transforms.affine(
            one, angle, [0, 0], scale, [0.0], transforms.InterpolationMode.BILINEAR, fill=[1.0] * 3
        )
        saturation = 0.5 + r[2]
        grey = turned.mean(0, keepdim=True)
        rows.append(grey + saturation * (turned - grey))
    return clip.augment(torch.stack(rows), generator)


@torch.no_grad()
def measure_statistics(
    model: ResNetForImageClassification,
    images: np.ndarray,
    labels: np.ndarray,
    pools: tuple[np.ndarray, np.ndarray],
    batches: int = 100,
) -> None:
    """Set the batch norms' mean and variance for the averaged weights, which were never run in training."""
    generator = torch.Generator().manual_seed(SEED)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None
    model.train()
    for _ in range(batches):
        model(batch(images, labels, pools, generator)[0])
    model.eval()


@torch.no_grad()
def of_concepts(
    model: ResNetForImageClassification,
    images: np.ndarray,
    labels: np.ndarray,
    held_out: Sequence[int],
) -> ResNetForImageClassification:
    """The model with the concepts' outputs alone, its logits divided by the temperature that fits `held_out` best.

    A network that has seen its pictures often is too sure of itself (Guo et al. 2017).
    """
    concepts = pictures.phrases()
    judge = build(len(concepts))
    state = model.state_dict()
    last = {k: v[: len(concepts)] for k, v in state.items() if k.startswith("classifier.")}
    judge.load_state_dict({**state, **last})
    judge.config.id2label = dict(enumerate(concepts))
    judge.config.label2id = {phrase: i for i, phrase in enumerate(concepts)}
    judge.eval()
    truth = torch.from_numpy(labels[list(held_out)])
    logits = judge(vae.to_tensor(images[list(held_out)])).logits
    temperatures = torch.arange(0.5, 3.01, 0.05)
    best = min(temperatures.tolist(), key=lambda t: float(F.cross_entropy(logits / t, truth)))
    for parameter in judge.classifier.parameters():
        parameter /= best
    print(f"judge temperature {best:.2f}", flush=True)
    return judge


@torch.no_grad()
def accuracies(
    judge: ResNetForImageClassification,
    work: Path,
    images: np.ndarray,
    meta: Sequence[Picture],
    held_out: Sequence[int],
) -> dict[str, tuple[float, float, int]]:
    """Top-1, mean log-probability of the right concept, and how many images: of pictures and of drawings."""
    concept = np.array([p.concept for p in meta])
    seen = sorted(clip.concept_pictures(meta) - set(held_out))
    sets = {
        "pictures never seen": (images[list(held_out)], concept[list(held_out)]),
        "pictures seen": (images[seen], concept[seen]),
    }
    drawings, wanted = drawn.load(work)
    for number, setting in enumerate(drawn.SETTINGS):
        chosen = [i for i, d in enumerate(wanted) if d.setting == number]
        name = f"drawn in {setting.steps} steps, guidance {setting.guidance:g}"
        sets[name] = drawings[chosen], np.array([wanted[i].concept for i in chosen])
    found = {}
    for name, (levels, truth) in sets.items():
        logits = torch.cat([judge(x).logits for x in vae.chunks(levels)])
        target = torch.from_numpy(truth)
        top1 = float((logits.argmax(1) == target).float().mean())
        found[name] = top1, -float(F.cross_entropy(logits, target)), len(truth)
    return found
