"""The rewards: questions put to a vision-language model, and what is made of its answers."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from pydantic import TypeAdapter, ValidationError
from torch import Tensor

from draft_core.errors import DraftError
from draft_core.rewards import FrozenModule, checked_images
from draft_reward_vlm import VlmConfig, VqaScoreConfig
from draft_reward_vlm.critic import Critic
from draft_reward_vlm.loading import load_shared
from draft_reward_vlm.questions import PROMPT, Question

OF_FILE = "question_file"  # the component that is the mean over a prompt's own questions


class VlmReward(FrozenModule):
    """How sure a vision-language model is of the wanted answers, differentiable: the weighted mean over its questions.

    As in "Diffusion-DRF", arXiv 2601.04153: log p(yes) - log p(no) of the first answer token, or another `score`.

    Arguments:
        config: its options.
        where: who asks; it begins an error's sentence.

    Raises:
        DraftError: if the question file or the model cannot be used.
    """

    def __init__(self, config: VlmConfig, *, where: str = "reward 'vlm'") -> None:
        super().__init__()
        self.where = where
        self.questions = config.all_questions()
        self.of_prompt = None if config.question_file is None else read_questions(Path(config.question_file), where)
        self.frame_count = config.frame_count
        self.takes = "image" if config.frames == "each" else "any"
        self.critic = Critic(load_shared(config, where=where), config, where)
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        """Scores (B,) float32 of images (B, 3, H, W), or videos (B, F, 3, H, W), in [0, 1] for their B prompts.

        Raises:
            RewardError: if images are not a floating-point batch of RGB images, each with a prompt.
            DraftError: if the question file lacks a prompt, or the model cannot be asked so.
        """
        return self.score_with_components(images, prompts)[0]

    def score_with_components(self, images: Tensor, prompts: Sequence[str]) -> tuple[Tensor, Mapping[str, Tensor]]:
        """The scores (B,), and by the name of each question its own score before its weight, (B,).

        Raises:
            RewardError, DraftError: as `forward`.
        """
        images = self._checked(images, prompts)
        asked = [[*self.questions, *self._own_questions(prompt)] for prompt in prompts]
        with torch.autocast(images.device.type, enabled=False):
            of = [place for place, questions in enumerate(asked) for _ in questions]
            flat = [question for questions in asked for question in questions]
            shape = tuple(images.shape[1:])
            read = [
                self.critic.ask(_filled(one.ask, prompts[i]), self._answers(one, prompts[i]), shape)
                for i, one in zip(of, flat, strict=True)
            ]
            for one, question in zip(read, flat, strict=True):
                self._require_tokens(question, one.answers)
            found = self.critic(list(images), read, of)
            values = [_score(question, logs).to(images.device) for question, logs in zip(flat, found, strict=True)]
        rows = iter(values)
        return self._gathered([[next(rows) for _ in questions] for questions in asked], asked)

    def _checked(self, images: Tensor, prompts: Sequence[str]) -> Tensor:
        if images.ndim == 4 and self.frame_count is not None:
            raise DraftError(
                "the model makes images, which have no frames to choose from",
                where=f"{self.where}, frame_count",
                next="leave it out",
            )
        if images.ndim != 5 or self.takes == "image":
            return checked_images(images, prompts, where=self.where)
        frames = images.shape[1]
        flat = checked_images(images.flatten(0, 1), [p for p in prompts for _ in range(frames)], where=self.where)
        videos = flat.view(images.shape)
        return videos if self.frame_count is None else videos[:, self._evenly(self.frame_count, frames)]

    def _evenly(self, count: int, total: int) -> list[int]:
        """So many of a video's frames, from the first to the last; of one the middle."""
        if count > total:
            raise DraftError(
                f"it is to be shown {count} frames of videos that have {total}",
                where=f"{self.where}, frame_count",
                next="choose fewer, or leave it out; under train.frames raise its count",
            )
        return [total // 2] if count == 1 else [round(i * (total - 1) / (count - 1)) for i in range(count)]

    def _own_questions(self, prompt: str) -> Sequence[Question]:
        if self.of_prompt is None:
            return ()
        if prompt not in self.of_prompt:
            raise DraftError(
                f"it has no questions for the prompt {prompt!r}",
                where=f"{self.where}, question_file",
                next="add it to the file, with an empty list if it is to be asked nothing more",
            )
        return self.of_prompt[prompt]

    def _answers(self, question: Question, prompt: str) -> tuple[str, ...]:
        others = question.against if question.score == "contrast" else ()
        return (_filled(question.answer, prompt), *others)

    def _require_tokens(self, question: Question, answers: Sequence[tuple[int, ...]]) -> None:
        """Refuses answers that the first token does not decide, where only that one counts."""
        if question.score == "log-probability":
            return
        words = (question.answer, *question.against)
        for word, tokens in zip(words, answers, strict=False):
            if len(tokens) != 1:
                raise DraftError(
                    f"the answer {word!r} to {question.ask!r} has {len(tokens)} tokens in this model",
                    where=self.where,
                    next="ask for a shorter word, or set the question's score to log-probability",
                )
        if answers[0] in answers[1:]:
            raise DraftError(
                f"the answers to {question.ask!r} begin with the same token", where=self.where, next="take other words"
            )

    def _gathered(
        self, values: Sequence[Sequence[Tensor]], asked: Sequence[Sequence[Question]]
    ) -> tuple[Tensor, Mapping[str, Tensor]]:
        """Weighted means over the questions of each image, and the components."""
        totals = []
        for of_image, questions in zip(values, asked, strict=True):
            if not questions:
                raise DraftError(
                    "an image is asked nothing", where=f"{self.where}, question_file", next="add questions"
                )
            weights = [question.weight for question in questions]
            weighted = torch.stack([weight * value for weight, value in zip(weights, of_image, strict=True)])
            totals.append(weighted.sum() / math.fsum(map(abs, weights)))
        count = len(self.questions)
        parts = {
            question.name or f"question {place + 1}": torch.stack([of_image[place] for of_image in values])
            for place, question in enumerate(self.questions)
        }
        if self.of_prompt is not None:
            own = [torch.stack(list(of_image[count:])).mean() if of_image[count:] else None for of_image in values]
            absent = totals[0].new_tensor(math.nan)
            parts[OF_FILE] = torch.stack([absent if mean is None else mean for mean in own])
        return torch.stack(totals), parts


def vqascore(config: VqaScoreConfig) -> VlmReward:
    """VQAScore: the probability that the answer to a question about the prompt begins with Yes.

    Lin et al. 2024, "Evaluating Text-to-Visual Generation with Image-to-Text Generation", arXiv 2404.01291.

    Raises:
        DraftError: if the model cannot be used.
    """
    question = Question(ask=config.ask, answer=config.answer, score="probability", name="probability")
    shared = config.model_dump(exclude={"kind", "ask", "answer"})
    return VlmReward(VlmConfig(questions=(question,), **shared), where="reward 'vqascore'")


def read_questions(path: Path, where: str) -> dict[str, tuple[Question, ...]]:
    """The questions of a file by prompt; one that is a text is to be answered with Yes.

    Raises:
        DraftError: that says which entry is wrong.
    """
    where = f"{where}, question_file {path}"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not all(isinstance(asked, list) for asked in content.values()):
            raise DraftError("it is no object of lists", where=where, next="write {prompt: [question, ...], ...}")
        filled = {
            prompt: [{"ask": one} if isinstance(one, str) else one for one in asked]
            for prompt, asked in content.items()
        }
        return TypeAdapter(dict[str, tuple[Question, ...]]).validate_python(filled)
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]
        prompt, *place = problem["loc"]
        raise DraftError(
            f"question {'.'.join(map(str, place))} of the prompt {prompt!r}: {problem['msg']}",
            where=where,
            next="correct it",
        ) from None
    except (OSError, ValueError) as error:
        raise DraftError(f"it cannot be read ({error})", where=where, next="give a .json file") from error


def _filled(text: str, prompt: str) -> str:
    return text.replace(PROMPT, prompt)


def _score(question: Question, logs: Tensor) -> Tensor:
    """The score, a single number, of log-probabilities (answers, tokens of the wanted answer)."""
    if question.score == "log-probability":
        return logs[0].mean()
    wanted = logs[0, 0]
    return wanted.exp() if question.score == "probability" else wanted - logs[1:, 0].logsumexp(0)
