"""A population whose tastes a program can judge, a model trained on its pairs, and how well it serves new people.

    python benchmarks/users.py            # an hour of one core; goes on where it stopped; writes docs/how-to/users.md
    python benchmarks/users.py --print    # writes no page and no image

A taste is a direction in the plane of two measures of an image, how warm and how light its drawing is. Of two images of
a prompt a person prefers the one of higher utility, with noise by Bradley and Terry. Everybody chooses among the same
thousand images of the embedded model; four choices of a person, which are not trained on, make the embedding. New
people and new prompts are judged by the taste itself. Errors are over people.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import torch
from paired import standard_error
from safetensors.torch import load_file, save_file
from tables import markdown, publish

from draft_core import CallColumns, DifferentiableSampler, PromptRow, Trainer, load_catalog, load_pipeline
from draft_core.adapters.user_embeddings import UserEmbeddings, embed_pairs
from draft_core.adapters.users import UserAdapter, UserArgument
from draft_core.evaluation.evaluate import evaluate, evaluation_sampler
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.learners.preference import PreferenceLearner
from draft_core.preferences import Preference
from draft_core.recipe.prompt_lists import read_prompt_file
from draft_core.recipe.resolve import resolve_prompts
from draft_core.reporting.image_grid import draw_grid
from draft_core.rewards.images import read_image, to_pil
from draft_core.rewards.objective import Objective
from draft_core.runs.build import build_reward, reward_config
from draft_core.training.checkpoints import checkpoints, load_checkpoint, save_checkpoint
from draft_core.training.settings import TrainSettings

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "how-to" / "users.md"
IMAGE = ROOT / "docs" / "images" / "users.png"
STYLES = ("", "", "3d style, ", "flat style, ", "noto style, ")  # of the images of a prompt in the pool
POOL_STEPS, GUIDANCE = 4, 4.0
MEASURES = ("warm", "light")
TRAINED, NEW = 176, 24  # people
CHOICES, FEW = 24, 4  # of a person: in training, and for the embedding
CLEAR = 0.75  # of all pairs of the pool, the share that differs too little to be asked about
SHARPNESS = 2.0  # odds of a choice are exp(2) to 1 where the utility differs by its spread among images of a prompt
JUDGED_STEPS, JUDGED_PROMPTS = 6, 20


def measures(images: torch.Tensor) -> torch.Tensor:
    """Warmth, red minus blue, and lightness of what is drawn on the white ground, (N, 2), of images (N, 3, H, W)."""
    drawn = ((1 - images.amin(1)) > 0.1).float()
    share = drawn.flatten(1).sum(1).clamp(min=1)
    warm, light = images[:, 0] - images[:, 2], images.mean(1)
    return torch.stack([(value * drawn).flatten(1).sum(1) / share for value in (warm, light)], dim=1)


@dataclass(frozen=True)
class Person:
    """Somebody with a taste.

    Arguments:
        taste: how much of each standardised measure, (2,) of length 1.
    """

    name: str
    taste: torch.Tensor


def people() -> list[Person]:
    """All of them: their tastes point in all directions."""
    rng = Random("people")
    angles = [rng.uniform(0, 2 * math.pi) for _ in range(TRAINED + NEW)]
    return [
        Person(f"{'user' if place < TRAINED else 'new'}-{place:03d}", torch.tensor([math.cos(a), math.sin(a)]))
        for place, a in enumerate(angles)
    ]


@dataclass(frozen=True)
class Pool:
    """Images that everybody chooses among.

    Arguments:
        files: of each prompt.
        values: measures of each image, (P, S, 2).
        pairs: of clearly different images: prompt, image, other image.
    """

    prompts: Sequence[str]
    files: Sequence[Sequence[Path]]
    values: torch.Tensor
    pairs: Sequence[tuple[int, int, int]]

    @property
    def spread(self) -> torch.Tensor:
        """Standard deviation of the measures among images of one prompt, (2,): the unit of a utility."""
        return (self.values - self.values.mean(1, keepdim=True)).flatten(0, 1).std(0)


def pool(folder: Path) -> Pool:
    """The images, drawn once by the base model in a few steps."""
    prompts = resolve_prompts("emoji-train-plain", load_catalog())
    files = [[folder / f"{place:03d}-{image}.png" for image in range(len(STYLES))] for place in range(len(prompts))]
    folder.mkdir(parents=True, exist_ok=True)
    pipe = None
    for place, prompt in enumerate(prompts):
        if files[place][-1].is_file():
            continue
        pipe = pipe or quiet(load_pipeline("emoji"))
        seeds = range(1000 + place * len(STYLES), 1000 + (place + 1) * len(STYLES))
        images = pipe(
            [style + prompt for style in STYLES],
            num_inference_steps=POOL_STEPS,
            guidance_scale=GUIDANCE,
            generator=[torch.Generator().manual_seed(seed) for seed in seeds],
            output_type="pt",
        ).images
        for file, image in zip(files[place], images, strict=True):
            to_pil(image).save(file)
    values = torch.stack([measures(torch.cat([read_image(file) for file in row])) for row in files])
    found = Pool(prompts, files, values, ())
    pairs = [(place, *two) for place in range(len(prompts)) for two in itertools.combinations(range(len(STYLES)), 2)]
    apart = torch.stack([(values[place, one] - values[place, other]) / found.spread for place, one, other in pairs])
    least = apart.norm(dim=1).quantile(CLEAR)
    clear = [pair for pair, distance in zip(pairs, apart.norm(dim=1), strict=True) if distance >= least]
    return Pool(prompts, files, values, clear)


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def choices(person: Person, images: Pool, count: int) -> list[tuple[str, Preference]]:
    """A person's answers to so many questions, each other pairs."""
    rng, found = Random(person.name), []
    for place, one, other in rng.sample(images.pairs, count):
        gain = float((images.values[place, one] - images.values[place, other]) / images.spread @ person.taste)
        if rng.random() > 1 / (1 + math.exp(-SHARPNESS * gain)):
            one, other = other, one
        found.append((images.prompts[place], Preference(images.files[place][one], images.files[place][other])))
    return found


