"""The comparison of a reward with its reference: planted bugs are found, and what could not be found is refused."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import PIL
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from draft_core.cli import app as cli
from draft_core.cli import rewards as cli_rewards
from draft_core.errors import DraftError, PluginError, RewardError
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.rewards.images import to_pil
from draft_core.testing import Subject
from draft_core.testing.reference import (
    HARD_PROMPTS,
    SIZES,
    Comparison,
    Row,
    compare_with_reference,
    library_versions,
    markdown,
    seeded_images,
)
from tests.support import resized
from tests.support.resized import ResizedConfig, ResizedPromptConfig
from tests.support.tiny import REDNESS


def subject(config: ResizedConfig | None = None, **more: Any) -> Subject:
    config = config or ResizedConfig()
    return Subject(resized.spec(type(config), **more), config)


def images(*sizes: tuple[int, int]) -> list[torch.Tensor]:
    return [seeded_images(subject(), 1, height, width) for height, width in sizes]


def test_a_sound_port_is_as_near_as_it_says() -> None:
    comparison = compare_with_reference(subject(native_size=16))
    assert [row.images for row in comparison.rows] == [f"{h} x {w}" for h, w in ((16, 16), *SIZES)]
    assert comparison.holds
    assert 0 < comparison.worst < 1e-4


def test_a_reference_that_is_the_reward_itself_differs_by_nothing() -> None:
    comparison = compare_with_reference(subject(reference="tests.support.resized:itself"))
    assert comparison.worst == 0
    assert all(row.std > 0 for row in comparison.rows)


def test_a_wrong_resize_is_found_at_every_size_but_the_native_one() -> None:
    comparison = compare_with_reference(subject(ResizedConfig(filter="bilinear"), native_size=16))
    native, *others = comparison.rows
    assert native.max_error < 1e-4, "where no resize happens, a wrong one cannot be seen"
    assert all(row.max_error > comparison.tolerance for row in others)
    assert not comparison.holds


def test_a_difference_is_counted_in_standard_deviations_between_the_images() -> None:
    """Whatever the unit of the score."""
    one, thousand = (
        compare_with_reference(subject(ResizedConfig(filter="bilinear", scale=scale))) for scale in (1.0, 1000.0)
    )
    for row, other in zip(one.rows, thousand.rows, strict=True):
        assert row.max_error == pytest.approx(other.max_error, rel=1e-3)
        assert row.mean_error < row.max_error
        assert row.std * 1000 == pytest.approx(other.std, rel=1e-3)
    height, width = SIZES[0]
    images = seeded_images(subject(), 6, height, width)
    theirs = resized.reference(None, ResizedConfig())([to_pil(image) for image in images], [""] * 6)  # type: ignore[arg-type]
    ours = subject(ResizedConfig(filter="bilinear")).score(images, ("",) * 6)
    assert one.rows[0].max_error == pytest.approx(float((ours - theirs).abs().max() / theirs.std()), rel=1e-4)


def test_prompts_get_a_row_if_they_are_read() -> None:
    comparison = compare_with_reference(subject(ResizedPromptConfig()), sizes=[(40, 30)])
    assert [row.images for row in comparison.rows] == ["40 x 30", "hard prompts"]
    assert comparison.rows[1].count == len(HARD_PROMPTS)
    assert comparison.holds


def test_a_prompt_that_is_read_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    forward = resized.Resized.forward
    monkeypatch.setattr(
        resized.Resized, "forward", lambda self, images, prompts: forward(self, images, [p.strip() for p in prompts])
    )
    size, prompts = compare_with_reference(subject(ResizedPromptConfig()), sizes=[(40, 30)]).rows
    assert size.max_error < 1e-3 < prompts.max_error


def test_further_images_may_have_any_size() -> None:
    comparison = compare_with_reference(subject(), sizes=[], images=images((30, 40), (50, 20), (33, 33)))
    assert [row.images for row in comparison.rows] == ["3 files"]
    assert comparison.holds
    with pytest.raises(DraftError, match="one image has no deviation between images; give two or more"):
        compare_with_reference(subject(), images=images((30, 40)))


def test_scores_that_are_all_alike_prove_nothing() -> None:
    with pytest.raises(RewardError, match=r"resized', 224 x 224: its reference scores all 6 alike \(0.25, stand"):
        compare_with_reference(subject(reference="tests.support.resized:flat"))
    with pytest.raises(RewardError, match="alike"):
        compare_with_reference(subject(), sizes=[], images=images((30, 40)) * 2)


def test_scores_that_are_not_finite_are_named() -> None:
    with pytest.raises(RewardError, match=r"224 x 224: it scores \[nan, "):
        compare_with_reference(
            Subject(resized.spec(), ResizedConfig(), reward=lambda images, prompts: images.mean((1, 2, 3)) * math.nan)
        )


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        (None, "reward 'resized': it names no reference to be compared with"),
        ("tests.support.resized:nothing", "module tests.support.resized has no 'nothing'"),
        ("no_such_library:reference", "cannot import no_such_library"),
    ],
)
def test_a_reference_that_is_not_there_is_named(reference: str | None, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        compare_with_reference(subject(reference=reference, tolerance=reference and 1e-3))


def test_a_reference_that_gives_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resized, "reference", lambda reward, config: lambda images, prompts: [0.0] * len(images))
    with pytest.raises(PluginError, match=r"its reference gave list, not scores of shape \(6,\)"):
        compare_with_reference(subject())


def test_the_table_in_markdown() -> None:
    one = Comparison("a", 0.002, (Row("9 x 9", 6, 1e-3, 5e-4, 1.0), Row("8 x 9", 6, 2e-3, 1e-3, 1.0)), {"torch": "2"})
    other = Comparison("a", 0.002, (Row("8 x 9", 6, 0.5, 0.25, 1.0),))
    assert markdown({"left": one, "right": other}).splitlines() == [
        "| images | left: max | left: mean | right: max | right: mean |",
        "| --- | --- | --- | --- | --- |",
        "| 9 x 9 | 1.0e-03 | 5.0e-04 |  |  |",
        "| 8 x 9 | 2.0e-03 | 1.0e-03 | 5.0e-01 | 2.5e-01 |",
        "",
        "Tolerance: 0.002. Measured with torch 2.",
    ]
    assert markdown({"": one}).splitlines()[0] == "| images | max | mean |"
    assert one.holds
    assert not other.holds


def test_versions_are_those_of_what_the_plugin_requires() -> None:
    found = library_versions("draft-core")
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert {"draft-core", "pillow", "transformers", "numpy"} <= found.keys()
    assert "pytest" not in found, "an extra is not required"
    assert "torch" in library_versions("a-distribution-that-is-not-installed")


# The command


@pytest.fixture
def draft(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Runs `draft` with two rewards, one of which names its reference; gives the exit code and what was printed."""
    distribution = Distribution("resized-plugin", "1.2")
    specs = (resized.spec(small={"scale": 3.0}), REDNESS)
    catalog = Catalog(rewards={spec.kind: Entry(spec, distribution) for spec in specs})
    for module in (cli, cli_rewards):
        monkeypatch.setattr(module, "load_catalog", lambda: catalog)
    monkeypatch.setattr(cli.out, "width", 200)
    monkeypatch.chdir(tmp_path)
    for place, image in enumerate(images((30, 40), (50, 20))):
        to_pil(image[0]).save(tmp_path / f"{place}.png")

    def run(words: str) -> tuple[int, str]:
        result = CliRunner().invoke(cli.app, words.split())
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result.exit_code, result.output

    return run


