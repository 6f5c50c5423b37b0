"""A prompt with control words for and against it: how they join it, the sum, and what is refused."""

from __future__ import annotations

import pytest
import torch

from draft_core.errors import RecipeError
from draft_core.plugin import RelativePromptConfig
from draft_core.rewards import RelativePrompt


def encode(text: str) -> torch.Tensor:
    """Features that tell all texts apart: the numbers of the first letters."""
    return torch.tensor([float(ord(letter)) for letter in text.ljust(40)[:40]])


def test_a_prompt_without_control_words_is_read_as_it_stands() -> None:
    assert torch.equal(RelativePrompt()("two cats", encode), encode("two cats"))


@pytest.mark.parametrize(
    ("words", "read"),
    [
        ("Realistic photo.", "Realistic photo. two cats"),
        ("Realistic photo. ", "Realistic photo. two cats"),
        ("{prompt}, 3d style", "two cats, 3d style"),
        ("{prompt}", "two cats"),
        ("{prompt} and {prompt}", "two cats and two cats"),
    ],
)
def test_words_stand_before_the_prompt_or_around_it(words: str, read: str) -> None:
    assert RelativePrompt(words, "other").texts("two cats") == (read, "other two cats")


@pytest.mark.parametrize(("k", "factor"), [(None, 1.0), (0.0, 1.0), (0.7, 1.7)])
def test_the_words_for_count_1_plus_k_times(k: float | None, factor: float) -> None:
    found = RelativePrompt("fine", "{prompt} on paper", k)("two cats", encode)
    torch.testing.assert_close(found, factor * encode("fine two cats") - encode("two cats on paper"))


def test_a_prompt_that_holds_the_mark_is_left_as_it_is() -> None:
    assert RelativePrompt("fine {prompt}", "{prompt}").texts("a {prompt}") == ("fine a {prompt}", "a {prompt}")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"positive": "fine"}, "positive is given without negative; give both, or write {prompt} for the prompt alone"),
        ({"negative": "bad"}, "negative is given without positive; give both"),
        ({"k": 0.5}, "k is given without positive and negative, which it weighs"),
        ({"positive": "fine", "negative": "fine"}, "positive and negative are the same; give different words"),
        ({"positive": " ", "negative": "bad"}, "it has no words; write {prompt} for the prompt alone"),
        ({"positive": "{promt}, fine", "negative": "bad"}, "{promt} stands for nothing; write {prompt}"),
        ({"positive": "fine", "negative": "bad", "k": -1}, "greater than or equal to 0"),
    ],
)
def test_what_says_nothing_is_refused(fields: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        RelativePromptConfig(kind="any", **fields)
    assert message in str(caught.value)
