"""Thirty hostile plugins: each ends in one named error, and a good one beside it keeps working."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import sys
import threading
import types
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal

import pytest
import torch
from pydantic import ConfigDict

from draft_core.errors import DraftError
from draft_core.library.rewards import load_reward
from draft_core.plugin import DirectConfig, Field, MethodSpec, RewardConfig
from draft_core.recipe.load import load_recipe
from draft_core.recipe.schema import recipe_type
from draft_core.registry.catalog import Catalog, Distribution, Entry, read_catalog
from draft_core.registry.hooks import API_VERSION, ENTRY_POINT_GROUP, hookimpl
from draft_core.rewards.protocol import FrozenModule
from draft_core.runs.build import build
from tests.support import tiny
from tests.support.tiny import GOOD, REDNESS, RednessConfig, spec

if TYPE_CHECKING:
    from fractions import Fraction

Hooks = dict[str, Any]


def hook(function: Callable[..., Any]) -> Hooks:
    return {"draft_register_rewards": hookimpl(function, specname="draft_register_rewards")}


class LaterConfig(RewardConfig):
    """A field's type is imported for type checkers alone."""

    kind: Literal["redness"] = "redness"
    share: Fraction | None = None


class OpaqueConfig(RewardConfig):
    """A field's type is nothing that JSON can say."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    kind: Literal["redness"] = "redness"
    lock: threading.Event = Field(threading.Event())


class AliasConfig(RewardConfig):
    """A kind under another name cannot be told apart in a union."""

    kind: Literal["redness"] = Field("redness", alias="type")


class LaterMethodConfig(DirectConfig):
    """The same in a method."""

    kind: Literal["later"] = "later"
    share: Fraction | None = None


def method_hook(config: type[DirectConfig]) -> Hooks:
    def register() -> Any:
        return [MethodSpec(kind="later", summary="s", config=config)]

    return {"draft_register_methods": hookimpl(register, specname="draft_register_methods")}


def of_config(config: type[RewardConfig]) -> Hooks:
    return hook(lambda: [spec("redness", config, "tests.support.tiny:Redness")])


def of_spec(**fields: Any) -> Hooks:
    return hook(lambda: [dataclasses.replace(REDNESS, **fields)])


def wrong_signature(surprise: Any) -> Any:
    return [REDNESS]


# Hostile when they are found: what the module does -> what the record of the broken plugin says.
AT_DISCOVERY: dict[str, tuple[Any, str]] = {
    "raises_on_import": ("raise ZeroDivisionError('on import')", "ZeroDivisionError: on import"),
    "exits_on_import": ("import sys; sys.exit(3)", "SystemExit: 3"),
    "syntax_error": ("def broken(:", "SyntaxError"),
    "needs_a_missing_package": ("import no_such_package", "No module named 'no_such_package'"),
    "raises_in_its_hook": (hook(lambda: 1 / 0), "ZeroDivisionError"),
    "returns_no_list": (hook(lambda: 7), "TypeError: 'int' object is not iterable"),
    "returns_strings": (hook(lambda: ["redness"]), "a hook returned 'redness', which is not a RewardSpec"),
    "misspells_a_hook": (
        {"draft_register_reward": hookimpl(lambda: [REDNESS], specname="draft_register_reward")},
        "draft_register_reward",
    ),
    "wants_arguments": (hook(wrong_signature), "surprise"),
    "speaks_another_version": ({"DRAFT_API_VERSION": 99}, "version 99 of the plugin interface"),
    "says_no_version": ({"DRAFT_API_VERSION": None}, "add `DRAFT_API_VERSION = 2` to hostile_plugin"),
    "config_of_another_kind": (
        hook(lambda: [spec("blueness", RednessConfig, "tests.support.tiny:Redness")]),
        "does not declare this kind",
    ),
    "a_config_that_is_never_complete": (
        of_config(LaterConfig),
        "spec 'redness': a field of its config LaterConfig has a type that names 'Fraction', which its module does not "
        "define; import Fraction outside of `if TYPE_CHECKING:`",
    ),
    "a_method_whose_config_is_never_complete": (method_hook(LaterMethodConfig), "spec 'later': a field of its config"),
    "a_config_that_no_schema_describes": (
        of_config(OpaqueConfig),
        "its config OpaqueConfig cannot be used in a recipe",
    ),
    "a_config_whose_kind_has_an_alias": (of_config(AliasConfig), "its config AliasConfig cannot be used in a recipe"),
    "has_no_hook": ({}, "hostile_plugin: it has no hook, so it would register nothing; define draft_register_rewards"),
    "forgets_hookimpl": (
        {"draft_register_rewards": lambda: [REDNESS]},
        "draft_register_rewards is not marked as a hook; write `@hookimpl` (from draft_core.plugin) above it",
    ),
    "forgets_one_hookimpl_of_two": (
        {**hook(lambda: [REDNESS]), "draft_register_methods": list},
        "draft_register_methods is not marked as a hook",
    ),
    "forgets_to_return": (hook(lambda: None), "draft_register_rewards returns nothing; return a list of RewardSpec"),
    "summary_is_no_text": (of_spec(summary=None), "its summary is None: input should be a valid string"),
    "native_size_is_a_text": (of_spec(native_size="224"), "its native_size is '224': input should be a valid integer"),
    "small_is_a_list": (of_spec(small=["contrast"]), "its small is ['contrast']: input should be a valid dictionary"),
    "panics": ("class Panic(BaseException): pass\nraise Panic('in compiled code')", "Panic: in compiled code"),
    "factory_is_no_reference": (
        hook(lambda: [spec("redness", RednessConfig, "tiny")]),
        "'tiny' is not of the form 'module:callable'",
    ),
}


class _Distribution:
    name, version = "draft-reward-hostile", "6.6.6"


def entry_point(module: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> importlib.metadata.EntryPoint:
    if isinstance(module, str):
        (tmp_path / "hostile_plugin.py").write_text(module)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "hostile_plugin", raising=False)
    else:
        made = types.ModuleType("hostile_plugin")
        vars(made).update({"DRAFT_API_VERSION": API_VERSION, **module})
        monkeypatch.setitem(sys.modules, "hostile_plugin", made)
    point = importlib.metadata.EntryPoint("hostile", "hostile_plugin", ENTRY_POINT_GROUP)
    vars(point)["dist"] = _Distribution()
    return point


@pytest.fixture
def good(monkeypatch: pytest.MonkeyPatch) -> importlib.metadata.EntryPoint:
    module = types.ModuleType("good_plugin")
    vars(module).update({"DRAFT_API_VERSION": API_VERSION, **hook(lambda: [tiny.BRIGHTNESS])})
    monkeypatch.setitem(sys.modules, "good_plugin", module)
    return importlib.metadata.EntryPoint("good", "good_plugin", ENTRY_POINT_GROUP)


@pytest.mark.parametrize("name", AT_DISCOVERY)
def test_hostile_when_found(name: str, good: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    module, reason = AT_DISCOVERY[name]
    catalog = read_catalog([entry_point(module, monkeypatch, tmp_path), good])
    assert list(catalog.rewards) == ["brightness"], "the other plugin works"
    (broken,) = catalog.broken
    assert reason in broken.reason
    assert str(broken.distribution) == "draft-reward-hostile 6.6.6"
    with pytest.raises(DraftError) as caught:
        catalog.reward("redness")
    assert "broken plugins: draft-reward-hostile 6.6.6 (" in str(caught.value)
    assert "\n" not in str(caught.value)
    recipe = load_recipe({**GOOD, **ELSEWHERE, "rewards": [{"kind": "redness"}]}, catalog=beside(catalog))
    assert recipe.rewards[0].kind == "redness", "a recipe that does not name the hostile one is read"
    assert "RednessConfig" in str(recipe_type(beside(catalog)).model_json_schema())


ELSEWHERE = {"prompts": ["a cat"], "model": {"pretrained": "org/model"}}


def beside(catalog: Catalog) -> Catalog:
    """The catalog with a sound reward more."""
    return dataclasses.replace(catalog, rewards={**catalog.rewards, "redness": Entry(REDNESS, Distribution("a", "1"))})


def test_a_plugin_is_said_to_be_broken_at_its_file_and_line(
    good: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    source = "import json\n\ndef registered():\n    return json.loads('{')\n\nregistered()\n"
    catalog = read_catalog([entry_point(source, monkeypatch, tmp_path), good])
    assert catalog.broken[0].reason.endswith(f"({tmp_path / 'hostile_plugin.py'}:4)"), "not json's line"


def test_ctrl_c_while_a_plugin_is_imported_is_a_ctrl_c(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    with pytest.raises(KeyboardInterrupt):
        read_catalog([entry_point("raise KeyboardInterrupt", monkeypatch, tmp_path)])


def test_one_kind_claimed_twice(good: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    catalog = read_catalog([entry_point(hook(lambda: [REDNESS, REDNESS]), monkeypatch, tmp_path), good])
    assert list(catalog.rewards) == ["brightness"]
    with pytest.raises(DraftError, match=r"'redness' is claimed by draft-reward-hostile 6\.6\.6 and draft-"):
        catalog.reward("redness")


class Fails(FrozenModule):
    def __init__(self, config: RednessConfig) -> None:
        raise KeyError("weights")


class Made(FrozenModule):
    """A reward whose scores are `score` of the sound ones."""

    score: Callable[[torch.Tensor], Any]

    def __init__(self, config: RednessConfig) -> None:
        super().__init__()

    def forward(self, images: torch.Tensor, prompts: list[str]) -> Any:
        return type(self).score(images.float().mean(dim=(1, 2, 3)))


def made(score: Callable[[torch.Tensor], Any]) -> type[Made]:
    return type("Hostile", (Made,), {"score": staticmethod(score)})


def crash(scores: torch.Tensor) -> Any:
    raise IndexError("list index\nout of range")


# Hostile when they are built or used in training.
IN_USE: dict[str, tuple[Any, str]] = {
    "raises_when_built": (Fails, "reward 'redness' of hostile 6.6.6: it cannot be built (KeyError: 'weights')"),
    "makes_a_function": (lambda config: len, "its factory made builtin_function_or_method, not a torch.nn.Module"),
    "raises_when_called": (made(crash), "reward 'redness': it raised IndexError: list index out of range"),
    "column_of_scores": (made(lambda s: s[:, None]), "it returned torch.float32 of shape (2, 1) for 2 images"),
    "one_score_for_all": (made(lambda s: s.mean()), "it returned torch.float32 of shape () for 2 images"),
    "double_precision": (made(lambda s: s.double()), "it returned torch.float64 of shape (2,)"),
    "a_list_of_floats": (made(lambda s: s.tolist()), "it returned list for 2 images"),
    "detached": (made(lambda s: s.detach()), "its scores carry no gradient, so nothing would be trained"),
    "not_a_number": (made(lambda s: s * float("nan")), "because reward 'redness' of the prompt 'a cat' became nan"),
    "infinite": (
        made(lambda s: s / 0),
        "optimiser steps were skipped, the last one because reward 'redness' of the prompt 'a cat' became inf",
    ),
}


@pytest.mark.parametrize("name", IN_USE)
@pytest.mark.filterwarnings("ignore:Converting a tensor with requires_grad=True to a scalar:UserWarning")
def test_hostile_in_use(name: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    factory, sentence = IN_USE[name]
    monkeypatch.setattr(tiny, "Hostile", factory, raising=False)
    hostile = dataclasses.replace(REDNESS, factory="tests.support.tiny:Hostile")
    mixed = Catalog(
        rewards={**catalog.rewards, "redness": Entry(hostile, Distribution("hostile", "6.6.6"))},
        pretrained=catalog.pretrained,
    )
    recipe = load_recipe(
        GOOD, ["train.batch_size=2", "method.resamples=1", "method.kind=draft-lv", "device=cpu"], catalog=mixed
    )
    with pytest.raises(DraftError) as caught:
        list(build(recipe, catalog=mixed))
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    images = torch.rand(2, 3, 4, 4)
    torch.testing.assert_close(load_reward("brightness", catalog=mixed)(images, ["", ""]), images.mean(dim=(1, 2, 3)))


def test_there_are_thirty_of_them() -> None:
    assert len(AT_DISCOVERY) + 1 + len(IN_USE) >= 30
