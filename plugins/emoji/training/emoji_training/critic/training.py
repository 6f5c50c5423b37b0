"""Trains `emoji-vlm`, a LLaVA that answers yes or no about emoji: a CLIP's vision tower, a projector, a small decoder.

The decoder learns to answer from descriptions first, then from images.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from .. import clip, pictures
from ..loop import Budget, Recipe, Training
from ..pictures import Picture
from ..vae import to_tensor
from .collages import Album, Shown, pick, seen_badly
from .model import SEED, Packed, Reader, build, empty, image_features, pack, packed_logits
from .questions import KINDS, WORDS, Asker, Question, all_words
from .words import make_processor

WORDS_RECIPE = Recipe(lr=3e-3, weight_decay=2e-2, ema=0.99, final=1.0)  # it learns late: no cosine
RECIPE = Recipe(lr=2e-3, weight_decay=2e-2, ema=0.99)
WORDS_SHARE = 0.5  # of the budget, spent on descriptions before the first image
DESCRIPTIONS, IMAGES, YES_NO, OPEN = 16, 12, 8, 2  # of a batch: those, or images; and questions about each
WEIGHTS = {"colour": 2.0, "style": 1.5, "count": 1.0, "place": 1.0}
FROM_WORDS = {"colour": 2.0, "style": 1.0}  # what a description answers
VECTORS, NOISE = 12, 0.03  # of a description, in place of an image's 65
OPEN_WEIGHT, NAMING_WEIGHT = 0.5, 0.25
HELD_OUT_EVERY = 6  # of the labels that are no concept
TESTED = 400  # questions of a kind
LEARNT = 0.85  # share of right answers, in every set, from which a kind is kept


def train(work: Path, budget: Budget, device: torch.device, start: Path) -> None:
    """Leave the model and its processor in work/vlm/model; its accuracies are printed and written beside it."""
    images, meta = pictures.load(work)
    reader = Reader(make_processor(all_words()))
    askers = {name: Asker(Album(images, meta, chosen)) for name, chosen in split(meta).items()}
    folder = work / "vlm"
    module = build(reader.processor, start).to(device)
    learn_words(module, reader, askers["pictures seen"], part(budget, WORDS_SHARE), folder / "words.pt")
    training = Training(module.train(), RECIPE, part(budget, 1 - WORDS_SHARE), folder / "checkpoint.pt", seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        rows = [row(askers["pictures seen"], generator) for _ in range(IMAGES)]
        pixels = seen_badly(np.stack([r.image for r in rows]), generator).to(device)
        features = image_features(module, pixels)
        answers = answer_loss(module, reader, features, [r.asked for r in rows])
        return answers + NAMING_WEIGHT * naming_loss(module, reader, features, rows)

    for p in training.run(loss, report_every=25):
        print(f"vlm   {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s * IMAGES:.0f} img/s", flush=True)

    final = build(reader.processor, start)
    final.load_state_dict(averaged(training))
    final.eval().save_pretrained(folder / "model")
    reader.processor.save_pretrained(folder / "model")
    figures = accuracies(final, reader, askers)
    (folder / "accuracies.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    for name, of_kind in figures.items():
        print(f"vlm   {name}: " + ", ".join(f"{kind} {share:.3f}" for kind, share in of_kind.items()), flush=True)


def part(budget: Budget, share: float) -> Budget:
    """That share of a budget."""
    if budget.steps is not None:
        return Budget(steps=max(1, round(share * budget.steps)))
    return Budget(minutes=share * (budget.minutes or 0))


def averaged(training: Training) -> dict[str, Tensor]:
    """The averaged weights; the words' numbers at the decoder's end are those at its start."""
    state = training.averaged()
    return {**state, "lm_head.weight": state["model.language_model.embed_tokens.weight"]}


def learn_words(
    module: LlavaForConditionalGeneration, reader: Reader, asker: Asker, budget: Budget, checkpoint: Path
) -> None:
    """Teach the decoder to answer from descriptions: vectors that are sums of words stand where an image will.

    To tell whether a word of the question is among those, a small decoder learns in minutes; from images at once, it
    did not begin to in as long.
    """
    seeing = [*module.model.vision_tower.parameters(), *module.model.multi_modal_projector.parameters()]
    trained = [p for p in seeing if p.requires_grad]
    for parameter in trained:
        parameter.requires_grad_(False)
    training = Training(module.train(), WORDS_RECIPE, budget, checkpoint, seed=SEED)

    def loss(generator: torch.Generator) -> Tensor:
        return words_loss(module, reader, asker, DESCRIPTIONS, generator)

    for p in training.run(loss, report_every=50):
        print(f"vlm   words {p.share:4.0%} step {p.step} loss {p.loss:.4f} {p.steps_per_s:.1f} steps/s", flush=True)
    module.load_state_dict(averaged(training))
    for parameter in trained:
        parameter.requires_grad_(True)
    with torch.no_grad():  # an image begins as what a description is without its words
        module.model.multi_modal_projector.linear_2.bias.copy_(mark(module, reader))


def words_loss(
    module: LlavaForConditionalGeneration, reader: Reader, asker: Asker, count: int, generator: torch.Generator
) -> Tensor:
    """The loss of answers about so many random descriptions."""
    told, asked = [], []
    for _ in range(count):
        things = asker.album.collage(generator, ("alone", "alone", "row")[pick(3, generator)], dyed=1.0)
        told.append(things)
        opened = [asker.open(things, generator)] * (len(things) == 1)
        asked.append(questions(asker, things, FROM_WORDS, generator) + opened)
    return answer_loss(module, reader, described(module, reader, asker, told, generator), asked)


def mark(module: LlavaForConditionalGeneration, reader: Reader) -> Tensor:
    """What every vector of a description has, (D,), so that it can be told from a question's words."""
    number = reader.processor.tokenizer.convert_tokens_to_ids(reader.processor.image_token)
    return module.get_input_embeddings().weight[number]


