"""The catalog: found by entry points, one by one, so that no plugin can harm another."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, Literal

import pytest

from draft_core import __version__
from draft_core.errors import PluginError, RecipeError
from draft_core.plugin import DirectConfig, Field, MethodConfig, MethodSpec, StepPlan
from draft_core.recipe.load import dump_recipe, load_recipe
from draft_core.registry.catalog import RESTRICTION, Distribution, Entry, load_catalog, read_catalog
from draft_core.registry.hooks import API_VERSION, ENTRY_POINT_GROUP, hookimpl
from draft_core.registry.specs import PretrainedSpec, RewardSpec, load_named
from tests.support.tiny import BRIGHTNESS, GOOD, REDNESS, tiny_catalog


class _FakeDistribution:
    def __init__(self, name: str) -> None:
        self.name, self.version = name, "1.0"


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch) -> Callable[..., importlib.metadata.EntryPoint]:
    """Makes the entry point of a module that holds these functions; None makes one that does not import."""

    def make(name: str, hooks: dict[str, Any] | None) -> importlib.metadata.EntryPoint:
        if hooks is not None:
            module = types.ModuleType(f"fake_{name}")
            vars(module).update({"DRAFT_API_VERSION": API_VERSION, **hooks})
            monkeypatch.setitem(sys.modules, module.__name__, module)
        found = importlib.metadata.EntryPoint(name, f"fake_{name}", ENTRY_POINT_GROUP)
        vars(found)["dist"] = _FakeDistribution(f"draft-{name}")
        return found

    return make


def offering(*specs: Any) -> dict[str, Any]:
    @hookimpl
    def draft_register_rewards() -> Any:
        return specs

    return {"draft_register_rewards": draft_register_rewards}


def test_a_plugin_is_found_with_its_distribution(point: Any) -> None:
    catalog = read_catalog([point("good", offering(REDNESS))])
    assert catalog.reward("redness").spec is REDNESS
    assert str(catalog.reward("redness").distribution) == "draft-good 1.0"
    assert catalog.versions() == {"draft-core": __version__, "draft-good": "1.0"}


def test_broken_plugins_are_recorded_and_the_others_work(point: Any) -> None:
    def raising() -> Any:
        raise ZeroDivisionError("at registration")

    @hookimpl
    def draft_register_reward() -> Any:
        return [REDNESS]

    catalog = read_catalog(
        [
            point("missing", None),
            point("raising", {"draft_register_rewards": hookimpl(raising, specname="draft_register_rewards")}),
            point("wrong", offering("redness")),
            point("misspelt", {"draft_register_reward": draft_register_reward}),
            point("good", offering(REDNESS)),
        ]
    )
    assert list(catalog.rewards) == ["redness"]
    reasons = {plugin.distribution.name: plugin.reason for plugin in catalog.broken}
    assert reasons["draft-missing"].startswith("ModuleNotFoundError: No module named 'fake_missing'")
    assert reasons["draft-raising"].startswith(f"ZeroDivisionError: at registration ({__file__}:")
    assert "a hook returned 'redness', which is not a RewardSpec" in reasons["draft-wrong"]
    assert "draft_register_reward" in reasons["draft-misspelt"]


def test_a_plugin_for_another_interface_is_refused_by_name(point: Any) -> None:
    catalog = read_catalog([point("new", {**offering(REDNESS), "DRAFT_API_VERSION": 99})])
    assert not catalog.rewards
    assert "written for version 99 of the plugin interface, this draft-core has 2" in catalog.broken[0].reason


def test_a_plugin_that_does_not_say_its_interface_is_told_what_to_add(point: Any) -> None:
    catalog = read_catalog([point("old", {**offering(REDNESS), "DRAFT_API_VERSION": None})])
    assert not catalog.rewards
    assert "add `DRAFT_API_VERSION = 2` to fake_old, or upgrade it" in catalog.broken[0].reason


def test_two_distributions_that_claim_one_kind_are_both_named(point: Any) -> None:
    catalog = read_catalog([point("one", offering(REDNESS, BRIGHTNESS)), point("two", offering(REDNESS))])
    assert list(catalog.rewards) == ["brightness"]
    with pytest.raises(
        PluginError, match=r"'redness' is claimed by draft-one 1\.0 and draft-two 1\.0; uninstall all but"
    ):
        catalog.reward("redness")


def test_a_distribution_that_spells_its_name_in_two_ways_is_one(point: Any) -> None:
    """An editable install beside a wheel's metadata, say."""
    one, other = point("good", offering(REDNESS)), point("good", offering(REDNESS))
    vars(other)["dist"] = _FakeDistribution("Draft_good")
    catalog = read_catalog([one, other])
    assert list(catalog.rewards) == ["redness"]
    assert not catalog.conflicts
    assert "draft-good" in catalog.versions()


