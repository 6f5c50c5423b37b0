"""Answers of four published architectures, with tiny seeded weights, against their own `generate` on Pillow images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from draft_reward_vlm import VlmConfig
from draft_reward_vlm import critic as critic_module
from draft_reward_vlm.critic import Critic
from draft_reward_vlm.reference import first_token
from draft_reward_vlm.tiny import SHAPES, tiny

from draft_core.errors import DraftError
from draft_core.rewards.images import to_pil

QUESTION = "Is a red cat visible here?"
LAYOUTS = {"blip": "question: {question} answer:"}


def made(shape: str, **fields: Any) -> Critic:
    model, processor = tiny(shape, seed=0)
    model.processor = processor
    config = VlmConfig(model="tiny", **{"layout": LAYOUTS.get(shape), **fields})
    return Critic(model.requires_grad_(False), config, "reward")


def drawn(count: int, height: int, width: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(height)
    return torch.rand(count, 3, height, width, generator=generator).mul(255).round().div(255)


@pytest.fixture(scope="module", params=list(SHAPES))
def critic(request: pytest.FixtureRequest) -> Critic:
    return made(request.param)


def logs_of(critic: Critic, images: torch.Tensor, answers: tuple[str, ...] = ("Yes", "No")) -> torch.Tensor:
    asked = [critic.ask(QUESTION, answers, tuple(images.shape[1:]))] * len(images)
    return torch.stack([of_one[:, 0] for of_one in critic(list(images), asked, range(len(images)))])


@pytest.mark.parametrize("size", [(64, 48), (90, 130)])
def test_probabilities_are_those_of_generate(critic: Critic, size: tuple[int, int]) -> None:
    images = drawn(3, *size).requires_grad_()
    logs = logs_of(critic, images)
    text = critic.text_of(QUESTION, (3, *size))
    yes, no = (tokens[0] for tokens in critic.ask(QUESTION, ("Yes", "No"), (3, *size)).answers)
    wanted = torch.stack([first_token(critic.model, to_pil(image), text)[[yes, no]] for image in images])
    torch.testing.assert_close(logs.exp(), wanted.exp(), rtol=0, atol=1e-5)
    torch.testing.assert_close(logs, wanted, rtol=0, atol=1e-4)  # the probabilities themselves are small
    assert wanted.std(0).min() > 1e-3, "images must differ by more than the tolerance"
    (gradient,) = torch.autograd.grad((logs[:, 0] - logs[:, 1]).sum(), images)
    assert (gradient != 0).float().mean() > (
        0.99 if size == (64, 48) or "Llava" not in type(critic.model).__name__ else 0.5
    )


def test_single_images_have_the_answers_of_the_batch(critic: Critic) -> None:
    images = drawn(3, 64, 48)
    alone = torch.cat([logs_of(critic, image[None]) for image in images])
    torch.testing.assert_close(logs_of(critic, images), alone, rtol=0, atol=1e-5)


def test_another_resize_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug that the comparison with `generate` is for."""
    critic = made("qwen2.5-vl")
    images = drawn(1, 90, 130)
    right = logs_of(critic, images)
    plain = critic_module.through

    def blurred(processor: Any, images: torch.Tensor, **call: Any) -> Any:
        small = torch.nn.functional.interpolate(images, (84, 112), mode="bilinear")
        return plain(processor, torch.nn.functional.interpolate(small, images.shape[-2:]), **call)

    monkeypatch.setattr(critic_module, "through", blurred)
    assert (logs_of(critic, images) - right).abs().max() > 1e-3
    with pytest.raises(DraftError, match="prepares pixel_values otherwise than its image processor alone"):
        critic.ask(QUESTION, ("Yes", "No"), (3, 92, 130))