def test_the_command_prints_a_table_and_the_verdict(draft: Any) -> None:
    code, text = draft("rewards compare resized --image 0.png --image 1.png")
    assert code == 0
    for part in (
        "300 x 401",
        "2 files",
        "1 standard deviation (level)",
        f"torch {torch.__version__.partition('+')[0]}",
    ):
        assert part in text
    assert "resized: within the tolerance: " in text
    assert "0.001 allowed" in text


def test_the_command_exits_with_1_if_the_port_is_worse_than_it_says(draft: Any) -> None:
    code, text = draft("rewards compare resized --set filter=bilinear")
    assert code == 1
    assert "resized: outside the tolerance: " in text


def test_the_command_in_json_and_in_markdown(draft: Any) -> None:
    code, text = draft("rewards compare resized --json --small --set filter=bilinear")
    found = json.loads(text)
    assert code == 1
    assert (found["kind"], found["tolerance"], found["holds"]) == ("resized", 1e-3, False)
    assert found["worst"] == max(row["max_error"] for row in found["rows"])
    _, plain = draft("rewards compare resized --json --set filter=bilinear")
    ratios = [one["std"] / other["std"] for one, other in zip(found["rows"], json.loads(plain)["rows"], strict=True)]
    assert ratios == pytest.approx([3.0] * len(SIZES), rel=1e-3), "--small takes the fields of the spec"
    code, text = draft("rewards compare resized --markdown")
    assert code == 0
    assert text.splitlines()[:2] == ["| images | max | mean |", "| --- | --- | --- |"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (
            "redness",
            "reward 'redness': it names no reference to be compared with; ask its author for one; the spec of a port",
        ),
        ("resize", "unknown reward 'resize'; did you mean 'resized'?"),
        ("resized --image 0.png", "--image: one image has no deviation between images; give two or more."),
        ("resized --image 0.png --image none.png", "none.png: no such file; check the path."),
        ("resized --image 0.png --image 0.png", "its reference scores all 2 alike"),
        ("resized --set filter=cubic", "filter"),
        ("resized --json --markdown", "--json and --markdown contradict each other; give one of them."),
    ],
)
def test_a_mistake_ends_in_one_sentence_and_exit_code_2(draft: Any, words: str, sentence: str) -> None:
    code, text = draft(f"rewards compare {words}")
    assert code == 2
    assert "Traceback" not in text
    assert sentence in text


