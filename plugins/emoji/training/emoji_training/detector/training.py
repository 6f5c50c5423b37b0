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
from torch.nn import functional as F
from torchvision.ops import box_convert
from transformers import CLIPModel, CLIPTokenizer, OwlViTForObjectDetection, OwlViTImageProcessor

from .. import clip, pictures
from ..critic.collages import seen_badly
from ..export import complete_tokenizer_config
from ..loop import Budget, Recipe, Training, side_by_side
from ..pictures import Picture
from ..vae import to_tensor
from .collages import SIDE, Collage, Scatter
from .losses import detection_loss
from .model import EXACT, build, make_tokenizer, predict, text_states
from .precision import SEEDS, ap50

RECIPE = Recipe(lr=7e-4, weight_decay=5e-2, ema=0.995, slow=("owlvit.vision_model", 0.8))
BATCH = 8
SHARES = (0.4, 0.4, 0.2)  # of things: of scenes, of the others that have a name of their own, of all other emoji
SPOILT = 0.25  # share of collages that are seen badly
COUNTS = (1, 2, 3, 4, 4)  # of things in a collage: many, since an image costs the same
SEED = 77


def train(
    work: Path, budget: Budget, device: torch.device, model: Path, processes: int = 1, start: Path | None = None
) -> None:
    """Leave the detector, its tokenizer and image processor in work/detector/model; its precision is written beside it.

    Arguments:
        model: a pipeline whose tokenizer is taken, beside the folder `clip` of the CLIP it starts from and learns of.
        start: a detector to go on from.
    """
    side_by_side(worker, processes, work / "detector", work, budget, device, model, start)


def worker(
    rank: int, world: int, work: Path, budget: Budget, device: torch.device, model: Path, start: Path | None
) -> None:
    """One of `world` processes that train together; the first one reports, measures and saves the result."""
    images, meta = pictures.load(work)
    folder = work / "detector"
    torch.manual_seed(SEED)
    module = build(model.with_name("clip"))
    if start is not None:
        own = {k: v for k, v in module.state_dict().items() if k.startswith("owlvit.text")}  # the names are the CLIP's
        module.load_state_dict(OwlViTForObjectDetection.from_pretrained(start, dtype=torch.float32).state_dict() | own)
    tokenizer = make_tokenizer(model / "tokenizer")
    lesson = Lesson(module.to(device), tokenizer, images, meta, model.with_name("clip"))
    training = Training(module, RECIPE, budget, folder / "checkpoint.pt", rank, world, SEED)
    for p in training.run(lesson.loss, report_every=50):
        if rank == 0:
            rate = p.steps_per_s * BATCH * world
            print(f"detector {p.share:4.0%} step {p.step} loss {p.loss:.4f} {rate:.0f} img/s", flush=True)
    if rank == 0:
        final = build(model.with_name("clip"))
        final.load_state_dict(training.averaged())
        write(final.eval(), tokenizer, folder / "model")
        figures = measure(final, tokenizer, images, meta)
        (folder / "precision.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")


class Lesson:
    """Random collages, and the loss on them. Emoji that are none of the concepts are named by their labels."""

    def __init__(
        self,
        module: OwlViTForObjectDetection,
        tokenizer: CLIPTokenizer,
        images: np.ndarray,
        meta: Sequence[Picture],
        clip_folder: Path,
    ) -> None:
        self.module, self.device = module, module.device
        module.set_attn_implementation(EXACT)
        concepts = pictures.phrases()
        others = sorted({p.phrase for p in meta} - set(concepts))
        number = {phrase: n for n, phrase in enumerate([*concepts, *others])}
        self.always = torch.arange(len(concepts), device=self.device)
        self.names = torch.tensor([number[p.phrase] for p in meta], device=self.device)
        self.states = text_states(module, tokenizer, [*concepts, *others])
        self.taught = image_embeds(clip_folder, images, module.config.projection_dim).to(self.device)
        pools = split(meta)
        unnamed = [i for i, p in enumerate(meta) if p.concept < 0]
        chosen = pools["pictures seen"], pools["other things"], unnamed
        self.scatter = Scatter(images, meta, *chosen, shares=SHARES, varied=True)

    def loss(self, generator: torch.Generator) -> Tensor:
        """Of BATCH random collages, asked for all concepts and for what else they show."""
        collages = [self.scatter.collage(generator, COUNTS) for _ in range(BATCH)]
        spoilt = round(SPOILT * BATCH)
        stack = np.stack([c.image for c in collages])
        pixels = torch.cat([seen_badly(stack[:spoilt], generator), to_tensor(stack[spoilt:])]).to(self.device)
        shown = [torch.tensor(c.indices, device=self.device) for c in collages]
        names = [self.names[indices] for indices in shown]
        asked = torch.unique(torch.cat([self.always, *names]))
        found = predict(self.module, pixels, self.states[asked], fast=True)
        where = [places(c).to(self.device) for c in collages]
        taught = [self.taught[indices] for indices in shown]
        return detection_loss(found, [torch.searchsorted(asked, name) for name in names], where, taught)


@torch.no_grad()
def image_embeds(clip_folder: Path, images: np.ndarray, width: int) -> Tensor:
    """What the CLIP says of `images` (uint8 (N, 64, 64, 3)), with zeros up to `width`: (N, width), of length 1."""
    matcher = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    found = []
    for first in range(0, len(images), 64):
        features = matcher.visual_projection(matcher.vision_model(to_tensor(images[first : first + 64])).pooler_output)
        found.append(F.pad(F.normalize(features, dim=1), (0, width - features.shape[1])))
    return torch.cat(found)


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
    """AP50 of 200 collages of each set of pictures, and of 400 others."""
    states = text_states(model, tokenizer, pictures.phrases())
    pools = split(meta)
    pools["all things, seen"] = pools["pictures seen"] + pools["other things"]
    pools["all things, never seen"] = pools["pictures never seen"] + pools["other things, never seen"]
    found: dict[str, float] = {}
    for name in ("pictures seen", "pictures never seen", "all things, seen", "all things, never seen"):
        for count, seed in SEEDS.items():
            found[f"{name}, {count}"] = ap50(model, states, Scatter(images, meta, pools[name]), count, seed)
            print(f"detector {name}: AP50 {found[f'{name}, {count}']:.3f} of {count} collages", flush=True)
    return found


def places(collage: Collage) -> Tensor:
    """Its boxes (K, 4): centre x, y, width, height in [0, 1]."""
    return box_convert(torch.from_numpy(collage.boxes) / SIDE, "xyxy", "cxcywh")


def write(module: OwlViTForObjectDetection, tokenizer: CLIPTokenizer, folder: Path) -> None:
    """Replace `folder` by what transformers' detection pipeline takes."""
    shutil.rmtree(folder, ignore_errors=True)
    module.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    side = module.config.vision_config.image_size
    OwlViTImageProcessor(size={"height": side, "width": side}).save_pretrained(folder)


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
