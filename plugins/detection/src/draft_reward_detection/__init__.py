"""Objects under an open-vocabulary detector: names the rewards, their metric and their options; imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, ClassVar, Literal

from pydantic import model_validator

from draft_core.errors import RewardError, short
from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = [
    "DetectionConfig",
    "DetectionFoundConfig",
    "DetectionListedConfig",
    "DetectionPerPromptConfig",
    "DetectorConfig",
    "draft_register_rewards",
]

PROMPT = "{prompt}"  # in a query: where the prompt of the image goes
OBJECTS = "objects"  # the column
SEPARATOR = ";"  # between the objects of a column
OTHER_SEPARATORS = (",", "|", "\n", "，", "、", "；")  # of lists that this reward would read as one object
TOKENS = 16  # that OWL-ViT reads of a query, its two marks included

Query = Annotated[str, Field(min_length=1, pattern=r"\S")]


class DetectorConfig(RewardConfig):
    """What all kinds say: which objects, and which detector."""

    present: tuple[Query, ...] = Field(
        (), description='Objects that are to be there, in words: ["a cat", "a red ball"].'
    )
    removed: tuple[Query, ...] = Field((), description="Objects that are not to be there, likewise.")
    weights: Annotated[str, RecipePath(("hub", "random"), of="folder", absent="keep")] = Field(
        "hub",
        description='The detector: "hub" for google/owlvit-base-patch32, hf://owner/name or a local folder for another '
        "OWL-ViT of transformers, or the alias of one that an installed distribution carries, such as emoji-detector "
        'of draft-emoji; "random" for a tiny seeded one that reads bytes.',
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the network; its logits are always summed in float32."
    )
    seed: int = Field(0, ge=0, description='Of "random" weights.')

    _lists_per_prompt: ClassVar[bool] = False

    @model_validator(mode="after")
    def _queries_are_told_apart(self) -> Any:
        queries = (*self.present, *self.removed)
        if not queries and not self._lists_per_prompt:
            raise ValueError("it names no object; list some under `present`, `removed` or both")
        if twice := [query for query in queries if queries.count(query) > 1]:
            raise ValueError(f"it names {twice[0]!r} twice")
        self._check_places(any(PROMPT in query for query in queries))
        return self

    def _check_places(self, reads_prompt: bool) -> None:
        if reads_prompt:
            raise ValueError(f"a query with {PROMPT} is for the kind `detection-per-prompt`")


class DetectionConfig(DetectorConfig):
    """Options of `detection`: how surely objects are there, or are not."""

    kind: Literal["detection"] = "detection"


class DetectionPerPromptConfig(DetectorConfig):
    """Options of `detection-per-prompt`: the same, with the image's prompt in the queries."""

    kind: Literal["detection-per-prompt"] = "detection-per-prompt"
    present: tuple[Query, ...] = Field(
        (PROMPT,), description=f"Objects that are to be there; {PROMPT} in one stands for the image's prompt."
    )

    def _check_places(self, reads_prompt: bool) -> None:
        if not reads_prompt:
            raise ValueError(f"none of its queries has {PROMPT} in it; without, take the kind `detection`")

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses prompts with more words than the detector reads tokens.

        Raises:
            RewardError: with the first such prompt. Others that are too long for its tokenizer are refused when they
                are scored.
        """
        for prompt in prompts:
            for query in (*self.present, *self.removed):
                if PROMPT in query and len(query.replace(PROMPT, prompt).split()) + 2 > TOKENS:
                    raise too_long(query.replace(PROMPT, prompt), kind=self.kind)


class DetectionListedConfig(DetectorConfig):
    """Options of `detection-listed`: the same for the objects that the column `objects` of the prompt's row lists."""

    kind: Literal["detection-listed"] = "detection-listed"
    _lists_per_prompt: ClassVar[bool] = True

    def check_prompts(self, prompts: Sequence[str]) -> None:
        """Refuses a row whose objects cannot be looked for.

        Raises:
            RewardError: with the first such row. What is too long for the detector's own tokenizer is refused when it
                is scored.
        """
        name = (self.columns or {}).get(OBJECTS, OBJECTS)
        for number, prompt in enumerate(prompts, 1):
            if (text := getattr(prompt, "columns", {}).get(name)) is None:
                continue  # a row without the column is refused by who reads the list
            for query in listed(str(text), where=f"row {number}, column {name!r}"):
                if len(query.split()) + 2 > TOKENS:
                    raise too_long(short(query), kind=self.kind)