@pytest.mark.parametrize("spelling", ["draft-good", "draft_good", " Draft.Good ", "draft--good,"])
def test_the_restriction_takes_every_spelling_that_pip_takes(
    point: Any, monkeypatch: pytest.MonkeyPatch, spelling: str
) -> None:
    points = [point("good", offering(REDNESS)), point("other", offering(BRIGHTNESS))]
    vars(points[0])["dist"] = _FakeDistribution("Draft_Good")
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    monkeypatch.setenv(RESTRICTION, spelling)
    assert list(load_catalog().rewards) == ["redness"]


@pytest.mark.parametrize("spelling", ["draft-reward-jpeg", "draft_reward_jpeg", "Draft.Reward.Jpeg"])
def test_what_a_run_was_made_with_is_compared_in_every_spelling(spelling: str, tmp_path: Path, catalog: Any) -> None:
    here = Entry(BRIGHTNESS, Distribution("draft-reward-jpeg", "1.0"))
    with_jpeg = replace(catalog, rewards={"brightness": here})
    recipe = {**GOOD, "versions": {spelling: "1.0", "no_such.thing": "2.0"}}
    with pytest.raises(PluginError, match=r"pip install no_such\.thing==2\.0\.$"):
        load_recipe(recipe, catalog=with_jpeg)


