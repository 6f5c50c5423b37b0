"""`model.compile: regional`: updates and images of compiled blocks are those of the blocks as they are written."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core.adapters.lora import lora_state
from draft_core.cost.forecast import forecast
from draft_core.errors import RecipeError
from draft_core.recipe.load import load_recipe
from draft_core.recipe.schema import ModelConfig
from draft_core.registry.catalog import Catalog
from draft_core.runs.build import build
from draft_core.runs.loading import compilation
from draft_core.runs.pipeline_loading import check_model
from tests.support.tiny import GOOD, tiny_catalog

# of torch, when it looks at what a block is given
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    """Graphs are kept for the whole process, by the code that they are of."""
    donated = torch._functorch.config.donated_buffer  # type: ignore[attr-defined]
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()
    torch._functorch.config.donated_buffer = donated  # type: ignore[attr-defined]


class Counting:
    """A backend that computes graphs as they are, times a factor, and counts them."""

    def __init__(self, factor: float = 1.0) -> None:
        self.factor, self.graphs = factor, 0

    def __call__(self, graph: Any, inputs: Any) -> Any:
        self.graphs += 1
        return lambda *args: tuple(value * self.factor for value in graph(*args))


def trainer(tmp_path: Path, **model: Any) -> Any:
    catalog = tiny_catalog(tmp_path)
    fields = {
        "model": {**GOOD["model"], "num_inference_steps": 2, **model},
        "method": {"kind": "draft-k", "k": 1},
        "regularizers": {"kl": 1.0},
        "train": {"steps": 2, "batch_size": 2},
        "rewards": [{"kind": "redness"}, {"kind": "redness", "contrast": 2.0}],
    }
    return build(load_recipe({**GOOD, **fields, "device": "cpu"}, catalog=catalog), catalog=catalog)


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The LoRA after two updates, with calls of the base model, and an image then."""
    return updated(trainer(tmp_path_factory.mktemp("plain")))


def updated(one: Any, backend: Any = None) -> Any:
    graphs = []
    for _ in range(2):
        report = one.train_step()
        graphs.append(getattr(backend, "graphs", 0))
    assert report.penalties["kl"] > 0, "it is away from the base model"
    assert graphs[0] == graphs[1], "later updates compile nothing"
    return lora_state(one.sampler.pipe), one.draw(["a boat"]).images


def test_updates_are_those_of_blocks_that_are_not_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Any
) -> None:
    backend = Counting()
    monkeypatch.setattr(compilation, "BACKEND", backend)
    one = trainer(tmp_path, compile="regional")
    assert forecast(one).memory.activations > 0
    assert backend.graphs == 0, "costs are measured without compiling"
    torch.testing.assert_close(updated(one, backend), expected, rtol=1e-4, atol=1e-6)
    assert backend.graphs >= 3, "without a gradient, with one, and of the base model"
    backend.factor = 1.01
    assert (one.draw(["a boat"]).images - expected[1]).abs().max() > 1e-4, "a wrong graph is seen"


def test_graphs_of_autograd_are_recomputed_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected: Any
) -> None:
    monkeypatch.setattr(compilation, "BACKEND", "aot_eager")
    one, plain = trainer(tmp_path, compile="regional", gradient_checkpointing="blocks"), trainer(tmp_path)
    torch.testing.assert_close(one.reward_gradients()[0], plain.reward_gradients()[0], rtol=1e-4, atol=1e-7)
    torch.testing.assert_close(updated(one), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"model": {"gradient_checkpointing": "selective"}}, "together with model.gradient_checkpointing: selective"),
        ({"model": {"quantization": "int8"}}, "do not go together with model.quantization"),
        ({"train": {"sharding": "full"}}, "compiled blocks are not spread over processes"),
        ({}, "there is no C++ compiler, which it needs on a CPU; install g++"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_loads(
    fields: Any, sentence: str, catalog: Catalog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.build.load_pipeline", None)
    if not fields:
        monkeypatch.setattr("shutil.which", lambda name: None)
    model = {**GOOD["model"], "compile": "regional", **fields.get("model", {})}
    data = {**GOOD, **fields, "model": model, "device": "cpu"}
    with pytest.raises(RecipeError) as refused:
        build(load_recipe(data, catalog=catalog), catalog=catalog)
    assert sentence in str(refused.value)


def test_a_denoiser_without_repeated_blocks_is_refused_by_its_files(tmp_path: Path) -> None:
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index), encoding="utf-8")
    with pytest.raises(RecipeError, match="SD3Transformer2DModel has no repeated blocks to compile, as diffusers"):
        check_model(ModelConfig(pretrained=str(tmp_path), compile="regional"), Catalog())


def test_other_machines_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for kind, sentence in (("mps", "it is not made for mps"), ("cuda", "it needs triton, which is not installed")):
        with pytest.raises(RecipeError, match=sentence):
            compilation.check_compiler(torch.device(kind))