class DetectionFoundConfig(DetectorConfig):
    """Options of `detection-found`: which share of the objects is as asked, without a gradient."""

    kind: Literal["detection-found"] = "detection-found"
    threshold: float = Field(
        0.1, gt=0, lt=1, description="Probability above which an object counts as there, in any one box."
    )


def listed(text: str, *, where: str) -> list[str]:
    """The objects of a text with a semicolon between them.

    Raises:
        RewardError: if one is blank, named twice, or holds what else stands between the items of a list.
    """
    objects = [part.strip() for part in text.split(SEPARATOR)]
    if not all(objects) or len(set(objects)) < len(objects):
        raise RewardError(
            f"the objects {short(text)!r} have one that is blank, or one twice",
            where=where,
            next="write them as in 'a fox; an owl'",
        )
    for name in objects:
        if others := [mark for mark in OTHER_SEPARATORS if mark in name]:
            raise RewardError(
                f"{short(repr(name))} is read as one object, as it has no semicolon",
                where=where,
                next=f"write several as in 'a fox; an owl', and one without {others[0]!r}",
            )
    return objects


def too_long(query: str, *, kind: str) -> RewardError:
    """The error for a query of more tokens than OWL-ViT reads."""
    return RewardError(
        f"the query {query!r} is longer than the {TOKENS - 2} tokens that OWL-ViT reads",
        where=f"reward {kind!r}",
        next="name the object in fewer words",
    )


_SMALL = {"present": ["cat", "a red ball"], "removed": ["dog"], "weights": "random"}


def _spec(kind: str, summary: str, config: type[RewardConfig], factory: str, **more: Any) -> RewardSpec:
    return RewardSpec(
        kind=kind,
        summary=summary,
        config=config,
        factory=f"draft_reward_detection.reward:{factory}",
        native_size=768,
        code_license="Apache-2.0",
        weights_license="Apache-2.0 (the default model); that of the model chosen",
        download_mb=613,
        **{"small": _SMALL, **more},
    )


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The three rewards of this distribution, and the metric beside them."""
    compared = {"reference": "draft_reward_detection.reference:reference", "tolerance": 0.002, "unit": "logit"}
    return [
        _spec(
            "detection",
            "how surely OWL-ViT finds objects that are to be there, and does not find others",
            DetectionConfig,
            "DetectionReward",
            **compared,
        ),
        _spec(
            "detection-per-prompt",
            "how surely OWL-ViT finds what the prompt names",
            DetectionPerPromptConfig,
            "DetectionReward",
            needs_prompt=True,
            small={"present": ["{prompt}"], "weights": "random"},
            small_prompts=("an apple", "two cats", "the sea"),
            **compared,
        ),
        _spec(
            "detection-listed",
            "how surely OWL-ViT finds the objects that the prompt's row lists",
            DetectionListedConfig,
            "DetectionListed",
            columns={OBJECTS: "text"},
            small={"removed": ["dog"], "weights": "random"},
            small_columns={OBJECTS: ("cat", "a fox; a red ball", "the sea; an owl; a tree")},
            **compared,
        ),
        _spec(
            "detection-found",
            "share of the objects that are there, or not, as asked",
            DetectionFoundConfig,
            "DetectionFound",
            unit="share",
            score_range="[0, 1]",
            differentiable=False,
        ),
    ]
