"""What `compare_rl.py` compares: the methods with their settings, and the rewards that they are trained on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from emoji_judges import ALIGNMENT, BYTES, MARK, QUALITY, SCENE_RIGHT, TOP1

SMALLER = round(100 * (1 - MARK), 6)  # per cent of the bytes
GUIDED = {
    "pretrained": "emoji",
    "num_inference_steps": 10,
    "guidance_scale": 4.0,
    "call": {"eta": 1.0},
    "lora": {"rank": 8},
}
UNGUIDED = {**GUIDED, "num_inference_steps": 4, "guidance_scale": 1.0}


@dataclass(frozen=True)
class Entry:
    """A method as it takes part.

    Arguments:
        method: as a recipe has it.
        train: fields of the recipe's `train`, without rate, steps and seed.
        rates: learning rates that are tried on the first seed.
        seeds: all have the best of these rates.
        judged_every: so many queries.
        reward: further fields of the reward's entry in the recipe.
    """

    name: str
    method: Mapping[str, Any]
    train: Mapping[str, int]
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (0, 1, 2)
    judged_every: int = 128
    reward: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What the entries of one comparison share.

    Arguments:
        name: of its folder.
        reward: as a recipe has it; an entry may add fields.
        judge: the measure whose gain counts.
        unit: of the gain.
        mark: gain at which a run ends.
        budget: queries of a run.
        images: held-out prompts that are judged, one image each.
        model: as a recipe has it.
        prompts, held_out: lists of prompts, to train on and to judge by.
        of_each: images of a held-out prompt.
        alignment: the measure whose floor ends a run.
        beside: further measures that are noted.
        levels: gains whose price the table says.
        refused: methods that cannot be trained on the reward, as they need its gradient.
    """

    name: str
    reward: Mapping[str, Any]
    judge: str
    unit: str
    mark: float
    entries: tuple[Entry, ...]
    budget: int = 2048
    images: int = 16
    model: Mapping[str, Any] = field(default_factory=lambda: GUIDED)
    prompts: str = "emoji-train"
    held_out: str = "emoji-heldout"
    of_each: int = 1
    alignment: str = ALIGNMENT
    beside: tuple[str, ...] = (BYTES,)
    refused: tuple[str, ...] = ()
    levels: tuple[float, ...] = (1, 2, 3, 5, 8)


GRADIENT = {"batch_size": 4}
GROUPS = {"batch_size": 32, "images_per_prompt": 4}
ONE_PROMPT = {"batch_size": 16, "images_per_prompt": 16, "gradient_accumulation_steps": 4}
SELECTION = {"kind": "importance", "temperature": 0.01, "buffer": 0}  # kB: a third of the spread within a prompt

DRAFT_1 = Entry("DRaFT-1", {"kind": "draft-k", "k": 1}, GRADIENT, (4e-3, 2e-3), judged_every=8)
DRAFT_LV = Entry("DRaFT-LV", {"kind": "draft-lv", "resamples": 2}, GRADIENT, (4e-3, 2e-3), judged_every=24)
# least: the images of one prompt in a batch are enough to compare them with each other.
DDPO = Entry("DDPO", {"kind": "ddpo", "minibatches": 2, "least": 4}, GROUPS, (8e-3, 4e-3, 2e-3), seeds=(0,))
GRPO = Entry("GRPO", {"kind": "grpo", "minibatches": 2}, GROUPS, (4e-3,), seeds=(0,))
RAFT = Entry("RAFT", {**SELECTION, "path_weights": False}, ONE_PROMPT, (1e-3,), seeds=(0,))
IMPORTANCE = Entry("importance", SELECTION, ONE_PROMPT, (1e-3, 5e-4), seeds=(0,))

FREE = (DDPO, GRPO, RAFT, IMPORTANCE)
TASKS = (
    Task("jpeg", {"kind": "jpeg", "quality": QUALITY}, BYTES, "%", SMALLER, (DRAFT_1, DRAFT_LV, *FREE)),
    Task("bytes", {"kind": BYTES, "quality": QUALITY}, BYTES, "%", SMALLER, FREE),
    Task("top-1", {"kind": TOP1}, TOP1, "points", 100, FREE, images=40),
)

