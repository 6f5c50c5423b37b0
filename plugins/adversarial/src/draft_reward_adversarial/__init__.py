"""Adversarial classifiers: names the two rewards, their measure and their options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal, TypeAlias

from pydantic import StrictInt, model_validator

from draft_core.plugin import Config, Field, RecipePath, RewardConfig, RewardSpec, hookimpl

DRAFT_API_VERSION = 2

__all__ = [
    "AdversarialConfig",
    "AdversarialPerPromptConfig",
    "AdversarialTop1Config",
    "ClassifierConfig",
    "LogProbabilityConfig",
    "Source",
    "TimmSource",
    "TorchvisionSource",
    "TransformersSource",
    "draft_register_rewards",
]

_RANGE = "(-inf, 0] for targeted, [0, inf) for untargeted"
_WEIGHTS_LICENSE = "that of the classifier"
_DOWNLOAD_MB = 18.7  # timm's EfficientNet-Lite0, one of the smallest; others differ
_SMALL = {"library": "timm", "name": "test_efficientnet", "weights": "random", "num_classes": 10}

ClassChoice: TypeAlias = Annotated[StrictInt, Field(ge=0)] | Annotated[str, Field(min_length=1)]


class _Source(Config):
    """What is common to all libraries that a classifier can come from."""

    name: str = Field(min_length=1, description="The model's name in its library.")
    weights: Annotated[str, RecipePath(("hub", "random"), of="file")] = Field(
        min_length=1,
        description="`hub` for those published under the name, `random` for seeded ones, or the path of a file.",
    )
    pairing: Literal["name", "order"] = Field(
        "name",
        description="How the tensors of a weights file find their places: by their names, all of which must fit, or, "
        "for a file from another implementation, one after another, shapes permitting.",
    )
    num_classes: int | None = Field(
        None, ge=2, description="Number of classes, for a weights file or random weights; left out, the model's own."
    )
    seed: int = Field(0, ge=0, description="Of random weights.")

    @model_validator(mode="after")
    def _fields_agree(self) -> _Source:
        if self.pairing == "order" and self.weights in ("hub", "random"):
            raise ValueError("`pairing: order` is for a weights file")
        if self.pairing == "order" and self.weights.endswith(".safetensors"):
            raise ValueError("`pairing: order` needs a file saved by torch; safetensors files keep no order")
        if self.num_classes is not None and self.weights == "hub":
            raise ValueError("`num_classes` is for a weights file or random weights; published ones have their own")
        return self


class TimmSource(_Source):
    """A classifier of timm, with the preprocessing of its pretrained configuration."""

    library: Literal["timm"] = "timm"
    name: str = Field(min_length=1, description="As in `timm.create_model`, with or without tag.")


class TorchvisionSource(_Source):
    """A classifier of torchvision, with the transforms of one of its published weights."""

    library: Literal["torchvision"] = "torchvision"
    name: str = Field(min_length=1, description="As in `torchvision.models.get_model`.")
    variant: str | None = Field(
        None, description="Which published weights (IMAGENET1K_V1); also for their transforms. Left out, the default."
    )


class TransformersSource(_Source):
    """An image classifier of transformers, with its image processor's settings."""

    library: Literal["transformers"] = "transformers"
    name: Annotated[str, RecipePath(of="folder", absent="keep")] = Field(
        min_length=1, description="A hub name (org/model), or a folder with its config and image processor."
    )


Source: TypeAlias = Annotated[TimmSource | TorchvisionSource | TransformersSource, Field(discriminator="library")]


class ClassifierConfig(RewardConfig):
    """What all kinds say about the classifier."""

    source: Source = Field(description="The classifier: its library, its name and its weights.")
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the network; preprocessing and log-probabilities are always float32."
    )


class LogProbabilityConfig(ClassifierConfig):
    """What both rewards say."""

    mode: Literal["targeted", "untargeted"] = Field(
        "targeted", description="Towards the class, log p(class), or away from it, -log p(class)."
    )


class AdversarialConfig(LogProbabilityConfig):
    """Options of `adversarial`: one class for all images."""

    kind: Literal["adversarial"] = "adversarial"
    target: ClassChoice = Field(description="The class, by index or by name: 309, bee, n02206856.")


class AdversarialPerPromptConfig(LogProbabilityConfig):
    """Options of `adversarial-per-prompt`: the prompt decides on the class."""

    kind: Literal["adversarial-per-prompt"] = "adversarial-per-prompt"
    targets: dict[str, ClassChoice] = Field(
        min_length=1, description="Prompt -> class; every prompt of the run must be in it."
    )


class AdversarialTop1Config(ClassifierConfig):
    """Options of `adversarial-top1`: whether one class is the classifier's first choice, without a gradient."""

    kind: Literal["adversarial-top1"] = "adversarial-top1"
    target: ClassChoice = Field(description="The class, as for `adversarial`.")


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The two rewards of this distribution, and the measure beside them."""
    return [
        RewardSpec(
            kind="adversarial",
            summary="log-probability of one class under an image classifier",
            config=AdversarialConfig,
            factory="draft_reward_adversarial.reward:AdversarialReward",
            unit="nat",
            score_range=_RANGE,
            code_license="Apache-2.0",
            weights_license=_WEIGHTS_LICENSE,
            download_mb=_DOWNLOAD_MB,
            small={"source": _SMALL, "target": 3},
            reference="draft_reward_adversarial.reference:reference",
            tolerance=0.002,
        ),
        RewardSpec(
            kind="adversarial-per-prompt",
            summary="log-probability of the prompt's class under an image classifier",
            config=AdversarialPerPromptConfig,
            factory="draft_reward_adversarial.reward:AdversarialPerPromptReward",
            unit="nat",
            score_range=_RANGE,
            code_license="Apache-2.0",
            weights_license=_WEIGHTS_LICENSE,
            download_mb=_DOWNLOAD_MB,
            needs_prompt=True,
        ),
        RewardSpec(
            kind="adversarial-top1",
            summary="whether one class comes first under an image classifier",
            config=AdversarialTop1Config,
            factory="draft_reward_adversarial.reward:AdversarialTop1",
            unit="share of images",
            score_range="0 or 1",
            differentiable=False,
            code_license="Apache-2.0",
            weights_license=_WEIGHTS_LICENSE,
            download_mb=_DOWNLOAD_MB,
        ),
    ]