def described(
    module: LlavaForConditionalGeneration,
    reader: Reader,
    asker: Asker,
    told: Sequence[Sequence[Shown]],
    generator: torch.Generator,
) -> Tensor:
    """(B, VECTORS, D): first the style, then colours of random things, some with the style; the last are empty."""
    numbers: list[int] = []
    offsets: list[int] = []
    for things in told:
        style = reader(asker.meta[things[0].index].style)
        draws = torch.rand(VECTORS, 2, generator=generator).tolist()
        for place, (which, styled) in enumerate(draws):
            offsets.append(len(numbers))
            if place == 0:
                numbers += style
            elif place < VECTORS - 3:
                thing = things[int(which * len(things))]
                numbers += style * (styled < 0.5) + reader(thing.colour)
    weight = module.get_input_embeddings().weight
    device = weight.device
    table = [torch.tensor(values, device=device) for values in (numbers, offsets)]
    found = F.embedding_bag(table[0], weight, table[1], mode="sum").view(len(told), VECTORS, -1)
    return found + mark(module, reader) + NOISE * torch.randn(found.shape, generator=generator).to(device)


def split(meta: Sequence[Picture]) -> dict[str, list[int]]:
    """Indices of the pictures that are trained on, and of those that are tested on and of which sort."""
    held_out = set(clip.held_out_pictures(meta))
    strange = set(sorted({p.label for p in meta if p.concept < 0})[::HELD_OUT_EVERY])
    return {
        "pictures seen": [i for i, p in enumerate(meta) if p.concept >= 0 and i not in held_out],
        "pictures never seen": sorted(held_out),
        "things never seen": [i for i, p in enumerate(meta) if p.label in strange],
    }


@dataclass(frozen=True)
class Row:
    """A collage: its things, its image, uint8 (64, 64, 3), whose pixel is which thing's, and the questions about it."""

    things: tuple[Shown, ...]
    image: np.ndarray
    owner: np.ndarray
    words: list[list[str]]
    asked: list[Question]


def row(asker: Asker, generator: torch.Generator, weights: Mapping[str, float] = WEIGHTS) -> Row:
    """A random collage with its questions, of kinds in these proportions."""
    things = asker.album.collage(generator)
    asked = questions(asker, things, weights, generator) + [asker.open(things, generator, weights) for _ in range(OPEN)]
    image, owner = asker.album.drawn(things, generator)
    named = [(asker.meta[t.index], t.colour) for t in things]
    return Row(things, image, owner, [[p.style, dye] for p, dye in named], asked)


def questions(
    asker: Asker, things: Sequence[Shown], weights: Mapping[str, float], generator: torch.Generator
) -> list[Question]:
    """YES_NO questions of random kinds."""
    kinds, shares = list(weights), torch.tensor(list(weights.values()))
    asked: list[Question] = []
    while len(asked) < YES_NO:
        kind = kinds[int(torch.multinomial(shares, 1, generator=generator))]
        if found := asker.ask(kind, things, bool(pick(2, generator)), generator):
            asked.append(found)
    return asked


def answer_loss(
    model: LlavaForConditionalGeneration, reader: Reader, features: Tensor, asked: Sequence[Sequence[Question]]
) -> Tensor:
    """Cross-entropy of the answers' tokens: the mean over yes and no, and some of that over the open answers."""
    packed = pack(reader, asked)
    counted = packed.wanted != -100
    return token_loss(packed_logits(model, reader, features, packed, counted), packed, counted)


def token_loss(logits: Tensor, packed: Packed, counted: Tensor) -> Tensor:
    """The same of the logits of the tokens that are counted."""
    losses = F.cross_entropy(logits, packed.wanted[counted].to(logits.device), reduction="none")
    is_open = packed.is_open[counted].to(logits.device)
    return losses[~is_open].mean() + OPEN_WEIGHT * losses[is_open].mean()