# The steps of one chain that are trained in an update: half of them, drawn anew, at half the price.
GRADIENTS = {"minibatches": 2, "steps": 2}
FEW_DRAFT_1 = replace(DRAFT_1, rates=(2e-3,))
FEW_DRAFT_LV = replace(DRAFT_LV, rates=(2e-3,))
FEW_DDPO = Entry("DDPO", {"kind": "ddpo", "least": 4, **GRADIENTS}, GROUPS, (4e-3,), judged_every=256)
FEW_GRPO = Entry("GRPO", {"kind": "grpo", **GRADIENTS}, GROUPS, (4e-3,), judged_every=256)
# Four accumulated passes draw a level each, so that one of a pass is enough.
FEW_RAFT = replace(RAFT, method={**RAFT.method, "levels": 1}, seeds=(0, 1, 2))
FEW_IMPORTANCE = replace(IMPORTANCE, method={**IMPORTANCE.method, "levels": 1}, rates=(1e-3,), seeds=(0, 1, 2))
SURROGATE = Entry(
    "surrogate", {"kind": "draft-k", "k": 1}, {"batch_size": 8}, (1e-3,), judged_every=32, reward={"surrogate": {}}
)
FEW_FREE = (SURROGATE, FEW_GRPO, FEW_RAFT, FEW_DDPO, FEW_IMPORTANCE)
few = partial(Task, budget=512, images=40, model=UNGUIDED)

# Right or wrong: those samples of 16 prompts that are right, whichever prompts these are.
RIGHT = {"temperature": 0.25, "levels": 2}
OF_16_PROMPTS = {"batch_size": 64, "images_per_prompt": 4}
SCENE_FREE = (
    replace(SURROGATE, train={"batch_size": 16, "images_per_prompt": 4}, judged_every=256),
    FEW_GRPO,
    replace(FEW_RAFT, method={**FEW_RAFT.method, **RIGHT}, train=OF_16_PROMPTS, judged_every=256),
    FEW_DDPO,
    replace(FEW_IMPORTANCE, method={**FEW_IMPORTANCE.method, **RIGHT}, train=OF_16_PROMPTS, judged_every=256),
)
BLACK_BOX = {"kind": BYTES, "quality": QUALITY}
FOLLOW = (DRAFT_1.name, DRAFT_LV.name)
FEW_TASKS = (
    few(
        name="few-jpeg",
        reward={"kind": "jpeg", "quality": QUALITY},
        judge=BYTES,
        unit="%",
        mark=SMALLER,
        entries=(FEW_DRAFT_1, FEW_DRAFT_LV, *FEW_FREE),
    ),
    few(
        name="few-bytes",
        reward=BLACK_BOX,
        judge=BYTES,
        unit="%",
        mark=SMALLER,
        entries=FEW_FREE,
        refused=FOLLOW,
    ),
    few(
        name="few-scenes",
        reward={"kind": SCENE_RIGHT},
        judge=SCENE_RIGHT,
        unit="points",
        mark=100,
        entries=SCENE_FREE,
        model={**UNGUIDED, "pretrained": "emoji-scenes"},
        prompts="scenes-train",
        held_out="scenes-heldout",
        of_each=2,
        alignment="emoji-scene",
        levels=(5, 10, 15),
        beside=("emoji-scene-judge",),
        refused=FOLLOW,
    ),
    few(
        name="few-two-steps",
        reward=BLACK_BOX,
        judge=BYTES,
        unit="%",
        mark=SMALLER,
        entries=(SURROGATE,),
        model={**UNGUIDED, "pretrained": "emoji-two-steps", "num_inference_steps": 2},
    ),
)
QUICK = (
    Task(
        name="quick",
        reward={"kind": "jpeg", "quality": QUALITY},
        judge=BYTES,
        unit="%",
        mark=100,
        budget=8,
        images=1,
        model={**GUIDED, "num_inference_steps": 2},
        entries=tuple(
            replace(entry, train={"batch_size": 4, "images_per_prompt": 2}, rates=(1e-3,), seeds=(0,), judged_every=4)
            for entry in (DRAFT_1, GRPO, RAFT)
        ),
    ),
)