def test_an_entry_point_listed_twice_counts_once(point: Any) -> None:
    good = point("good", offering(REDNESS))
    assert list(read_catalog([good, good]).rewards) == ["redness"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "Red ness"}, "its kind is not lower-case words"),
        ({"config": dict}, "its config is not a subclass of RewardConfig"),
        ({"config": BRIGHTNESS.config}, "does not declare this kind"),
        ({"factory": "tiny.Redness"}, "'tiny.Redness' is not of the form 'module:callable'"),
        ({"reference": "tests.support.tiny:reference"}, "a reference without a tolerance"),
        ({"tolerance": 0.1}, "a reference without a tolerance"),
        ({"reference": "tiny.reference", "tolerance": 0.1}, "'tiny.reference' is not of the form 'module:callable'"),
        ({"reference": "tests.support.tiny:reference", "tolerance": 0.0}, "its tolerance 0.0 is not a positive number"),
        (
            {"reference": "tests.support.tiny:reference", "tolerance": float("nan")},
            "its tolerance nan is not a positive number",
        ),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        RewardSpec(**{**vars(REDNESS), **change})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:thing", "cannot import no_such_module"),
        ("tests.support.tiny:NoSuchThing", "module tests.support.tiny has no 'NoSuchThing'"),
    ],
)
def test_a_factory_that_is_not_there_is_named(reference: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_named(reference, where="reward 'x'")


def test_a_module_that_raises_when_a_reward_is_loaded_is_named_with_its_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "raising_reward.py").write_text("import json\n\nWEIGHTS = json.loads('{')\n")
    (tmp_path / "unreadable_reward.py").write_text("def broken(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(PluginError) as caught:
        load_named("raising_reward:Reward", where="reward 'x'")
    assert str(caught.value).startswith("reward 'x': importing raising_reward raised JSONDecodeError: ")
    assert str(caught.value).endswith(f"({tmp_path / 'raising_reward.py'}:3); tell its author.")
    with pytest.raises(PluginError, match=r"importing unreadable_reward raised SyntaxError: .*unreadable_reward\.py"):
        load_named("unreadable_reward:Reward", where="reward 'x'")


# Methods


class EveryOtherConfig(DirectConfig):
    """A method of somebody else's: every other step."""

    kind: Literal["every-other"] = "every-other"
    offset: int = Field(0, ge=0, le=1)

    def plan(self, steps: int, rng: Random) -> StepPlan:
        return StepPlan(steps, frozenset(range(self.offset, steps, 2)))


class BareConfig(MethodConfig):
    """A method that makes no plans."""

    kind: Literal["bare"] = "bare"


def methods(*specs: Any) -> dict[str, Any]:
    @hookimpl
    def draft_register_methods() -> Any:
        return specs

    return {"draft_register_methods": draft_register_methods}


EVERY_OTHER = MethodSpec(kind="every-other", summary="every other step", config=EveryOtherConfig)


def test_a_strangers_method_is_named_in_a_recipe_like_our_own(point: Any, tmp_path: Path) -> None:
    catalog = read_catalog([point("other", methods(EVERY_OTHER)), point("good", offering(REDNESS))])
    assert catalog.plugins[0].methods == ("every-other",)
    catalog = replace(catalog, pretrained=tiny_catalog(tmp_path).pretrained)
    recipe = load_recipe({**GOOD, "method": {"kind": "every-other", "offset": 1}}, catalog=catalog)
    assert recipe.method.plan(4, Random(0)).grad_steps == {1, 3}
    assert "offset: 1" in dump_recipe(recipe)
    with pytest.raises(RecipeError, match=r"method.ofset: unknown field 'ofset'; did you mean 'offset'\?"):
        load_recipe({**GOOD, "method": {"kind": "every-other", "ofset": 1}}, catalog=catalog)
    with pytest.raises(PluginError, match=r"unknown method 'every-othr'; did you mean 'every-other'\?"):
        load_recipe({**GOOD, "method": {"kind": "every-othr"}}, catalog=catalog)


def test_an_method_that_claims_one_of_our_names_is_a_conflict(point: Any) -> None:
    class Mine(DirectConfig):
        kind: Literal["draft-k"] = "draft-k"

    catalog = read_catalog([point("mine", methods(MethodSpec(kind="draft-k", summary="mine", config=Mine)))])
    assert "draft-k" not in catalog.methods
    assert [str(claimant) for claimant in catalog.conflicts["draft-k"]] == [
        f"draft-core {__version__}",
        "draft-mine 1.0",
    ]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MethodSpec(kind="Every", summary="s", config=EveryOtherConfig), "lower-case words"),
        (lambda: MethodSpec(kind="every", summary="s", config=EveryOtherConfig), "does not declare this kind"),
        (lambda: MethodSpec(kind="every", summary="s", config=int), "not a subclass of DirectConfig"),
        (lambda: MethodSpec(kind="bare", summary="s", config=BareConfig), "not a subclass of DirectConfig"),
        (lambda: MethodSpec(kind="bare", summary="s", config=BareConfig, learner="module"), "of the form 'module:call"),
    ],
)
def test_an_impossible_method_spec_is_refused(make: Any, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        make()


def test_a_model_that_rewards_ask_is_no_pipeline(point: Any) -> None:
    spec = PretrainedSpec(
        alias="seer", summary="it sees", folder=Path("seer"), license="MIT", task="image-text-to-text"
    )

    @hookimpl
    def draft_register_pretrained() -> Any:
        return [
            spec,
            replace(spec, alias="drawer", task="pipeline"),
            replace(spec, alias="finder", task="zero-shot-object-detection"),
        ]

    catalog = read_catalog([point("good", {"draft_register_pretrained": draft_register_pretrained})])
    assert list(catalog.critics) == ["seer"]
    assert list(catalog.detectors) == ["finder"]
    assert list(catalog.pretrained) == ["drawer"]
    assert "draft-good" in catalog.versions()
    assert catalog.plugins[0].pretrained == ("seer", "drawer", "finder")
    with pytest.raises(
        PluginError, match="its task is image-text-to-text, and it has a LoRA, prompts, call or repository"
    ):
        replace(spec, call={"num_inference_steps": 2})
