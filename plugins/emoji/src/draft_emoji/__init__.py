"""Names the embedded text-to-image model, its prompt lists and its alignment score, so that a recipe can say them.

A naming file: it may import draft_core.plugin and nothing heavier.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from draft_core.plugin import PretrainedSpec, RewardConfig, RewardSpec, hookimpl
from draft_emoji.configs import (
    EmojiClipConfig,
    EmojiContrastConfig,
    EmojiJudgeConfig,
    EmojiJudgeTop1Config,
    EmojiMotionConfig,
    EmojiMotionThingConfig,
    EmojiPathConfig,
    EmojiPreferenceConfig,
    SceneConfig,
    SceneContrastConfig,
    SceneJudgeConfig,
    SceneJudgeRightConfig,
)

DRAFT_API_VERSION = 2

FOLDER = Path(__file__).parent
SMALL_SCENES = ("a fox and an owl", "3d style, a blue fox and a red apple", "a green cactus and a slice of pizza")
LICENSE = "Apache-2.0; trained on Noto Emoji (Apache-2.0) and Fluent Emoji (MIT)"

ClipConfig = EmojiClipConfig | EmojiContrastConfig | EmojiPreferenceConfig | SceneConfig | SceneContrastConfig


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """What can be said of an image of the embedded models: scores to train on, and judges to be believed."""
    return [
        _clip_spec(
            "emoji-clip",
            "whether an emoji shows what its prompt says, by a CLIP of 2.7 M parameters that knows emoji only",
            EmojiClipConfig,
            unit="cosine",
            score_range="[-1, 1]",
        ),
        _contrast_spec(
            "emoji-contrast",
            "how sure that CLIP is that an emoji shows its prompt, among two hundred things",
            EmojiContrastConfig,
            "draft_emoji.contrast:EmojiContrast",
        ),
        _clip_spec(
            "emoji-preference",
            "which of two emoji of a prompt a person would pick, by a CLIP taught on drawings good and bad",
            EmojiPreferenceConfig,
            unit="100 cosine",
            score_range="[-100, 100]",
        ),
        _clip_spec(
            "emoji-scene",
            "whether an image shows both things asked for, in their colours and well drawn, by a CLIP",
            SceneConfig,
            unit="100 cosine",
            score_range="[-100, 100]",
        ),
        _contrast_spec(
            "emoji-scene-contrast",
            "how sure that CLIP is of both things and their colours, among prompts that are almost the same",
            SceneContrastConfig,
            "draft_emoji.contrast:SceneContrast",
            SMALL_SCENES,
        ),
        _judge_spec(
            "emoji-judge",
            "how sure an independent network is that an emoji shows its prompt's thing, among 274; to judge by",
            EmojiJudgeConfig,
            unit="log-probability",
            score_range="(-inf, 0]",
        ),
        _judge_spec(
            "emoji-judge-top1",
            "whether an independent network sees the prompt's thing first, among 274; to judge by",
            EmojiJudgeTop1Config,
            unit="share",
            score_range="0 or 1",
        ),
        _scene_judge_spec(
            "emoji-scene-judge",
            "how sure an independent network is of both things asked for, and of their colours; to judge by",
            SceneJudgeConfig,
            unit="log-probability",
            score_range="(-inf, 0]",
        ),
        _scene_judge_spec(
            "emoji-scene-judge-right",
            "whether an independent network sees both things asked for, in the colours asked for; to judge by",
            SceneJudgeRightConfig,
            unit="share",
            score_range="0 or 1",
        ),
        _motion_spec(
            "emoji-motion",
            "whether an emoji moves, grows or shrinks as its prompt says, by its place in every frame",
            EmojiMotionConfig,
            "EmojiMotion",
            unit="share",
            score_range="0 or 1",
            differentiable=False,
        ),
        _motion_spec(
            "emoji-path",
            "how far an emoji strays from the path of the motion that its prompt says; with a gradient",
            EmojiPathConfig,
            "EmojiPath",
            unit="-sides of the frame",
            score_range="(-inf, 0]",
        ),
        _motion_spec(
            "emoji-motion-thing",
            "whether an independent network sees the thing of a prompt about motion in a frame; to judge by",
            EmojiMotionThingConfig,
            "EmojiMotionThing",
            takes="image",
            unit="share",
            score_range="0 or 1",
            differentiable=False,
        ),
    ]


def _motion_spec(kind: str, summary: str, config: type[RewardConfig], name: str, **more: Any) -> RewardSpec:
    """A score for prompts that end in a motion, of whole videos where nothing else is said."""
    return _spec(
        kind,
        summary,
        config,
        factory=f"draft_emoji.motion:{name}",
        small_prompts=("a fox moving left", "3d style, an owl growing", "a red apple moving down"),
        **{"takes": "video", **more},
    )


def _clip_spec(kind: str, summary: str, config: type[RewardConfig], **more: Any) -> RewardSpec:
    """A cosine by a CLIP: it has a gradient, and transformers' own model to be compared with."""
    return _spec(
        kind,
        summary,
        config,
        factory="draft_emoji.alignment:EmojiClip",
        reference="draft_emoji.reference:cosine",
        tolerance=0.002,
        **more,
    )