class Remembered:
    """An encoder that sees each image once."""

    def __init__(self, encoder: Any) -> None:
        self.encoder = encoder
        self.features: dict[bytes, torch.Tensor] = {}

    def image_features(self, image: torch.Tensor) -> torch.Tensor:
        """Of a batch of one."""
        key = image.numpy().tobytes()
        if key not in self.features:
            self.features[key] = self.encoder.image_features(image)
        return self.features[key]


def embeddings(folder: Path, images: Pool) -> UserEmbeddings:
    """Of everybody, by the image tower of emoji-clip, each of the first four choices."""
    file = folder / "everybody.safetensors"
    if not file.is_file():
        catalog = load_catalog()
        encoder = Remembered(build_reward(reward_config("emoji-clip", {}, catalog), catalog))
        few = {person.name: [it for _, it in choices(person, images, FEW + CHOICES)[:FEW]] for person in people()}
        UserEmbeddings({name: embed_pairs(pairs, encoder) for name, pairs in few.items()}).save(file)
    return UserEmbeddings.read(file)


def written(folder: Path, images: Pool) -> Path:
    """The file of the pairs that are trained on, as `recipes/users.yaml` reads it."""
    file = folder / "pairs.jsonl"
    rows = [
        {"prompt": prompt, "winner": str(it.winner), "loser": str(it.loser), "user": person.name}
        for person in people()[:TRAINED]
        for prompt, it in choices(person, images, FEW + CHOICES)[FEW:]
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def trained(folder: Path, images: Pool, everybody: UserEmbeddings, updates: int) -> DifferentiableSampler:
    """The model with users, trained on the other choices of those who are not new."""
    pairs = written(folder, images)
    listed = read_prompt_file(pairs, where="pairs")
    users = listed.columns["user"]
    rows = [PromptRow(prompt, {"user": user}) for prompt, user in zip(listed.prompts, users, strict=True)]
    pipe = quiet(load_pipeline("emoji"))
    torch.manual_seed(0)
    adapter = UserAdapter(pipe, everybody)
    adapter.attach()
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=10,
        guidance_scale=1.0,
        base_model=adapter.base_model,
        columns=CallColumns(computed=UserArgument(pipe, everybody)),
    )
    learner = PreferenceLearner(SimpleNamespace(pairs=pairs, loss="sigmoid", beta=BETA, fits=1, levels=1))
    settings = TrainSettings(
        steps=updates, batch_size=BATCH, learning_rate=RATE, weight_decay=0.0, cooldown_steps=updates // 3
    )
    trainer = Trainer(
        sampler,
        lambda images, prompts: images.mean(dim=[1, 2, 3]),  # nothing is scored
        learner,
        rows,
        settings,
        adapter=adapter,
        device="cpu",
        columns=listed.columns,
    )
    saved = folder / "checkpoints"
    if found := checkpoints(saved):
        load_checkpoint(trainer, found[-1])
    for report in trainer:
        if report.update % 5 == 0:
            numbers = " ".join(f"{name} {value:.4f}" for name, value in report.learner.items())
            print(f"{report.update}/{updates} loss {report.loss:.4f} {numbers} {report.seconds:.1f} s", flush=True)
        if report.update % 25 == 0 or report.update == updates:
            save_checkpoint(trainer, saved / f"{report.update:06d}")
    adapter.save(folder / "model")
    return sampler


