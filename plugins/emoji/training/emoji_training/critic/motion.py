"""Teaches `emoji-vlm` to answer about motion: another layer before those that answer, trained on clips and collages.

The layer begins as none, so that the model answers about single images as before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from .. import pictures
from ..loop import Budget, Recipe, Training
from ..pictures import Picture
from ..vae import to_tensor
from ..video.moving import FRAMES, MOTIONS, THINGS, Video, draw, hidden
from . import training as stills
from .clips import Clip, ask, drawn_at, motions_of, questions, random_clip, word
from .collages import Album, seen_badly
from .model import SEED, Reader, empty, image_features, pack, packed_logits, packed_logits_and_layer
from .questions import Asker, all_words
from .words import make_processor

RECIPE = Recipe(lr=2e-3, weight_decay=2e-2, ema=0.99)
KINDS = ("colour", "count", "motion")  # what the model is asked from here on
IMAGES, CLIPS = 4, 12  # of a batch
SEEN = 3  # frames of a clip, at most; at least two
NAMING_WEIGHT = 0.5
WEIGHTS = {"colour": 2.0, "count": 1.0}  # of the questions about single images
MARKED_BY, MARK = 120, 0.5  # pictures; how far places of the outer patches are apart, in lengths of a patch's vector
PLACES = ("left", "right", "up", "down")
PLACE_CLIPS, PLACE_STEPS, PLACE_LR = 150, 800, 2e-3
LAYER = "model.language_model.layers."


def train(work: Path, budget: Budget, device: torch.device) -> None:
    """Leave the model in work/vlm-motion/model; it starts from that in work/vlm/model."""
    images, meta = pictures.load(work)
    parts = stills.split(meta)
    asker = Asker(Album(images, meta, parts["pictures seen"]))
    reader = Reader(make_processor(all_words(KINDS)))
    folder = work / "vlm-motion"
    module = deeper(work / "vlm" / "model", reader.processor)
    mark_places(module, images[parts["pictures seen"][:MARKED_BY]])
    learn_places(module, reader, images, meta, parts["pictures seen"])
    module.to(device)
    training = Training(module.train(), RECIPE, budget, folder / "checkpoint.pt", seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        rows = [stills.row(asker, generator, WEIGHTS) for _ in range(IMAGES)]
        pixels = seen_badly(np.stack([r.image for r in rows]), generator).to(device)
        features = image_features(module, pixels)
        about_images = stills.answer_loss(module, reader, features, [r.asked for r in rows])
        return about_images + clip_loss(module, reader, images, meta, parts["pictures seen"], generator)

    for p in training.run(loss, report_every=25):
        print(f"motion {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s:.2f} steps/s", flush=True)
    final = deeper(work / "vlm" / "model", reader.processor)
    final.load_state_dict(stills.averaged(training))
    final.eval().save_pretrained(folder / "model")
    reader.processor.save_pretrained(folder / "model")
    askers = {name: Asker(Album(images, meta, chosen)) for name, chosen in parts.items()}
    figures = stills.accuracies(final, reader, askers, WEIGHTS)
    for name, shares in motion_accuracies(final, reader, images, meta).items():
        figures.setdefault(name, {}).update(shares)
    (folder / "accuracies.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for name, of_kind in figures.items():
        print(f"motion {name}: " + ", ".join(f"{kind} {share:.3f}" for kind, share in of_kind.items()), flush=True)


def deeper(source: Path, processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The model in `source` behind one more layer that adds nothing at first; words that it lacks are random."""
    before = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    known = LlavaProcessor.from_pretrained(source).tokenizer.get_vocab()
    made = empty(processor, before.config.vision_config, before.config.text_config.num_hidden_layers + 1)
    state = made.state_dict()
    for name, value in before.state_dict().items():
        if name.startswith(LAYER):
            number, rest = name.removeprefix(LAYER).split(".", 1)
            state[f"{LAYER}{int(number) + 1}.{rest}"] = value
        elif "embed_tokens" not in name and "lm_head" not in name:
            state[name] = value
    first = f"{LAYER}0."
    state[f"{first}self_attn.k_proj.weight"] = state[f"{first}self_attn.q_proj.weight"].clone()
    for name in ("self_attn.o_proj.weight", "mlp.down_proj.weight"):
        state[first + name].zero_()
    words = state["model.language_model.embed_tokens.weight"]
    for text, number in processor.tokenizer.get_vocab().items():
        if text in known:
            words[number] = before.get_input_embeddings().weight[known[text]]
    state["lm_head.weight"] = words
    made.load_state_dict(state)
    made.model.vision_tower.requires_grad_(False)
    return made


