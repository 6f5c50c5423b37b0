"""Real words under the real reader, and what is refused."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from draft_reward_ocr import OcrPerPromptConfig
from draft_reward_ocr.reader import PACKAGE, Reader, steps_needed
from draft_reward_ocr.reward import edges
from draft_reward_ocr.texts import LETTERS, quoted
from PIL import Image, ImageDraw, ImageFont

from draft_core import load_reward
from draft_core.errors import DraftError, RecipeError, RewardError

WORDS = ("OPEN", "tea", "No. 7", "Stop")


def is_installed() -> bool:
    try:
        return importlib.metadata.version(PACKAGE) != ""
    except importlib.metadata.PackageNotFoundError:
        return False


real = pytest.mark.skipif(not is_installed(), reason=f"{PACKAGE} is missing: it has the real weights")


def drawn(word: str, width: int = 160, height: int = 64) -> torch.Tensor:
    """A word in Pillow's own font, black on white, (1, 3, H, W)."""
    image = Image.new("RGB", (width, height), "white")
    ImageDraw.Draw(image).text((16, 10), word, fill="black", font=ImageFont.load_default(size=40))
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)[None].float() / 255


@real
def test_the_word_that_is_there_is_the_likeliest() -> None:
    readers = {word: load_reward("ocr", text=word) for word in WORDS}
    for word in WORDS:
        scores = {text: float(reader(drawn(word), [""])) for text, reader in readers.items()}
        assert max(scores, key=scores.__getitem__) == word, scores
        assert scores[word] > -1, scores


@real
def test_steps_along_the_gradient_raise_the_text_and_lower_the_one_that_is_there() -> None:
    wanted, there = load_reward("ocr", text="OPEN"), load_reward("ocr", text="Stop")
    image = drawn("Stop")
    before, before_there = float(wanted(image, [""])), float(there(image, [""]))
    for _ in range(15):
        image.requires_grad_()
        (gradient,) = torch.autograd.grad(wanted(image, [""]).sum(), image)
        image = (image + 8 / 255 * gradient.sign()).clamp(0, 1).detach()
    image = (image * 255).round() / 255
    assert float(wanted(image, [""])) > before + 4
    assert float(there(image, [""])) < before_there - 0.1


@real
def test_a_box_reads_its_own_part_alone() -> None:
    both = torch.cat([drawn("OPEN"), drawn("Stop")], dim=2)
    for box, word in (([0, 0, 1, 0.5], "OPEN"), ([0, 0.5, 1, 1], "Stop")):
        boxed = load_reward("ocr", text=word, box=box)
        torch.testing.assert_close(boxed(both, [""]), load_reward("ocr", text=word)(drawn(word), [""]))


def test_a_width_that_is_too_small_is_refused_with_one_that_is_not() -> None:
    image = torch.rand(1, 3, 64, 64)
    with pytest.raises(
        RewardError, match=r"the text 'aaaaaaaaaa' takes 19 columns, and the reader sees 15; set width to 80"
    ):
        load_reward("ocr", text="a" * 10, weights="random")(image, [""])
    assert bool(load_reward("ocr", text="a" * 10, weights="random", width=80)(image, [""]).isfinite())
    assert steps_needed("ab") == 2


def test_the_letters_are_those_of_the_reader() -> None:
    assert len(LETTERS) == len(set(LETTERS)) == 96


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a sign", "prompt 'a sign' has no text in double quotes; write the one text"),
        ('a sign ""', "no text"),
        ('"one" and "two"', "2 texts"),
        ('a sign that says "Größe"', "the reader does not know 'ö' of 'Größe'"),
    ],
)
def test_prompts_without_a_text_are_refused_before_anything_loads(prompt: str, said: str) -> None:
    with pytest.raises(RewardError, match=said):
        OcrPerPromptConfig().check_prompts(['a sign "OPEN"', prompt])


def test_quotes_may_be_curly() -> None:
    assert quoted("a sign that says “It's OPEN”", where="") == "It's OPEN"


def test_weights_come_from_a_file_with_easyocrs_names(tmp_path: Path) -> None:
    torch.save({f"module.{name}": tensor for name, tensor in Reader().state_dict().items()}, tmp_path / "g2.pth")
    load_reward("ocr", text="a", weights=str(tmp_path / "g2.pth"))
    torch.save({"module.Prediction.weight": torch.zeros(2, 2)}, tmp_path / "g2.pth")
    with pytest.raises(DraftError, match="the weights are not those of this Reader"):
        load_reward("ocr", text="a", weights=str(tmp_path / "g2.pth"))


def test_a_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("draft_reward_ocr.reader.PACKAGE", "no-such-package")
    with pytest.raises(
        DraftError, match="the package no-such-package with the reader's weights is not installed; pip in"
    ):
        load_reward("ocr", text="a")


def test_a_box_has_always_a_pixel() -> None:
    assert edges((0, 0, 1, 1), 30, 40) == (0, 0, 40, 30)
    assert edges((0.999, 0.999, 1, 1), 30, 40) == (39, 29, 40, 30)


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"text": ""}, "text"),
        ({"text": "日"}, "the reader does not know '日'"),
        ({"box": [0.5, 0, 0.5, 1]}, "the left edge must be less than the right one"),
        ({"box": [0, 0, 1, 1.5]}, "box"),
        ({"width": 8}, "width"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields: dict[str, Any], said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        load_reward("ocr", **{"text": "OPEN", "weights": "random", **fields})