# Judging


def drawn(sampler: DifferentiableSampler, prompts: Sequence[str], user: str, file: Path) -> torch.Tensor:
    """An image of each prompt for a user, (P, 3, H, W), drawn once; the noise is the same for everybody."""
    if not file.is_file():
        rows = [PromptRow(prompt, {"user": user}) for prompt in prompts]
        file.parent.mkdir(parents=True, exist_ok=True)
        save_file({"images": evaluate(sampler, Objective({}), rows, [SEED], batch_size=10).images.contiguous()}, file)
    return load_file(file)["images"]


@dataclass(frozen=True)
class Judged:
    """What the new people think of images of new prompts.

    Arguments:
        people: N of them.
        images: of each person, (N, P, 3, H, W), and by the model without a user, (P, 3, H, W).
        utilities: to each person (first) of the images for each person (second), (N, N, P), and of the base, (N, P).
    """

    people: Sequence[Person]
    prompts: Sequence[str]
    images: torch.Tensor
    base: torch.Tensor
    utilities: torch.Tensor
    of_base: torch.Tensor

    @property
    def against_base(self) -> list[float]:
        """Share of prompts whose image for a person is better to that person than the base model's."""
        own = self.utilities.diagonal().T
        return (own > self.of_base).float().mean(1).tolist()

    @property
    def against_others(self) -> list[float]:
        """Share of prompts and other new people whose image is worse to a person than the own one."""
        own = self.utilities.diagonal().T[:, None]
        wins = (own > self.utilities).float().mean(2)
        count = len(self.people)
        return ((wins.sum(1) - wins.diagonal()) / (count - 1)).tolist()


def as_judged(sampler: DifferentiableSampler) -> DifferentiableSampler:
    """The sampler with the steps and the guidance of what is judged."""
    how = EvaluationSettings(prompts="emoji-heldout", num_inference_steps=JUDGED_STEPS, guidance_scale=GUIDANCE)
    return evaluation_sampler(sampler, how)


def judged(sampler: DifferentiableSampler, images: Pool, folder: Path, people: Sequence[Person]) -> Judged:
    """Draws and judges."""
    prompts = resolve_prompts("emoji-heldout", load_catalog())[:JUDGED_PROMPTS]
    sampler = as_judged(sampler)
    base = drawn(sampler, prompts, "", folder / "nobody.safetensors")
    own = torch.stack([drawn(sampler, prompts, it.name, folder / f"{it.name}.safetensors") for it in people])
    values = torch.stack([measures(part) for part in own]) / images.spread
    tastes = torch.stack([person.taste for person in people])
    utilities = torch.einsum("mpk,nk->nmp", values, tastes)
    return Judged(
        people, prompts, own, base, utilities, torch.einsum("pk,nk->np", measures(base) / images.spread, tastes)
    )


def couples(people: Sequence[Person]) -> list[tuple[Person, Person]]:
    """People with the one whose taste is furthest from theirs."""
    return [(one, min(people, key=lambda other: float(one.taste @ other.taste))) for one in people[:COUPLES]]