def test_several_tokens_are_weighed_one_after_the_other(critic: Critic) -> None:
    """By one forward of the model over the whole text, without this module's code for the answer."""
    images = drawn(2, 64, 48)
    asked = critic.ask(QUESTION, ("red cat",), (3, 64, 48))
    assert len(asked.answers[0]) > 3
    found = critic(list(images), [asked, asked], [0, 1])
    text = critic.text_of(QUESTION, (3, 64, 48))
    joined = text + ("red cat" if text.endswith("\n") else " red cat")
    for image, logs in zip(images, found, strict=True):
        inputs = critic.processor(images=[to_pil(image)], text=[joined], return_tensors="pt")
        if "Blip" in type(critic.model).__name__:
            inputs = {
                **inputs,
                "input_ids": inputs["input_ids"][:, :-1],
                "attention_mask": inputs["attention_mask"][:, :-1],
            }
            inputs["input_ids"][:, 0] = critic.model.config.text_config.bos_token_id
        all_logs = critic.model(**inputs).logits[0].log_softmax(-1)
        tokens = asked.answers[0]
        assert inputs["input_ids"][0, -len(tokens) :].tolist() == list(tokens)
        wanted = torch.stack([all_logs[-len(tokens) - 1 + place, token] for place, token in enumerate(tokens)])
        torch.testing.assert_close(logs[0], wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize(("shape", "as_video"), [("qwen2.5-vl", True), ("smolvlm", True), ("llava", False)])
def test_every_frame_of_a_video_counts(shape: str, as_video: bool) -> None:
    critic = made(shape)
    assert critic.as_video == as_video
    video = drawn(4, 64, 48).requires_grad_()
    asked = critic.ask(QUESTION, ("Yes", "No"), (4, 3, 64, 48))
    (logs,) = critic([video], [asked], [0])
    (gradient,) = torch.autograd.grad(logs[0, 0] - logs[1, 0], video)
    assert (gradient.flatten(1) != 0).float().mean(1).min() > 0.99
    turned = critic([video.detach().flip(0)], [asked], [0])[0]
    assert (turned - logs).abs().max() > 1e-5, "the order of frames counts"


def test_a_video_is_that_of_the_models_own_call() -> None:
    """Frames as a list of Pillow images, by the processor's one call for text and video."""
    critic = made("qwen2.5-vl", fps=8)
    video = drawn(4, 64, 48)
    asked = critic.ask(QUESTION, ("Yes", "No"), (4, 3, 64, 48))
    (logs,) = critic([video], [asked], [0])
    metadata = {"fps": 8, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3], "duration": 0.5}
    inputs = critic.processor(
        text=[critic.text_of(QUESTION, (4, 3, 64, 48))],
        videos=[[to_pil(frame) for frame in video]],
        video_metadata=[metadata],
        do_sample_frames=False,
        return_tensors="pt",
    )
    assert inputs["second_per_grid_ts"] == [0.25] or inputs["second_per_grid_ts"].tolist() == [0.25]
    wanted = critic.model(**inputs).logits[0, -1].log_softmax(-1)[[tokens[0] for tokens in asked.answers]]
    torch.testing.assert_close(logs[:, 0], wanted, rtol=0, atol=1e-4)


def test_frames_that_the_model_would_not_see_are_refused() -> None:
    with pytest.raises(DraftError, match="frames: BlipForConditionalGeneration is shown 0 of 4 frames at once"):
        made("blip").ask(QUESTION, ("Yes",), (4, 3, 64, 48))
    with pytest.raises(DraftError, match="frames: LlavaForConditionalGeneration takes no videos; set it to images or"):
        made("llava", frames="video")


def test_text_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    critic = made("llava")
    first = critic.ask(QUESTION, ("Yes", "No"), (3, 64, 48))
    monkeypatch.setattr(critic, "_process", None)
    assert critic.ask(QUESTION, ("Yes", "No"), (3, 64, 48)) is first
    monkeypatch.undo()
    monkeypatch.setattr(critic_module, "REMEMBERED", 1)
    critic.ask("Is it large?", ("Yes", "No"), (3, 64, 48))
    assert critic.ask(QUESTION, ("Yes", "No"), (3, 64, 48)) is not first


def test_the_answer_has_a_blank_before_it_unless_a_line_ends_there() -> None:
    for shape, piece in (("qwen2.5-vl", "Yes"), ("smolvlm", "ĠYes"), ("llava", "ĠYes"), ("blip", "Ġyes")):
        critic = made(shape)
        (token,) = critic.ask(QUESTION, ("Yes" if piece[-3:] == "Yes" else " yes",), (3, 64, 48)).answers[0]
        assert critic.processor.tokenizer.convert_ids_to_tokens(token) == piece


def test_a_question_that_holds_the_models_own_marks_is_one_sentence() -> None:
    with pytest.raises(DraftError, match=r"LlavaProcessor cannot read the question 'an <image> here'.* special words"):
        made("llava").ask("an <image> here", ("Yes",), (3, 64, 48))


def test_a_layout_without_the_image_is_refused() -> None:
    with pytest.raises(DraftError, match=r"cannot read the question 'Is it\?': .*<image>.*; say in the field layout"):
        made("llava", layout="Q: {question}").ask("Is it?", ("Yes",), (3, 64, 48))
    laid = made("llava", layout="Q: <image> {question} A:")
    assert laid.text_of("Is it?", (3, 64, 48)) == "Q: <image> Is it? A:"
    assert logs_of(laid, drawn(1, 64, 48)).shape == (1, 2)


def test_layers_can_be_recomputed(tmp_path: Path) -> None:
    """The same scores and gradients, with fewer saved tensors."""
    from draft_core import load_reward

    saved: list[int] = []
    found = []
    images = drawn(1, 64, 48).requires_grad_()
    for recompute in (False, True):
        reward = load_reward("vqascore", model="tiny", dtype="float32", gradient_checkpointing=recompute)
        count: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, count=count: count.append(t.numel()) or t, lambda t: t):
            score = reward(images, ["a cat"])
        found.append((score, torch.autograd.grad(score.sum(), images)[0]))
        saved.append(sum(count))
    torch.testing.assert_close(found[0], found[1])
    assert saved[1] < saved[0] / 2
