"""Trains `emoji-detector` on collages whose boxes a program knows, and measures it on others."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from draft_emoji.scene_words import things
from torch import Tensor
from torchvision.ops import box_convert
from transformers import CLIPTokenizer, OwlViTForObjectDetection, OwlViTImageProcessor

from .. import clip, pictures
from ..critic.collages import seen_badly
from ..export import complete_tokenizer_config
from ..loop import Budget, Recipe, Training, side_by_side
from ..pictures import Picture
from .collages import SIDE, Collage, Scatter
from .losses import detection_loss, naming_loss
from .model import build, make_tokenizer, predict, text_states
from .precision import ap50

RECIPE = Recipe(lr=1e-3, weight_decay=5e-2, ema=0.995, slow=("owlvit.vision_model", 0.6))
BATCH = 8
COUNTS = (1, 2, 3, 4, 4)  # of things in a collage: many, since an image costs the same
SEED = 77


def train(work: Path, budget: Budget, device: torch.device, model: Path, processes: int = 1) -> None:
    """Leave the detector, its tokenizer and image processor in work/detector/model; its precision is written beside it.

    Arguments:
        model: a pipeline whose tokenizer is taken, beside the folder `clip` of the CLIP that it starts from.
    """
    side_by_side(worker, processes, work / "detector", work, budget, device, model)


def worker(rank: int, world: int, work: Path, budget: Budget, device: torch.device, model: Path) -> None:
    """One of `world` processes that train together; the first one reports, measures and saves the result."""
    images, meta = pictures.load(work)
    folder = work / "detector"
    torch.manual_seed(SEED)
    module = build(model.with_name("clip")).to(device)
    tokenizer = make_tokenizer(model / "tokenizer")
    states = text_states(module, tokenizer, pictures.phrases()).to(device)
    pools = split(meta)
    scatter = Scatter(images, meta, pools["pictures seen"], pools["other things"])
    training = Training(module, RECIPE, budget, folder / "checkpoint.pt", rank, world, SEED)

    def loss(generator: torch.Generator) -> Tensor:
        collages = [scatter.collage(generator, COUNTS) for _ in range(BATCH)]
        pixels = seen_badly(np.stack([c.image for c in collages]), generator).to(device)
        logits, boxes = predict(module, pixels, states)
        named = [torch.tensor([meta[i].concept for i in c.indices], device=device) for c in collages]
        where = [places(c).to(device) for c in collages]
        return detection_loss(logits, boxes, named, where) + naming_loss(logits, named, where)

    for p in training.run(loss, report_every=50):
        if rank == 0:
            rate = p.steps_per_s * BATCH * world
            print(f"detector {p.share:4.0%} step {p.step} loss {p.loss:.4f} {rate:.0f} img/s", flush=True)
    if rank == 0:
        final = build(model.with_name("clip"))
        final.load_state_dict(training.averaged())
        write(final.eval(), tokenizer, folder / "model")
        figures = measure(final, tokenizer, images, meta)
        (folder / "precision.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")


def split(meta: Sequence[Picture]) -> dict[str, list[int]]:
    """Indices of pictures: of the things of scenes, those that are trained on and those that are not; of others."""
    held_out, known = set(clip.held_out_pictures(meta)), set(things())
    of_scenes = [i for i, p in enumerate(meta) if p.concept >= 0 and p.phrase in known]
    return {
        "pictures seen": [i for i in of_scenes if i not in held_out],
        "pictures never seen": [i for i in of_scenes if i in held_out],
        "other things": [i for i in sorted(clip.concept_pictures(meta) - held_out) if meta[i].phrase not in known],
        "other things, never seen": [i for i in sorted(held_out) if meta[i].phrase not in known],
    }


def measure(
    model: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, images: np.ndarray, meta: Sequence[Picture]
) -> dict[str, float]:
    """AP50 on collages of each set of pictures."""
    states = text_states(model, tokenizer, pictures.phrases())
    pools = split(meta)
    pools["all things, seen"] = pools["pictures seen"] + pools["other things"]
    pools["all things, never seen"] = pools["pictures never seen"] + pools["other things, never seen"]
    found: dict[str, float] = {}
    for name in ("pictures seen", "pictures never seen", "all things, seen", "all things, never seen"):
        found[name] = ap50(model, states, Scatter(images, meta, pools[name]))
        print(f"detector {name}: AP50 {found[name]:.3f} on collages", flush=True)
    return found


def places(collage: Collage) -> Tensor:
    """Its boxes (K, 4): centre x, y, width, height in [0, 1]."""
    return box_convert(torch.from_numpy(collage.boxes) / SIDE, "xyxy", "cxcywh")


def write(module: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Replace `folder` by what transformers' detection pipeline takes."""
    shutil.rmtree(folder, ignore_errors=True)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    OwlViTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)


def export(work: Path, model: Path) -> None:
    """Put the detector beside `model`, in half precision."""
    source, beside = work / "detector" / "model", model.with_name("detector")
    tokenizer = CLIPTokenizer.from_pretrained(source)
    write(OwlViTForObjectDetection.from_pretrained(source, dtype=torch.float32).half(), tokenizer, beside)
    for name in ("vocab.json", "merges.txt"):  # transformers 5 leaves them out, 4.x asks for them
        shutil.copy(model / "tokenizer" / name, beside / name)
    complete_tokenizer_config(beside / "tokenizer_config.json")
    size = sum(f.stat().st_size for f in beside.rglob("*") if f.is_file()) / 1e6
    print(f"export {size:.1f} MB in {beside}", flush=True)
