"""The models and rewards that `draft init` offers, with the settings that it starts them from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

from pydantic import ValidationError

from draft_core.errors import DraftError, PluginError, RecipeError
from draft_core.recipe.resolve import resolve_prompt_list, rows_of
from draft_core.registry.catalog import Catalog
from draft_core.registry.config import RewardConfig
from draft_core.registry.names import PUBLISHED

EMOJI = "emoji"
EMOJI_PLUGIN = "draft-emoji"
HELD_OUT = 8  # prompts of an evaluation, but for the embedded model


@dataclass(frozen=True)
class Start:
    """A model, and the settings that a run of it starts from.

    Arguments:
        title: for listings.
        pretrained: as a recipe has it.
        call: further arguments of the pipeline's call.
        methods: to choose from, the one with the most memory first; fields of a recipe's `method`.
        prompts: beginning of the names of the prompt files beside the template.
        note: what must be done before the first run, or known; a sentence.
        networks: the model on the hub whose networks these are, where it is not `pretrained`.
        scheduler: its class in diffusers, where it is not the pipeline's own.
    """

    title: str
    pretrained: str
    steps: int
    guidance: float
    call: Mapping[str, Any] = field(default_factory=dict)
    rank: int = 32
    learning_rate: float = 1e-4
    updates: int = 500
    images_per_update: int = 8
    methods: tuple[Mapping[str, Any], ...] = ({"kind": "draft-lv", "resamples": 2},)
    prompts: str = "images"
    note: str = ""
    networks: str = ""
    scheduler: str = ""

    @property
    def own_prompts(self) -> str | list[str]:
        """What it is trained on where nothing else is given: the name of a list, or texts."""
        return "emoji-train-plain" if self.pretrained == EMOJI else _lines(f"{self.prompts}.txt")

    @property
    def held_out_prompts(self) -> str | list[str]:
        """What it is evaluated on, likewise."""
        return "emoji-hard" if self.pretrained == EMOJI else _lines(f"{self.prompts}-heldout.txt")[:HELD_OUT]


SD15 = "stable-diffusion-v1-5/stable-diffusion-v1-5"
SQUARE, HALF = {"height": 1024, "width": 1024}, {"height": 512, "width": 512}
GATED = "Accept the model's licence on its page of the hub, then give `hf auth login`."
STUDENT: tuple[Mapping[str, Any], ...] = ({"kind": "draft-k", "k": 2}, {"kind": "draft-k", "k": 1})
LCM = (
    "Make the student's folder first, from the base model and its LCM-LoRA: docs/how-to/train-your-model.md has the "
    "program, six lines."
)

STARTS = {
    EMOJI: Start(
        "The embedded model",
        EMOJI,
        1,
        1.0,
        rank=16,
        learning_rate=1e-3,
        updates=40,
        methods=({"kind": "draft"},),
    ),
    "sd15": Start("Stable Diffusion 1.5", SD15, 30, 7.5, HALF, rank=8, learning_rate=4e-4, updates=200),
    "sdxl": Start("Stable Diffusion XL", "stabilityai/stable-diffusion-xl-base-1.0", 30, 5.0, SQUARE),
    "sd3.5-medium": Start(
        "Stable Diffusion 3.5 medium",
        "stabilityai/stable-diffusion-3.5-medium",
        28,
        4.5,
        {**SQUARE, "max_sequence_length": 256},
        note=GATED,
    ),
    "sd3.5-large": Start(
        "Stable Diffusion 3.5 large",
        "stabilityai/stable-diffusion-3.5-large",
        28,
        4.5,
        {**SQUARE, "max_sequence_length": 256},
        note=GATED,
    ),
    "flux-dev": Start(
        "FLUX.1-dev",
        "black-forest-labs/FLUX.1-dev",
        28,
        3.5,
        {**SQUARE, "max_sequence_length": 512},
        note=GATED,
    ),
    "flux-schnell": Start(
        "FLUX.1-schnell, four steps",
        "black-forest-labs/FLUX.1-schnell",
        4,
        0.0,
        {**SQUARE, "max_sequence_length": 256},
        methods=STUDENT,
    ),
    "wan-1.3b": Start(
        "Wan 2.1 1.3B, nine frames of video",
        "Wan-AI/Wan2.1-T2V-1.3B-Diffusers",
        30,
        5.0,
        {"height": 480, "width": 832, "num_frames": 9, "max_sequence_length": 512},
        updates=300,
        images_per_update=4,
        methods=({"kind": "draft-k", "k": 1},),
        prompts="videos",
    ),
    "sd15-lcm": Start(
        "Stable Diffusion 1.5 with LCM-LoRA, four steps",
        "models/sd15-lcm",
        4,
        1.0,
        HALF,
        rank=8,
        learning_rate=2e-4,
        updates=200,
        methods=STUDENT,
        note=LCM,
        networks=SD15,
        scheduler="LCMScheduler",
    ),
    "sd-turbo": Start(
        "SD-turbo, four steps",
        "stabilityai/sd-turbo",
        4,
        0.0,
        HALF,
        rank=8,
        learning_rate=2e-4,
        updates=200,
        methods=STUDENT,
    ),
    "sdxl-turbo": Start("SDXL-turbo, four steps", "stabilityai/sdxl-turbo", 4, 0.0, HALF, updates=200, methods=STUDENT),
}

# The order in which rewards are proposed, and what a recipe says of one beside its kind.
PROPOSED = ("emoji-preference", "emoji-contrast", "emoji-clip", "hpsv2", "pickscore", "aesthetic", "clipscore", "jpeg")
JUDGES = ("emoji-judge", "emoji-clip", "pickscore", "hpsv2", "clipscore", "aesthetic")
FIELDS: Mapping[str, Mapping[str, Any]] = {
    "hpsv2": {"version": "2.1", "dtype": "bfloat16"},
    "pickscore": {"dtype": "bfloat16"},
    "aesthetic": {"dtype": "bfloat16", "cap": 7.5},
    "clipscore": {"dtype": "bfloat16"},
}
OF_PHOTOGRAPHS = ("hpsv2", "pickscore", "aesthetic", "clipscore")


def start_of(name: str) -> Start:
    """The start of this name.

    Raises:
        RecipeError: if there is none.
    """
    if name not in STARTS:
        raise RecipeError(
            f"{name!r} is no model that a recipe can be written for",
            where="--model",
            next=f"give one of {', '.join(STARTS)}; for another, begin with one of the same kind",
        )
    return STARTS[name]


def suits(kind: str, model: str, catalog: Catalog) -> bool:
    """Whether a reward reads images like those of the model: small networks read emoji, CLIPs read photographs.

    Rewards of whole videos are not proposed: those that there are read one thing before a plain background.
    """
    if catalog.rewards[kind].spec.takes == "video":
        return False
    is_of_emoji = str(catalog.rewards[kind].distribution.name) == EMOJI_PLUGIN
    needs_download = catalog.rewards[kind].spec.download_mb > 0
    return not needs_download if model == EMOJI else not is_of_emoji


def trainable_rewards(model: str, catalog: Catalog, prompts: str | None = None) -> list[str]:
    """The installed rewards that can be trained on without further fields, the proposed ones first.

    Arguments:
        prompts: the list or file to train on; None for the model's own.
    """
    found = [kind for kind in catalog.rewards if _obstacle(kind, model, catalog, prompts) is None]
    return sorted(found, key=lambda kind: (PROPOSED.index(kind) if kind in PROPOSED else len(PROPOSED), kind))


def missing_rewards(model: str, catalog: Catalog) -> dict[str, str]:
    """Published rewards that suit the model and are not installed -> the command that installs each."""
    suitable = ("emoji-clip", "jpeg") if model == EMOJI else OF_PHOTOGRAPHS
    return {kind: f"pip install {PUBLISHED[kind]}" for kind in suitable if kind not in catalog.rewards}


def judges(model: str, reward: str, catalog: Catalog) -> list[str]:
    """What the evaluation is scored by beside the reward: at most one that is installed and not trained on."""
    found = [kind for kind in JUDGES if kind in catalog.rewards and kind != reward and suits(kind, model, catalog)]
    return found[:1]


def require_reward(kind: str, model: str, catalog: Catalog, prompts: str | None = None) -> None:
    """That a run of the model can be trained on the reward.

    Arguments:
        prompts: the list or file to train on; None for the model's own.

    Raises:
        PluginError: if it is not installed.
        RecipeError: if it is installed and cannot be trained on, or cannot score the prompts.
    """
    known = trainable_rewards(model, catalog, prompts)
    if kind in known:
        return
    if kind not in catalog.rewards:
        raise catalog.unknown("reward", kind, catalog.rewards, where="--reward")
    if not known:
        raise PluginError(
            "no reward is installed that this model can be trained on",
            where="--reward",
            next="; ".join(missing_rewards(model, catalog).values()),
        )
    problem, remedy = _obstacle(kind, model, catalog, prompts) or ("", "")
    raise RecipeError(
        f"{kind!r} cannot be trained on here: {problem}",
        where="--reward",
        next="; or ".join(filter(None, (f"take one of {', '.join(known)}", remedy))),
    )


def _obstacle(kind: str, model: str, catalog: Catalog, prompts: str | None) -> tuple[str, str] | None:
    """Why a run of the model cannot be trained on a reward, and what would help, "" if nothing; None if it can be."""
    start, spec = STARTS[model], catalog.rewards[kind].spec
    if not spec.differentiable:
        return "it has no gradient", ""
    if not suits(kind, model, catalog):
        return "it reads other images", ""
    try:
        config: RewardConfig = spec.config.model_validate({})
    except ValidationError:
        return "it needs further fields", "write a recipe with them"
    scored = {"prompts": prompts or start.own_prompts, "evaluation.prompts": start.held_out_prompts}
    for lists, given in scored.items():
        problem, remedy = f"it cannot score the {lists} of such a recipe: ", f"write a recipe with other {lists}"
        listed = resolve_prompt_list(given, catalog, where=lists)
        for name in sorted(spec.columns.keys() - listed.columns.keys()):
            return f"{problem}they have no column {name!r}, which it reads", remedy
        try:
            config.check_prompts(rows_of(listed))
        except DraftError as error:
            return problem + error.what, remedy
    return None


def _lines(name: str) -> list[str]:
    file = resources.files("draft_core.proposals") / "templates" / name
    return file.read_text(encoding="utf-8").splitlines()