def test_show_tells_whether_there_is_a_reference(draft: Any) -> None:
    assert "reference: within 0.001 standard deviations between images" in draft("rewards show resized")[1]
    assert "reference: none named" in draft("rewards show redness")[1]


def fails(images: Any, prompts: Any) -> Any:
    return images[99]


@pytest.mark.parametrize(
    ("side", "sentence"),
    [
        ("reward", "reward 'resized': it raised IndexError: "),
        ("reference", "reward 'resized', 8 x 8: its reference raised IndexError: "),
        ("making the reference", "reward 'resized': its reference raised TypeError: "),
    ],
)
def test_a_side_that_raises_is_named_with_its_line(side: str, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    makers = {"reference": lambda reward, config: fails, "making the reference": lambda: None}
    monkeypatch.setattr(resized, "made", makers.get(side, lambda reward, config: None), raising=False)
    one = subject(reference="tests.support.resized:made")
    if side == "reward":
        one.reward = fails
    with pytest.raises(RewardError) as caught:
        compare_with_reference(one, sizes=[(8, 8)])
    assert str(caught.value).startswith(sentence)
    assert f"({__file__}:" in str(caught.value) or side == "making the reference"


@pytest.mark.parametrize(
    ("off", "pillow", "expected"),
    [
        ({"97 x 64"}, "13.0.0", True),
        ({"97 x 64", "513 x 300"}, "13.1.0", True),
        ({"97 x 64"}, "12.2.0", False),
        ({"97 x 64", "300 x 401"}, "13.0.0", False),
        ({"97 x 64", "hard prompts"}, "13.0.0", False),
        (set[str](), "13.0.0", False),
    ],
)
def test_tall_images_alone_point_to_the_order_of_pillow(off: set[str], pillow: str, expected: bool) -> None:
    names = ("224 x 224", "300 x 401", "97 x 64", "513 x 300", "hard prompts")
    rows = tuple(Row(name, 6, 0.1 if name in off else 0.0, 0.0, 1.0) for name in names)
    assert Comparison("mine", 0.002, rows, {"pillow": pillow}).another_order is expected


def test_a_reference_that_resizes_in_one_call_is_told_of_the_order(draft: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """At 32 pixels Pillow 13 takes the columns of 97 x 64 first; with rows first, in two calls, all is within."""
    if int(PIL.__version__.partition(".")[0]) < 13:
        pytest.skip("this Pillow resizes rows first")
    monkeypatch.setattr(resized, "SIDE", 32)
    code, text = draft("rewards compare resized")
    assert code == 1
    assert "only tall images differ: Pillow 13 and later may resize columns before rows" in text
    whole = Image.Image.resize

    def in_two(image: Image.Image, size: tuple[int, int], *how: Any) -> Image.Image:
        return whole(whole(image, (size[0], image.height), *how), size, *how)

    monkeypatch.setattr(Image.Image, "resize", in_two)
    code, text = draft("rewards compare resized")
    assert code == 0, text
    assert "only tall images" not in text
