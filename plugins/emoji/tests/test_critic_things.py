"""emoji-vlm about things: what its CLIP says, written into the weights, and nothing else is answered otherwise."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from draft_emoji import FOLDER
from emoji_training.critic import things
from emoji_training.critic.model import Reader, image_features, pack, packed_logits
from emoji_training.critic.questions import Question, all_words
from emoji_training.critic.words import make_processor
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from draft_core import load_reward

CRITIC = FOLDER / "vlm"
PHRASES = ("a red circle", "a fox", "a basketball", "a red heart", "blueberries", "an owl", "a green square", "a key")


def discs() -> torch.Tensor:
    """A red, a green and a blue disc on white, (3, 3, 64, 64) in [0, 1]."""
    y, x = torch.meshgrid(torch.arange(64) - 31.5, torch.arange(64) - 31.5, indexing="ij")
    paints = torch.tensor([(220, 40, 40), (60, 170, 70), (50, 110, 225)])[:, :, None, None] / 255
    return torch.where(x**2 + y**2 < 26**2, paints, torch.ones(3, 64, 64))


def odds(model: LlavaForConditionalGeneration, processor: LlavaProcessor, *asked: str) -> torch.Tensor:
    """Of a yes against a no, (discs, questions)."""
    questions = [[Question("any", text, "yes") for text in asked]] * 3
    packed = pack(Reader(processor), questions)
    yes, no = processor.tokenizer.convert_tokens_to_ids(["yes", "no"])
    with torch.no_grad():
        features = image_features(model, discs() * 2 - 1)
        logits = packed_logits(model, Reader(processor), features, packed, packed.wanted != -100)
    return (logits[:, yes] - logits[:, no]).view(3, -1)


def shipped() -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    return (
        LlavaForConditionalGeneration.from_pretrained(CRITIC, dtype=torch.float32),
        LlavaProcessor.from_pretrained(CRITIC),
    )


def narrowed(wide: LlavaForConditionalGeneration, words: int) -> LlavaForConditionalGeneration:
    """The model as it was before things were added: the first of all dimensions, heads, units and words."""
    config = copy.deepcopy(wide.config)
    text = config.text_config
    text.hidden_size, text.intermediate_size, text.vocab_size = things.OLD, text.intermediate_size - things.UNITS, words
    text.num_attention_heads = text.num_key_value_heads = things.OLD // things.HEAD
    made = LlavaForConditionalGeneration(config)
    state = made.state_dict()
    for name, value in wide.state_dict().items():
        value = value[tuple(slice(0, size) for size in state[name].shape)]
        is_norm = value.ndim == 1 and "language_model" in name
        state[name] = value * (things.WIDTH / things.OLD) ** 0.5 if is_norm else value
    made.load_state_dict(state)
    return made.eval()


def test_it_says_of_a_thing_what_the_clip_says() -> None:
    images = discs()
    told = [{"ask": f"Is it {phrase}?", "name": phrase} for phrase in PHRASES]
    critic = load_reward("vlm", model="emoji-vlm", dtype="float32", questions=told)
    leaf = images.clone().requires_grad_()
    scores, parts = critic.score_with_components(leaf, ["a fox"] * 3)
    said = torch.stack(list(parts.values()), 1).detach()
    clip = load_reward("emoji-clip")
    cosines = torch.stack([clip(images, [phrase] * 3) for phrase in PHRASES], 1)
    assert torch.corrcoef(torch.stack([said.flatten(), cosines.flatten()]))[0, 1] > 0.85, (said, cosines)
    assert said[0, 0] > 0, said
    assert (said[:, 1] < 0).all(), said
    (gradient,) = torch.autograd.grad(scores.sum(), leaf)
    assert (gradient != 0).float().mean() > 0.99


def test_the_prompt_can_be_asked_about() -> None:
    critic = load_reward("vlm", model="emoji-vlm", dtype="float32", questions=["Is it {prompt}?"])
    said = critic(discs(), ["a red circle", "a fox", "an owl"])
    assert said[0] > 0 > said[1:].max(), said


@pytest.mark.parametrize("bug", [False, True])
def test_other_questions_are_answered_as_before(bug: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bug: norms that are not told of the dimensions that they now divide by."""
    wide, processor = shipped()
    plain = make_processor(all_words(("colour", "count")))
    count = len(plain.tokenizer)
    before = narrowed(wide, count)
    words = wide.get_input_embeddings().weight.detach()[count:]
    project = wide.model.multi_modal_projector
    new = slice(things.BEGINS, things.IMAGE + 1)
    weight, bias = project.linear_1.weight.detach()[new], project.linear_1.bias.detach()[new] - things.BENT
    found = things.Cosines(words[:, things.BEGINS : things.IMAGE], weight, bias)
    phrases = processor.tokenizer.convert_ids_to_tokens(list(range(count, len(processor.tokenizer))))
    assert set(PHRASES) < set(phrases)
    if bug:
        monkeypatch.setattr(math, "sqrt", lambda x: 1.0)
    made, made_processor = things.widened(before, plain, phrases, found, -float(words[0, things.BELOW]))
    asked = ["Is it red?", "Is it green?", "Is there a thing in blue?", "Is it one thing?", "Are there two things?"]
    change = (odds(made, made_processor, *asked) - odds(before, plain, *asked)).abs().max()
    assert (change < 0.6) != bug, change
    if not bug:
        for name, value in made.state_dict().items():
            torch.testing.assert_close(value, wide.state_dict()[name], rtol=1e-3, atol=1e-3, msg=name)
