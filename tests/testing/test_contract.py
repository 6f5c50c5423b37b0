"""The contract kit: a sound reward passes every check, and for each check there is a planted bug that it catches."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from draft_core.cli import app as cli
from draft_core.cli import rewards as cli_rewards
from draft_core.errors import PluginError
from draft_core.plugin import Field
from draft_core.registry.specs import RewardSpec
from draft_core.rewards import FrozenModule, checked_images, checked_videos
from draft_core.testing import CHECKS, RewardContract, Subject, Violation
from tests.support import tiny
from tests.support.tiny import REDNESS, Redness, RednessConfig

Score = Callable[[torch.Tensor, list[str]], torch.Tensor]


def sound(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Smooth, and not linear."""
    return images.float().square().mean(dim=(1, 2, 3)) + images.float().mean(dim=(2, 3)).prod(dim=1)


class Planted(FrozenModule):
    """A reward made of a function."""

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        checked_images(images, prompts, where="planted")
        return self.score(images, prompts)


class Tolerant(FrozenModule):
    """It scores whatever it is given."""

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return sound(images, prompts)


class Melting(torch.nn.Module):
    """Live dropout as soon as a parent trains."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = torch.nn.Dropout(0.5)
        self.eval()

    def forward(self, images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return sound(self.dropout(images), prompts)


class Trainable(Planted):
    """Weights left trainable: `score.grad_fn is not None` stays true even for detached images."""

    def __init__(self) -> None:
        super().__init__(lambda images, prompts: sound(images, prompts) * self.factor)
        self.factor = torch.nn.Parameter(torch.ones(()))


class Rooted(Planted):
    """A constant that is no buffer, and stays on the CPU when the reward moves."""

    def __init__(self) -> None:
        super().__init__(lambda images, prompts: sound(images * self.factor, prompts))
        self.factor = torch.ones(3, 1, 1)


class Forgetful(RednessConfig):
    """A field that its JSON does not hold."""

    secret: float = Field(1.0, exclude=True)


def torch_complains(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.mean(dim=(1, 2, 3)) @ torch.ones(7)


def in_place(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    scores = sound(images, prompts)
    if not images.requires_grad:
        images.clamp_(0.3, 0.5)
    return scores


def only_first(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    weights = torch.zeros(len(images))
    weights[0] = 1.0
    detached = sound(images.detach(), prompts)
    return weights * sound(images, prompts) + (1 - weights) * detached


def wrong_slope(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    scores = sound(images, prompts)
    return 2 * scores - scores.detach()


def wavy(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Its slope is another one after the smallest step of a finite difference."""
    return (1000 * images.float().mean(dim=(1, 2, 3))).sin()


