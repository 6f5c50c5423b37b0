"""The catalog: found by entry points, one by one, so that no plugin can harm another."""

from __future__ import annotations

import importlib.metadata
import sys
import types
from collections.abc import Callable
from typing import Any

import pytest
from tiny import BRIGHTNESS, REDNESS

from draft_core import __version__
from draft_core.catalog import read_catalog
from draft_core.errors import PluginError
from draft_core.hookspecs import ENTRY_POINT_GROUP, hookimpl
from draft_core.specs import RewardSpec, load_named


class _FakeDistribution:
    def __init__(self, name: str) -> None:
        self.name, self.version = name, "1.0"


@pytest.fixture
def point(monkeypatch: pytest.MonkeyPatch) -> Callable[..., importlib.metadata.EntryPoint]:
    """Makes the entry point of a module that holds these functions; None makes one that does not import."""

    def make(name: str, hooks: dict[str, Any] | None) -> importlib.metadata.EntryPoint:
        if hooks is not None:
            module = types.ModuleType(f"fake_{name}")
            vars(module).update(hooks)
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
    assert reasons["draft-raising"] == "ZeroDivisionError: at registration"
    assert "a hook returned 'redness', which is not a RewardSpec" in reasons["draft-wrong"]
    assert "draft_register_reward" in reasons["draft-misspelt"]


def test_a_plugin_for_another_interface_is_refused_by_name(point: Any) -> None:
    catalog = read_catalog([point("new", {**offering(REDNESS), "DRAFT_API_VERSION": 2})])
    assert not catalog.rewards
    assert "written for version 2 of the plugin interface, this draft-core has 1" in catalog.broken[0].reason


def test_two_distributions_that_claim_one_kind_are_both_named(point: Any) -> None:
    catalog = read_catalog([point("one", offering(REDNESS, BRIGHTNESS)), point("two", offering(REDNESS))])
    assert list(catalog.rewards) == ["brightness"]
    with pytest.raises(
        PluginError, match=r"'redness' is claimed by draft-one 1\.0 and draft-two 1\.0; uninstall all but"
    ):
        catalog.reward("redness")


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
        ({"reference": "tiny:original"}, "a reference without a parity"),
        ({"parity": 0.1}, "a reference without a parity"),
        ({"reference": "tiny.original", "parity": 0.1}, "'tiny.original' is not of the form 'module:callable'"),
        ({"reference": "tiny:original", "parity": 0.0}, "its parity 0.0 is not a positive number"),
        ({"reference": "tiny:original", "parity": float("nan")}, "its parity nan is not a positive number"),
    ],
)
def test_a_spec_that_contradicts_itself_is_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(PluginError, match=message):
        RewardSpec(**{**vars(REDNESS), **change})


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("no_such_module:thing", "cannot import no_such_module"),
        ("tiny:NoSuchThing", "module tiny has no 'NoSuchThing'"),
    ],
)
def test_a_factory_that_is_not_there_is_named(reference: str, message: str) -> None:
    with pytest.raises(PluginError, match=message):
        load_named(reference, where="reward 'x'")