def naming_loss(model: LlavaForConditionalGeneration, reader: Reader, features: Tensor, rows: Sequence[Row]) -> Tensor:
    """Cross-entropy of the words of what each vector of an image stands for, among all words.

    The first vector stands for all things, each other one for the thing at the middle of its patch, if there is one.
    """
    side = round((features.shape[1] - 1) ** 0.5)
    step = pictures.SIZE // side
    places, targets = [], []
    for number, r in enumerate(rows):
        words = [[n for text in of_thing for n in reader(text)] for of_thing in r.words]
        at = r.owner[step // 2 :: step, step // 2 :: step].flatten().tolist()
        owners = [(0, sorted({n for w in words for n in w}))] + [(1 + i, words[o]) for i, o in enumerate(at) if o >= 0]
        for place, numbers in owners:
            places += [number * features.shape[1] + place] * len(numbers)
            targets += numbers
    logits = model.lm_head(features.flatten(0, 1)).log_softmax(-1)
    return -logits[places, targets].mean()


def export(work: Path, model: Path, stage: str = "vlm") -> None:
    """Put the model of a stage and its processor beside `model`, in half precision, with the words of what it learnt.

    Whoever asks it for anything else is told that it does not know the words.
    """
    source, beside = work / stage / "model", model.with_name(stage)
    figures = json.loads((work / stage / "accuracies.json").read_text(encoding="utf-8"))
    shares = {kind: [of_kind[kind] for of_kind in figures.values() if kind in of_kind] for kind in WORDS}
    learnt = [kind for kind, found in shares.items() if found and min(found) >= LEARNT]
    before = LlavaProcessor.from_pretrained(source).tokenizer
    processor = make_processor(all_words(learnt))
    made = with_words_of(source, before.convert_tokens_to_ids(words_by_number(processor)), processor)
    shutil.rmtree(beside, ignore_errors=True)
    made.half().save_pretrained(beside)
    processor.save_pretrained(beside)
    size = sum(f.stat().st_size for f in beside.rglob("*") if f.is_file()) / 1e6
    print(f"export {size:.1f} MB in {beside}, which knows {', '.join(learnt) or 'nothing'}", flush=True)


def words_by_number(processor: LlavaProcessor) -> list[str]:
    """The words of a tokenizer in the order of their numbers."""
    vocabulary = processor.tokenizer.get_vocab()
    return sorted(vocabulary, key=vocabulary.__getitem__)


def with_words_of(source: Path, kept: list[int], processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    """The model in `source` with these rows of its words, which are those of `processor`."""
    state = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32).state_dict()
    rows = state["model.language_model.embed_tokens.weight"][kept]
    config = LlavaForConditionalGeneration.config_class.from_pretrained(source)
    made = empty(processor, config.vision_config, config.text_config.num_hidden_layers)
    made.load_state_dict({**state, "model.language_model.embed_tokens.weight": rows, "lm_head.weight": rows})
    return made.eval()


@torch.no_grad()
def accuracies(
    model: LlavaForConditionalGeneration,
    reader: Reader,
    askers: Mapping[str, Asker],
    kinds: Iterable[str] = tuple(KINDS),
) -> dict[str, dict[str, float]]:
    """For each set of pictures the share of right answers by kind of question, as many to yes as to no."""
    yes, no = reader.processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    found: dict[str, dict[str, float]] = {}
    for name, asker in askers.items():
        found[name] = {}
        for kind in kinds:
            asked, images = test_questions(asker, kind, torch.Generator().manual_seed(SEED + 1))
            if not asked:
                continue
            right = 0
            for i in range(0, len(asked), 50):
                asked_here = [[q] for q in asked[i : i + 50]]
                pixels = to_tensor(np.stack(images[i : i + 50]))
                packed = pack(reader, asked_here)
                features = image_features(model, pixels)
                logits = packed_logits(model, reader, features, packed, packed.wanted != -100)
                said = logits[:, yes] > logits[:, no]
                right += int((said == torch.tensor([q[0].answer == "yes" for q in asked_here])).sum())
            found[name][kind] = right / len(asked)
    return found


def test_questions(asker: Asker, kind: str, generator: torch.Generator) -> tuple[list[Question], list]:
    """Questions of a kind about random collages, as many to yes as to no, and their images; none if it has no such."""
    asked: list[Question] = []
    images: list = []
    for attempt in range(40 * TESTED):
        if len(asked) == TESTED or (attempt == 100 and not asked):
            break
        things = asker.album.collage(generator)
        if question := asker.ask(kind, things, len(asked) % 2 == 0, generator):
            asked.append(question)
            images.append(asker.album.image(things, generator))
    return asked, images