def wavy_with_wrong_slope(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    scores = wavy(images, prompts)
    return 1.3 * scores - 0.3 * scores.detach()


def batch_statistics(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    scores = sound(images, prompts)
    return scores - scores.mean() + scores[:1]


def square_only(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return sound(images @ images, prompts)


def noisy(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return sound(images, prompts) * (1 + 1e-3 * torch.randn(len(images)))


def rooted(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.float().sqrt().mean(dim=(1, 2, 3))


def as_given(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return images.square().mean(dim=(1, 2, 3))


def reads_prompts(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return sound(images, prompts) + torch.tensor([float(len(prompt)) for prompt in prompts])


def subject(reward: Any, spec: RewardSpec = REDNESS, **more: Any) -> Subject:
    return Subject(spec, more.pop("config", RednessConfig()), reward=reward, **more)


class OfVideos(FrozenModule):
    """A reward of videos made of a function."""

    takes = "video"

    def __init__(self, score: Score) -> None:
        super().__init__()
        self.score = score

    def forward(self, videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.score(checked_videos(videos, prompts, where="planted"), prompts)


class TolerantOfImages(OfVideos):
    """It scores images too, as if they were videos."""

    def forward(self, videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return self.score(videos if videos.ndim == 5 else videos[:, None].expand(-1, 2, -1, -1, -1), prompts)


def steady(videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    """Every frame counts, and so does its place."""
    return (videos.diff(dim=1).square().flatten(1).mean(1) + videos.square().flatten(1).mean(1)) / 2


def first_and_last(videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return (videos[:, -1] - videos[:, 0]).square().flatten(1).mean(1)


def of_one_frame(videos: torch.Tensor, prompts: list[str]) -> torch.Tensor:
    return sound(videos[:, 0], prompts)


VIDEO = RewardSpec(**{**vars(REDNESS), "takes": "video"})
BUGS_OF_VIDEOS: dict[str, tuple[str, Any]] = {
    "one_score_per_image": ("of shape", OfVideos(lambda videos, prompts: sound(videos.flatten(0, 1), prompts))),
    "no_leak_between_images": (
        "in a batch it scores",
        OfVideos(lambda videos, prompts: steady(videos, prompts) - steady(videos, prompts).mean()),
    ),
    "gradient_is_right": (
        "a finite difference",
        OfVideos(lambda videos, prompts: 2 * steady(videos, prompts) - steady(videos, prompts).detach()),
    ),
    "takes_as_declared": ("it scores images", TolerantOfImages(steady)),
    "frames_count": ("the same as its first frame repeated", OfVideos(of_one_frame)),
}


@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_reward_of_videos_keeps_every_promise(name: str) -> None:
    CHECKS[name](subject(OfVideos(steady), VIDEO))


@pytest.mark.parametrize("name", BUGS_OF_VIDEOS)
def test_checks_catch_bugs_of_rewards_of_videos(name: str) -> None:
    said, reward = BUGS_OF_VIDEOS[name]
    with pytest.raises(Violation, match=said):
        CHECKS[name](subject(reward, VIDEO))


def test_frames_without_a_gradient_are_caught() -> None:
    with pytest.raises(Violation, match=r"the gradient of video and frame \[\(0, 1\), \(0, 2\), \(0, 3\)\] is zero"):
        CHECKS["frames_count"](subject(OfVideos(first_and_last), VIDEO))


def test_a_spec_and_a_reward_agree_on_what_it_takes() -> None:
    with pytest.raises(Violation, match="its spec says that it takes image, its attribute video"):
        CHECKS["takes_as_declared"](subject(OfVideos(steady)))
    with pytest.raises(PluginError, match="it has a reference, and those are called with single images"):
        RewardSpec(**{**vars(VIDEO), "reference": "a:b", "tolerance": 0.1})


DRAWN: dict[str, Any] = {
    "one_score_per_image": Planted(lambda images, prompts: sound(images, prompts)[:, None]),
    "inputs_are_left_alone": Planted(in_place),
    "deterministic": Planted(noisy),
    "no_leak_between_images": Planted(batch_statistics),
    "frozen": Melting(),
    "tensors_move_along": Rooted(),
    "any_shape": Planted(square_only),
    "overshoot_stays_finite": Planted(rooted),
    "other_ranges_are_refused": Tolerant(),
    "every_image_has_a_gradient": Planted(only_first),
    "gradient_is_right": Planted(wrong_slope),
    "half_precision_inputs": Planted(as_given),
    "prompts_count_as_declared": Planted(reads_prompts),
}


@pytest.mark.parametrize("reward", [Planted(sound), Redness(RednessConfig())], ids=["smooth", "linear"])
@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_reward_keeps_every_promise(name: str, reward: Any) -> None:
    CHECKS[name](subject(reward))


@pytest.mark.parametrize("name", DRAWN)
def test_each_check_catches_its_planted_bug(name: str) -> None:
    with pytest.raises((Violation, RuntimeError)):
        CHECKS[name](subject(DRAWN[name]))


def test_a_strongly_curved_score_is_judged_along_the_way() -> None:
    CHECKS["gradient_is_right"](subject(Planted(wavy)))
    with pytest.raises(Violation, match="a finite difference along its gradient is off by"):
        CHECKS["gradient_is_right"](subject(Planted(wavy_with_wrong_slope)))


def test_further_bugs_of_the_neighbours_are_caught() -> None:
    with pytest.raises(Violation, match="1 of its parameters are trainable, first factor"):
        CHECKS["frozen"](subject(Trainable()))
    with pytest.raises(Violation, match="its scores carry no gradient"):
        CHECKS["every_image_has_a_gradient"](subject(Planted(lambda images, prompts: sound(images.detach(), prompts))))
    with pytest.raises(Violation, match=r"returned torch\.float64"):
        CHECKS["one_score_per_image"](subject(Planted(lambda images, prompts: sound(images, prompts).double())))
    with pytest.raises(Violation, match="not finite"):
        CHECKS["one_score_per_image"](subject(Planted(lambda images, prompts: sound(images, prompts) / 0)))
    downwards = RewardSpec(**{**vars(REDNESS), "surrogate_gradient": True})
    flipped = Planted(lambda images, prompts: 2 * sound(images, prompts).detach() - sound(images, prompts))
    with pytest.raises(Violation, match="a step along its surrogate gradient changes the scores by"):
        CHECKS["gradient_is_right"](subject(flipped, downwards))


def test_capabilities_must_be_true() -> None:
    measure = RewardSpec(**{**vars(REDNESS), "differentiable": False})
    with pytest.raises(Violation, match="only measures, but its scores carry a gradient"):
        CHECKS["every_image_has_a_gradient"](subject(Planted(sound), measure))
    prompted = RewardSpec(**{**vars(REDNESS), "needs_prompt": True})
    with pytest.raises(Violation, match="needs a prompt, but other prompts give the same scores"):
        CHECKS["prompts_count_as_declared"](subject(Planted(sound), prompted))
    counted: list[int] = []

    def drifting(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        counted.append(1)
        return sound(images, prompts) + len(counted)

    for spec in (REDNESS, prompted):  # not: other prompts give other scores
        with pytest.raises(Violation, match="score otherwise at every call, so that nothing can be said of prompts"):
            CHECKS["prompts_count_as_declared"](subject(Planted(drifting), spec))


def test_a_reward_that_reads_only_some_prompts_is_checked_with_those() -> None:
    known = ("a fox", "an owl", "a tree")

    def picky(images: torch.Tensor, prompts: list[str]) -> torch.Tensor:
        return sound(images, prompts) + torch.tensor([float(known.index(prompt)) for prompt in prompts])

    fields = {**vars(REDNESS), "needs_prompt": True}
    spec = RewardSpec(**{**fields, "small_prompts": known})
    for check in CHECKS.values():
        check(subject(Planted(picky), spec))
    with pytest.raises(ValueError, match="not in tuple"):
        CHECKS["one_score_per_image"](subject(Planted(picky), RewardSpec(**fields)))
    with pytest.raises(PluginError, match="its small_prompts are fewer than three"):
        RewardSpec(**{**fields, "small_prompts": ("a fox", "a fox", "an owl")})


WISHES = tiny.spec(
    "redness",
    RednessConfig,
    "tests.support.tiny:Redness",
    columns={"reference": "image", "level": "number", "wish": "text"},
    small_columns={"wish": ("red", "blue", "green")},
)


class Reading(FrozenModule):
    """Its score depends on all columns; `spoil` is what a bug does to them."""

    def __init__(self, spoil: Callable[[dict[str, list[Any]]], dict[str, list[Any]]] = dict) -> None:
        super().__init__()
        self.spoil = spoil

    def forward(self, images: torch.Tensor, prompts: list[str], columns: dict[str, list[Any]]) -> torch.Tensor:
        checked_images(images, prompts, where="reading")
        read = self.spoil(columns)
        levels = torch.tensor([level + len(wish) for level, wish in zip(read["level"], read["wish"], strict=True)])
        wanted = torch.stack([reference.float().mean() for reference in read["reference"]])
        return sound(images, prompts) * (1 + wanted) + levels.to(wanted)


NOTHING_READ = {"reference": torch.zeros(3, 4, 4), "level": 0.0, "wish": ""}


def without(name: str) -> Callable[[dict[str, list[Any]]], dict[str, list[Any]]]:
    return lambda columns: {**columns, name: [NOTHING_READ[name]] * len(columns[name])}


def first_for_all(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**columns, "level": columns["level"][:1] * len(columns["level"])}


def darkened(columns: dict[str, list[Any]]) -> dict[str, list[Any]]:
    columns["reference"][0].mul_(0.5)
    return columns


@pytest.mark.parametrize("name", CHECKS)
def test_a_sound_reward_that_reads_columns_keeps_every_promise(name: str) -> None:
    CHECKS[name](subject(Reading(), WISHES))


@pytest.mark.parametrize("column", WISHES.columns)
def test_a_column_that_is_declared_and_not_read_is_caught(column: str) -> None:
    with pytest.raises(Violation, match=f"it reads column '{column}', but other values there give the same scores"):
        CHECKS["columns_count_as_declared"](subject(Reading(without(column)), WISHES))


def test_bugs_with_columns_are_caught() -> None:
    with pytest.raises(Violation, match="it changed what it was given as column 'reference'"):
        CHECKS["inputs_are_left_alone"](subject(Reading(darkened), WISHES))
    with pytest.raises(Violation, match="in a batch it scores"):  # every image has the first one's wish
        CHECKS["no_leak_between_images"](subject(Reading(first_for_all), WISHES))


def test_a_spec_gives_its_checks_texts_to_read() -> None:
    fields = {**vars(WISHES), "small_columns": {}}
    with pytest.raises(PluginError, match="its small_columns have fewer than three values of 'wish'; give three"):
        RewardSpec(**fields)
    with pytest.raises(PluginError, match="its small_columns name 'other', which it does not read"):
        RewardSpec(**{**vars(WISHES), "small_columns": {**WISHES.small_columns, "other": ("a", "b", "c")}})


def test_a_config_that_does_not_survive_json_is_caught() -> None:
    with pytest.raises(Violation, match="comes back from JSON as"):
        CHECKS["config_survives_json"](subject(Planted(sound), config=Forgetful(secret=2.0)))


def test_a_naming_module_that_imports_torch_is_caught() -> None:
    with pytest.raises(Violation, match=r"importing draft_core\.sampling\.sampler imports torch"):
        CHECKS["naming_imports_no_torch"](subject(Planted(sound), naming_module="draft_core.sampling.sampler"))


def test_every_check_has_a_planted_bug() -> None:
    others = {
        "columns_count_as_declared",
        "config_survives_json",
        "naming_imports_no_torch",
        "remembers_nothing",
        "takes_as_declared",
        "frames_count",
    }
    assert set(CHECKS) - set(DRAWN) == others, "which have tests above"


def test_the_class_runs_every_check_and_a_skip_needs_a_reason() -> None:
    assert {name for name in dir(RewardContract) if name.startswith("test_")} == {f"test_{name}" for name in CHECKS}
    for skip in ({"frozen": " "}, {"no_such_check": "because"}):
        with pytest.raises(TypeError, match="is no check, or has no reason"):
            type("TestMine", (RewardContract,), {"kind": "redness", "skip": skip})


def test_the_command_names_what_is_broken(catalog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_rewards, "load_catalog", lambda: catalog)
    monkeypatch.setattr(tiny, "Redness", lambda config: Planted(batch_statistics))
    result = CliRunner().invoke(cli.app, ["rewards", "check", "redness"])
    assert result.exit_code == 1
    assert "broken no_leak_between_images: in a batch it scores" in result.output
    assert "kept   one_score_per_image" in result.output
    monkeypatch.setattr(tiny, "Redness", lambda config: Planted(sound))
    result = CliRunner().invoke(cli.app, ["rewards", "check", "redness"])
    assert result.exit_code == 0
    assert f"redness: {len(CHECKS)} of {len(CHECKS)} checks passed" in result.output


def test_the_command_says_one_cause_once_with_its_file_and_line(catalog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli_rewards, "load_catalog", lambda: catalog)
    monkeypatch.setattr(tiny, "Redness", lambda config: Planted(torch_complains))
    result = CliRunner().invoke(cli.app, ["rewards", "check", "redness"])
    assert result.exit_code == 1
    line = torch_complains.__code__.co_firstlineno + 1
    first, *others = [row for row in result.output.splitlines() if row.startswith("broken")]
    assert first.startswith("broken one_score_per_image: RuntimeError: ")
    assert first.endswith(f"({__file__}:{line})"), "the reward's own line, not torch's"
    assert len(others) > 5
    assert all(row.endswith(": for the same cause as one_score_per_image") for row in others)


def test_the_command_names_a_reward_that_cannot_be_built(catalog: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(config: Any) -> Any:
        raise KeyError("weights")

    monkeypatch.setattr(cli_rewards, "load_catalog", lambda: catalog)
    monkeypatch.setattr(tiny, "Redness", fails)
    result = CliRunner().invoke(cli.app, ["rewards", "check", "redness"])
    assert result.exit_code == 2
    text = result.output.replace("\n", "")
    assert "error: reward 'redness' of tiny-plugin 1.2: it cannot be built (KeyError: 'weights') (" in text
    with pytest.raises(PluginError, match=r"reward 'redness': it cannot be built \(KeyError: 'weights'\)"):
        Subject(REDNESS, RednessConfig())


@pytest.mark.parametrize("shape", ["scalar", "column", "list"])
def test_no_check_stumbles_over_scores_of_another_shape(shape: str) -> None:
    """Each check that scores says what it was given."""
    made = {"scalar": lambda s: s.mean(), "column": lambda s: s[:, None], "list": lambda s: s.tolist()}[shape]
    wrong = subject(Planted(lambda images, prompts: made(sound(images, prompts))))
    for name in ("one_score_per_image", "deterministic", "no_leak_between_images", "any_shape", "gradient_is_right"):
        with pytest.raises(Violation, match=r"it returned (scores of shape|list, not a tensor)"):
            CHECKS[name](wrong)