@torch.no_grad()
def mark_places(module: LlavaForConditionalGeneration, images: np.ndarray) -> None:
    """Let the tower tell where a patch lies, which its CLIP had no use for: by its position embeddings.

    Column and row are added along the two directions in which patches of `images`, uint8 (N, 64, 64, 3), differ least.
    Otherwise the tower stays what it is.
    """
    inner = module.model.vision_tower.embeddings
    pixels = to_tensor(images)
    places = inner.position_embedding.weight[1:]
    patches = (inner.patch_embedding(pixels).flatten(2).mT + places)[torch.from_numpy(drawn_at(images))]
    directions = torch.linalg.eigh(torch.cov(patches.T))[1][:, :2]
    side = round(len(places) ** 0.5)
    middle = (torch.arange(side) + 0.5) / side - 0.5
    y, x = (at.flatten() for at in torch.meshgrid(middle, middle, indexing="ij"))
    places += MARK * patches.norm(dim=1).mean() * torch.stack([x, y], 1) @ directions.T


def learn_places(
    module: LlavaForConditionalGeneration,
    reader: Reader,
    images: np.ndarray,
    meta: Sequence[Picture],
    choices: Sequence[int],
) -> None:
    """Teach the projector to say where a patch lies, and nothing else that it did not say before."""
    generator = torch.Generator().manual_seed(SEED)
    projector, given = module.model.multi_modal_projector, []
    drawn = [c.draw(images[c.index]) for c in (random_clip(meta, choices, 2, generator) for _ in range(PLACE_CLIPS))]
    handle = projector.register_forward_pre_hook(lambda _, inputs: given.append(inputs[0]))
    with torch.no_grad():
        before = torch.cat([image_features(module, seen_badly(frames, generator)) for frames in drawn])
    handle.remove()
    seen, inked = torch.cat(given), torch.from_numpy(drawn_at(np.concatenate(drawn)))[:, None]
    words = module.lm_head.weight.detach()[[reader(text)[0] for text in PLACES]]
    beside = torch.eye(words.shape[1]) - torch.linalg.pinv(words) @ words
    optimizer = torch.optim.AdamW(projector.parameters(), lr=PLACE_LR)
    for step in range(PLACE_STEPS):
        optimizer.param_groups[0]["lr"] = PLACE_LR * (1 - step / PLACE_STEPS)
        some = torch.randint(len(seen), (16,), generator=generator)
        features = projector(seen[some])
        changed = ((features - before[some]) @ beside).square().mean()
        loss = place_loss(module, reader, features, inked[some]) + changed
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    print(f"motion places: loss {loss.item():.4f}, of which {changed.item():.4f} for what is beside them", flush=True)


def clip_loss(
    module: LlavaForConditionalGeneration,
    reader: Reader,
    images: np.ndarray,
    meta: Sequence[Picture],
    choices: Sequence[int],
    generator: torch.Generator,
) -> Tensor:
    """The loss of answers about random clips, and of the word of their motion in the first layer."""
    frames = int(torch.randint(2, SEEN + 1, (), generator=generator))
    clips = [random_clip(meta, choices, frames, generator) for _ in range(CLIPS)]
    drawn = np.stack([clip.draw(images[clip.index]) for clip in clips])
    device = next(module.parameters()).device
    features = video_features(module, seen_badly(drawn.reshape(-1, *drawn.shape[2:]), generator).to(device), frames)
    packed = pack(reader, [questions(clip.motion, generator) for clip in clips])
    counted = packed.wanted != -100
    logits, first = packed_logits_and_layer(module, reader, features, packed, counted)
    answers = stills.token_loss(logits, packed, counted)
    inked = torch.from_numpy(drawn_at(drawn)).to(device)
    named = naming_loss(module, reader, first, clips, inked) + place_loss(module, reader, features, inked)
    return answers + NAMING_WEIGHT * named


def naming_loss(
    module: LlavaForConditionalGeneration, reader: Reader, first: Tensor, clips: Sequence[Clip], inked: Tensor
) -> Tensor:
    """Cross-entropy of the motion's word, among all, at every patch of a later frame that shows some of the thing.

    Arguments:
        first: what the first layer makes of the frames, (B, F * 65, D).
        inked: whether a patch shows some of the thing, bool (B, F, 64).
    """
    inked = inked.clone()
    inked[:, 0] = False
    inked[[len(motions_of(clip.motion)) > 1 for clip in clips]] = False  # two motions have no one word
    wanted = torch.tensor([reader(word(clip.motion))[0] for clip in clips], device=first.device)
    logits = module.lm_head(module.model.language_model.norm(of_patches(first, inked)))
    return torch.nn.functional.cross_entropy(logits, wanted[:, None, None].expand(inked.shape)[inked])