def _contrast_spec(
    kind: str, summary: str, config: type[RewardConfig], factory: str, small_prompts: tuple[str, ...] = ()
) -> RewardSpec:
    """A log-probability by a CLIP, to be compared with the same model."""
    return _spec(
        kind,
        summary,
        config,
        factory=factory,
        reference="draft_emoji.reference:contrast",
        tolerance=0.002,
        unit="log-probability",
        score_range="(-inf, 0]",
        small_prompts=small_prompts,
    )


def _judge_spec(kind: str, summary: str, config: type[RewardConfig], **more: Any) -> RewardSpec:
    """A score by the judge: without a gradient, and only for prompts that name a thing."""
    return _spec(
        kind,
        summary,
        config,
        factory="draft_emoji.judge:EmojiJudge",
        differentiable=False,
        small_prompts=("a fox", "3d style, a red apple, fruit", "flat style, an owl"),
        **more,
    )


def _scene_judge_spec(kind: str, summary: str, config: type[RewardConfig], **more: Any) -> RewardSpec:
    """A score by the judge of scenes: without a gradient, and only for prompts that ask for two things."""
    return _spec(
        kind,
        summary,
        config,
        factory="draft_emoji.scene_judge:SceneJudge",
        differentiable=False,
        small_prompts=SMALL_SCENES,
        **more,
    )


def _spec(kind: str, summary: str, config: type[RewardConfig], **more: Any) -> RewardSpec:
    """What all scores of emoji have in common, and the rest."""
    return RewardSpec(
        kind=kind,
        summary=summary,
        config=config,
        needs_prompt=True,
        native_size=64,
        code_license="Apache-2.0",
        weights_license=LICENSE,
        **more,
    )


@hookimpl
def draft_register_pretrained() -> Iterable[PretrainedSpec]:
    """The pipelines that this distribution carries, and the models that answer questions or find things."""
    return [
        PretrainedSpec(
            alias="emoji",
            summary="64x64 emoji of 274 things in three styles; 22 MB, made for trying rewards on a CPU",
            folder=FOLDER / "model",
            license=LICENSE,
            call={"num_inference_steps": 20, "guidance_scale": 4.0},
            prompts=_prompts("emoji-train", "emoji-train-plain", "emoji-heldout", "emoji-hard"),
        ),
        PretrainedSpec(
            alias="emoji-two-steps",
            summary="the same, tuned to draw in two steps without guidance what it draws in twenty with it",
            folder=FOLDER / "model",
            lora=FOLDER / "two-steps",
            license=LICENSE,
            call={"num_inference_steps": 2, "guidance_scale": 1.0},
        ),
        PretrainedSpec(
            alias="emoji-scenes",
            summary="64x64 images of two emoji side by side, in colours asked for; 22 MB, with prompts to be missed",
            folder=FOLDER / "scenes-model",
            license=LICENSE,
            call={"num_inference_steps": 20, "guidance_scale": 4.0},
            prompts=_prompts("scenes-train", "scenes-heldout"),
        ),
        PretrainedSpec(
            alias="emoji-video",
            summary="videos of 8 frames of 64x64: an emoji that moves, grows or shrinks; AnimateDiff on emoji-scenes",
            folder=FOLDER / "video-model",
            lora=FOLDER / "video-lora",
            modules=("draft_emoji.motion_unet",),
            license=LICENSE,
            call={"num_inference_steps": 10, "guidance_scale": 3.0, "num_frames": 8},
            prompts=_prompts(
                "emoji-motion", "emoji-motion-held-out", "emoji-motion-pairs", "emoji-motion-pairs-held-out"
            ),
        ),
        PretrainedSpec(
            alias="emoji-vlm",
            summary="a LLaVA of 2 M parameters that tells thing, colour and count of emoji; 4 MB, for the reward vlm",
            folder=FOLDER / "vlm",
            license=LICENSE,
            task="image-text-to-text",
        ),
        PretrainedSpec(
            alias="emoji-vlm-motion",
            summary="the same, taught to answer about motion from two or three frames; 4 MB",
            folder=FOLDER / "vlm-motion",
            license=LICENSE,
            task="image-text-to-text",
        ),
        PretrainedSpec(
            alias="emoji-detector",
            summary="an OWL-ViT of 2.7 M parameters that finds emoji by their names; 6 MB, for the reward detection",
            folder=FOLDER / "detector",
            license=LICENSE,
            task="zero-shot-object-detection",
        ),
    ]


def _prompts(*names: str) -> dict[str, Path]:
    return {name: FOLDER / "prompts" / f"{name}.txt" for name in names}