def between(sampler: DifferentiableSampler, images: Pool, found: Judged, folder: Path) -> list[list[float]]:
    """For each couple the mean utility to the first of images from the other's, by SHARES, to its own."""
    sampler = as_judged(sampler)
    rows = []
    for one, other in couples(found.people):
        row = []
        for share in SHARES:
            mixed = f"{one.name}:{share},{other.name}:{1 - share}"
            file = folder / f"{one.name}-{share}.safetensors"
            values = measures(drawn(sampler, found.prompts[:COUPLE_PROMPTS], mixed, file)) / images.spread
            row.append(float((values @ one.taste).mean()))
        rows.append(row)
    return rows


def share_row(name: str, shares: Sequence[float], goal: str) -> list[str]:
    return [name, f"{100 * fmean(shares):.1f} % ± {100 * standard_error(shares):.1f}", goal]


def tables(found: Judged, mixed: Sequence[Sequence[float]], folder: Path) -> dict[str, str]:
    """What the page shows."""
    catalog = load_catalog()
    wins = [
        share_row("the base model's, same noise", found.against_base, "76 %"),
        share_row("that of another new person", found.against_others, "70 %"),
    ]
    rises = [sum(after > before for before, after in itertools.pairwise(row)) for row in mixed]
    lines = [
        ["utility", *(f"{fmean(row[place] for row in mixed):+.2f}" for place in range(len(SHARES)))],
    ]
    scores = []
    for kind in ("emoji-clip", "emoji-judge"):
        reward = build_reward(reward_config(kind, {}, catalog), catalog)
        with torch.no_grad():
            before = reward(found.base, found.prompts)
            after = torch.stack([reward(part, found.prompts) for part in found.images]).mean(1)
        spread = standard_error((after - before.mean()).tolist())
        scores.append([f"`{kind}`", f"{before.mean():.3f}", f"{after.mean():.3f} ± {spread:.3f}"])
    return {
        "wins": markdown(["image for a person against", "better to that person", "goal"], wins),
        "between": markdown(["share of the person", *map(str, SHARES)], lines)
        + f"\n\n{sum(rises)} of {len(rises) * (len(SHARES) - 1)} steps rise.",
        "price": markdown(["", "nobody", "for the new people"], scores),
    }


def grid(found: Judged) -> Any:
    """Rows of prompts, columns of people whose tastes point in the four directions."""
    wanted = {"nobody": None, "warm": (1.0, 0.0), "cool": (-1.0, 0.0), "light": (0.0, 1.0), "dark": (0.0, -1.0)}
    rows = []
    for place, prompt in list(enumerate(found.prompts))[:SHOWN]:
        row = [found.base[place]]
        for direction in filter(None, wanted.values()):
            likeness = [float(person.taste @ torch.tensor(direction)) for person in found.people]
            nearest = likeness.index(max(likeness))
            row.append(found.images[nearest, place])
        rows.append((prompt, row))
    return draw_grid(rows, headings=["nobody", *(f"likes {name}" for name in list(wanted)[1:])])


BETA, BATCH, RATE, UPDATES = 500.0, 16, 1e-3, 240
SEED, SHOWN = 0, 8
COUPLES, COUPLE_PROMPTS, SHARES = 6, 8, (0.0, 0.25, 0.5, 0.75, 1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Path("runs/users"), help="where images and the model lie")
    parser.add_argument("--updates", type=int, default=UPDATES)
    parser.add_argument("--print", action="store_true", help="write no page and no image")
    words = parser.parse_args()
    torch.set_num_threads(1)
    folder = words.runs.resolve()
    images = pool(folder / "pool")
    everybody = embeddings(folder, images)
    sampler = trained(folder, images, everybody, words.updates)
    found = judged(sampler, images, folder / "judged", people()[TRAINED:])
    mixed = between(sampler, images, found, folder / "mixed")
    publish(tables(found, mixed, folder), None if words.print else PAGE)
    grid(found).save(folder / "users.png" if words.print else IMAGE)


if __name__ == "__main__":
    main()