def place_loss(module: LlavaForConditionalGeneration, reader: Reader, features: Tensor, inked: Tensor) -> Tensor:
    """Cross-entropy of where a patch lies, in parts left and right, up and down: a motion is a change of that.

    The decoder reads patches row by row, so it can tell rows by itself, but not columns.
    """
    side = round(inked.shape[-1] ** 0.5)
    middle = (torch.arange(side, device=inked.device) + 0.5) / side
    y, x = (at.flatten() for at in torch.meshgrid(middle, middle, indexing="ij"))
    parts = torch.stack([1 - x, x, 1 - y, y], -1) / 2
    words = [reader(text)[0] for text in PLACES]
    logits = of_patches(features, inked) @ module.lm_head.weight[words].T
    return torch.nn.functional.cross_entropy(logits, parts.expand(*inked.shape, -1)[inked])


def of_patches(vectors: Tensor, inked: Tensor) -> Tensor:
    """Those (N, D) of the N patches chosen by (B, F, 64), of (B, F * 65, D): the first of a frame is no patch."""
    return vectors.unflatten(1, (inked.shape[1], -1))[:, :, 1:][inked]


def video_features(module: LlavaForConditionalGeneration, pixels: Tensor, frames: int) -> Tensor:
    """What the decoder reads of frames (B * F, 3, 64, 64) in [-1, 1], those of a video behind one another."""
    features = image_features(module, pixels)
    return features.view(-1, frames * features.shape[1], features.shape[2])


@torch.no_grad()
def motion_accuracies(
    model: LlavaForConditionalGeneration, reader: Reader, images: np.ndarray, meta: Sequence[Picture]
) -> dict[str, dict[str, float]]:
    """Right answers about the plugin's own videos, by set and motion; half of the questions are to be answered by yes.

    Half of those for no ask for the opposite motion. "still" are videos of one frame, asked for each motion.
    """
    found = {}
    for name, videos in tested(meta).items():
        drawn = np.stack([draw(images[v.index], v)[evenly(SEEN)] for v in videos])
        motions = [MOTIONS[v.motion] for v in videos]
        generator = torch.Generator().manual_seed(SEED + 1)
        asked = [questions(motion, generator)[:2] for motion in motions]
        right = answered_right(model, reader, drawn, asked)
        found[name] = {"motion": float(right.mean())}
        for motion in sorted(set(motions)):
            found[name][motion] = float(right[[m == motion for m in motions]].mean())
        still = np.repeat(drawn[:, 1:2], SEEN, 1)
        asked = [[ask("", MOTIONS[i % len(MOTIONS)], generator)] for i in range(len(still))]
        found[name]["still"] = float(answered_right(model, reader, still, asked).mean())
    return found


def answered_right(
    model: LlavaForConditionalGeneration, reader: Reader, drawn: np.ndarray, asked: Sequence[Sequence]
) -> np.ndarray:
    """Whether each answer about videos uint8 (N, F, 64, 64, 3) is right, (N, questions of each)."""
    yes, no = reader.processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    right = []
    for i in range(0, len(drawn), 25):
        pixels = to_tensor(drawn[i : i + 25].reshape(-1, *drawn.shape[2:]))
        packed = pack(reader, asked[i : i + 25])
        features = video_features(model, pixels, drawn.shape[1])
        logits = packed_logits(model, reader, features, packed, packed.wanted != -100)
        said = logits[:, yes] > logits[:, no]
        wanted = torch.tensor([q.answer == "yes" for of_one in asked[i : i + 25] for q in of_one])
        right.append((said == wanted).view(-1, len(asked[0])).numpy())
    return np.concatenate(right)


def evenly(count: int) -> list[int]:
    """So many frames of a video, from the first to the last."""
    return [round(i * (FRAMES - 1) / (count - 1)) for i in range(count)]


def tested(meta: Sequence[Picture]) -> Mapping[str, list[Video]]:
    """Videos of pictures and things that no clip shows, and of pairs of a thing and a motion that none shows."""
    parts = stills.split(meta)
    videos: dict[str, list[Video]] = {}
    for name in ("pictures never seen", "things never seen"):
        chosen = enumerate(parts[name][:120])
        videos[name] = [Video(i, m) for n, i in chosen for m in range(len(MOTIONS)) if (n + m) % 2]
    seen = [i for i in parts["pictures seen"] if meta[i].phrase in THINGS]
    pairs = [(i, m) for i in seen for m in range(len(MOTIONS)) if hidden(THINGS.index(meta[i].phrase), m)]
    videos["pairs never seen"] = [Video(i, m) for i, m in pairs]
    return {name: found for name, found in videos.items() if found}
