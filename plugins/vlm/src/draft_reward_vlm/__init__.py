"""A vision-language model as a critic: names the two rewards and their options, and imports no torch."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Discriminator, Tag, field_validator, model_validator

from draft_core.plugin import Field, RecipePath, RewardConfig, RewardSpec, hookimpl
from draft_reward_vlm.questions import PROMPT, SETS, VQASCORE, Question

DRAFT_API_VERSION = 2

__all__ = ["ModelConfig", "Question", "VlmConfig", "VqaScoreConfig", "draft_register_rewards"]

DEFAULT_MODEL = "Qwen/Qwen2.5-VL-7B-Instruct"


def _known_set(name: str) -> str:
    if name not in SETS:
        raise ValueError(
            f"{name!r} is no set of questions ({', '.join(SETS)}); your own ends with ?, or is {{ask: ...}}"
        )
    return name


def _form(asked: Any) -> str:
    return "set" if isinstance(asked, str) else "question"


def _as_question(asked: Any) -> Any:
    """A text with a blank or a question mark, which no set's name has, is a question whose answer should be Yes."""
    return {"ask": asked} if isinstance(asked, str) and (" " in asked or "?" in asked) else asked


# The name of a shipped set, or a question.
Asked: TypeAlias = Annotated[
    Annotated[str, AfterValidator(_known_set), Tag("set")] | Annotated[Question, Tag("question")],
    Discriminator(_form),
    BeforeValidator(_as_question),
]


def _as_text(question: str | Question) -> str:
    return question if isinstance(question, str) else question.name or question.ask


class ModelConfig(RewardConfig):
    """Which vision-language model it is, and how it is shown images; what both rewards share."""

    model: Annotated[str, RecipePath(("tiny",), of="folder", absent="keep")] = Field(
        DEFAULT_MODEL,
        description="An image-text-to-text model of transformers: hf://owner/name, a local folder with model and "
        "processor, or the alias of one that an installed distribution carries, such as emoji-vlm of draft-emoji; "
        '"tiny" has random weights, for tests. Entries with the same model, dtype and device share it.',
    )
    layout: str | None = Field(
        None,
        description="How a question becomes the text that the model reads, for models without a chat template: "
        '"USER: <image>\\n{question} ASSISTANT:" for example. Left out, the chat template, or the bare question.',
    )
    frames: Literal["auto", "video", "images", "each"] = Field(
        "auto",
        description="How a video is shown: as a video, as images beside each other in one question, or each frame by "
        "itself with the mean as the score; auto: as a video if the model takes any, else as images.",
    )
    frame_count: int | None = Field(
        None,
        ge=1,
        description="With frames as images: it is shown so many of a video's, at even distances from the first to the "
        "last. Left out, all that are decoded.",
    )
    fps: float = Field(16.0, gt=0, description="Frames a second of the videos, for models that read time.")
    gradient_checkpointing: bool = Field(
        False, description="Recompute each layer in the backward pass: less memory for about a third more time."
    )
    dtype: Literal["bfloat16", "float16", "float32"] = Field(
        "bfloat16", description="Precision of the model; its log-probabilities are always float32."
    )
    seed: int = Field(0, description='Of the weights of the model "tiny".')

    @model_validator(mode="after")
    def _counts_images(self) -> ModelConfig:
        if self.frame_count is not None and self.frames in ("video", "each"):
            raise ValueError(f"frame_count is given, which frames: {self.frames} does not use; set frames to images")
        return self

    @property
    def least_frames(self) -> int:
        """As many as it is shown."""
        return self.frame_count or 1

    @field_validator("layout")
    @classmethod
    def _asks(cls, layout: str | None) -> str | None:
        if layout is not None and "{question}" not in layout:
            raise ValueError("it lacks {question}, so that nothing would be asked")
        return layout


class VlmConfig(ModelConfig):
    """Options of `vlm`: how sure a vision-language model is of the wanted answers to questions about an image."""

    kind: Literal["vlm"] = "vlm"
    questions: tuple[Asked, ...] = Field(
        ("alignment",),
        description="What is asked: names of shipped sets (alignment, physics, quality), and questions of your own, "
        "each a text to be answered with Yes, or fields: ask, answer, against, score, weight and name.",
    )
    question_file: Annotated[str, RecipePath(of="file")] | None = Field(
        None,
        description="A .json file with further questions for each prompt: {prompt: [question, ...]}, each a text to be "
        "answered with Yes, or fields as under questions.",
    )

    @model_validator(mode="after")
    def _asks_something(self) -> VlmConfig:
        if not self.questions and self.question_file is None:
            raise ValueError("questions is empty, and there is no question_file; ask at least one")
        names = [_as_text(question) for question in self.all_questions()]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"questions has {twice!r} twice; give each another name")
        return self

    @property
    def reads_prompts(self) -> bool:
        """Whether a question or its answer names the prompt, or a file has questions for each."""
        asked = self.all_questions()
        return self.question_file is not None or any(PROMPT in text for it in asked for text in (it.ask, it.answer))

    def all_questions(self) -> tuple[Question, ...]:
        """Those that every image is asked, with the shipped sets written out."""
        return tuple(one for asked in self.questions for one in (SETS[asked] if isinstance(asked, str) else (asked,)))


class VqaScoreConfig(ModelConfig):
    """Options of `vqascore`: the probability that the answer to "does this show the prompt?" begins with Yes."""

    kind: Literal["vqascore"] = "vqascore"
    ask: str = Field(VQASCORE, description="The question, with {prompt}; the default is that of the paper.")
    answer: str = Field("Yes", min_length=1, description="The wanted answer, a single token.")

    @field_validator("ask")
    @classmethod
    def _names_the_prompt(cls, ask: str) -> str:
        if PROMPT not in ask:
            raise ValueError(f"it lacks {PROMPT}, so that every prompt would be asked the same")
        return ask


SMALL = {"model": "tiny", "dtype": "float32"}


def _spec(**own: Any) -> RewardSpec:
    """What both rewards have in common, and the rest."""
    return RewardSpec(
        takes="any",
        needs_prompt=True,
        code_license="Apache-2.0",
        weights_license="Apache-2.0 (the default model, Qwen2.5-VL 7B); otherwise that of the model chosen",
        download_mb=16_600,
        reference="draft_reward_vlm.reference:generated",
        tolerance=1e-3,
        **own,
    )


@hookimpl
def draft_register_rewards() -> Iterable[RewardSpec]:
    """The two rewards of this distribution."""
    return [
        _spec(
            kind="vlm",
            summary="how sure a vision-language model is of the wanted answers to questions about an image or video",
            config=VlmConfig,
            factory="draft_reward_vlm.reward:VlmReward",
            unit="log-odds, probability or log-probability, by question; their weighted mean",
            score_range="(-inf, inf) for contrast, [0, 1] for probability, (-inf, 0] for log-probability",
            small={**SMALL, "questions": [{"ask": 'Does this show "{prompt}"?', "name": "shown"}]},
        ),
        _spec(
            kind="vqascore",
            summary="VQAScore: the probability that a vision-language model says Yes when asked for the prompt",
            config=VqaScoreConfig,
            factory="draft_reward_vlm.reward:vqascore",
            unit="probability",
            score_range="[0, 1]",
            small=SMALL,
        ),
    ]
