"""What a method's factory makes is checked against what its spec says."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from draft_core.errors import PluginError, RecipeError
from draft_core.learners.direct import DirectLearner
from draft_core.plugin import MethodConfig, MethodSpec
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog, Distribution, Entry
from draft_core.registry.methods import DraftK
from draft_core.runs.build import build_learner
from tests.support.tiny import GOOD


class OddConfig(MethodConfig):
    """A method of somebody else's."""

    kind: Literal["odd"] = "odd"


def greedy(config: Any) -> DirectLearner:
    """A learner that needs the gradient."""
    return DirectLearner(config)


def incomplete(config: Any) -> dict[str, Any]:
    """No learner."""
    return {}


def broken(config: Any) -> Any:
    """A bug."""
    raise KeyError("weights")


def raised_here() -> str:
    """The line of `broken` that raises, as errors name it."""
    return f"{__file__}:{broken.__code__.co_firstlineno + 2}"


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        (
            "greedy",
            "method 'odd' of draft-odd 1: its spec says needs_gradient = False, its learner True; tell its author.",
        ),
        (
            "incomplete",
            "method 'odd' of draft-odd 1: its factory made dict, which has no needs_gradient; tell its author.",
        ),
        (
            "broken",
            f"method 'odd' of draft-odd 1: it cannot be built (KeyError: 'weights') ({raised_here()}); "
            "tell its author.",
        ),
    ],
)
def test_a_learner_that_contradicts_its_spec_is_refused(factory: str, sentence: str) -> None:
    learner = f"tests.learners.test_build:{factory}"
    spec = MethodSpec(kind="odd", summary="s", config=OddConfig, learner=learner, needs_gradient=False)
    catalog = Catalog(methods={"odd": Entry(spec, Distribution("draft-odd", "1"))})
    with pytest.raises(PluginError) as caught:
        build_learner(OddConfig(), catalog)
    assert str(caught.value) == sentence


def test_a_learner_that_yields_no_divergence_contradicts_a_spec_that_says_so() -> None:
    learner = "tests.learners.test_build:greedy"
    spec = MethodSpec(kind="odd", summary="s", config=OddConfig, learner=learner, yields_divergence=False)
    catalog = Catalog(methods={"odd": Entry(spec, Distribution("draft-odd", "1"))})
    with pytest.raises(PluginError, match="its spec says yields_divergence = False, its learner True"):
        build_learner(OddConfig(), catalog)


def test_kl_with_a_method_without_divergence_is_refused_before_anything_is_loaded(catalog: Catalog) -> None:
    spec = MethodSpec(kind="odd", summary="s", config=OddConfig, learner="tests.learners.test_build:greedy")
    entries = {**catalog.methods, "odd": Entry(spec, Distribution("draft-odd", "1"))}
    given = {**GOOD, "method": {"kind": "odd"}, "regularizers": {"kl": 0.1}}
    sentence = r"regularizers\.kl: method 'odd' does not say how far .*; leave it out, or use lora_norm"
    with pytest.raises(RecipeError, match=sentence):
        load_recipe(given, catalog=replace(catalog, methods=entries))
    assert load_recipe({**given, "method": {"kind": "draft-k"}}, catalog=catalog).regularizers.kl == 0.1


def test_our_own_methods_have_the_direct_learner() -> None:
    learner = build_learner(DraftK(k=2), Catalog())
    assert isinstance(learner, DirectLearner)
    assert learner.method == DraftK(k=2)


def linear(config: Any) -> Any:
    learner = DirectLearner(DraftK(k=1))
    learner.needs_gradient = False
    learner.yields_divergence = False
    learner.modules = lambda: {"value": torch.nn.Linear(3, 1)}  # type: ignore[method-assign]
    learner.value = learner.modules()["value"]  # type: ignore[attr-defined]
    return learner


def test_a_learner_is_drawn_from_the_seed() -> None:
    spec = MethodSpec(
        kind="odd",
        summary="s",
        config=OddConfig,
        needs_gradient=False,
        yields_divergence=False,
        learner="tests.learners.test_build:linear",
    )
    catalog = Catalog(methods={"odd": Entry(spec, Distribution("draft-odd", "1"))})
    before = torch.get_rng_state()
    first, same, other = (build_learner(OddConfig(), catalog, seed=seed).value.weight for seed in (3, 3, 4))  # type: ignore[attr-defined]
    assert torch.equal(first, same)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)
