"""What does not go together with quantised weights is refused by name before anything is loaded; needs no package."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draft_core.errors import RecipeError
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog, Entry
from draft_core.runs.build import build
from draft_core.runs.loading import quantization
from draft_core.runs.pipeline_loading import load_pipeline
from tests.support.runs import saved_lora
from tests.support.tiny import GOOD


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if the packages were there."""
    monkeypatch.setattr(quantization, "PACKAGES", {"nf4": "torch", "int8": "torch"})


@pytest.fixture
def nothing_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: Any, **__: Any) -> None:
        raise AssertionError("weights are loaded")

    monkeypatch.setattr("draft_core.runs.build.load_pipeline", load)


REFUSED = {
    "missing": (
        {"quantization": "int8"},
        "int8 needs no_such_package, which is not installed; pip install 'draft-core[quantization]'",
    ),
    "no gpu": ({"quantization": "nf4"}, "nf4 is not computed on cpu; use int8"),
    "unknown": ({"quantization": {"transformer": "int8"}}, "transformer is no network of this model; it has"),
    "decoder": ({"quantization": {"vae": "int8"}}, "vae is neither a denoiser nor a text encoder; it has"),
    "sharded": ({"quantization": "int8"}, "train.sharding: quantised weights are not spread over processes"),
    "users": ({"quantization": "int8", "users": {"file": "users.safetensors"}}, "users are trained over weights of"),
    "lora": ({"quantization": "int8"}, "the alias adds a LoRA to its weights"),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.usefixtures("nothing_loads")
def test_what_does_not_go_together_is_refused_by_name(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    fields, sentence = REFUSED[case]
    if case == "missing":
        monkeypatch.setattr(quantization, "PACKAGES", {"int8": "no_such_package"})
    if case == "users":
        (tmp_path / "users.safetensors").write_bytes(b"")
        fields = {**fields, "users": {"file": str(tmp_path / "users.safetensors")}}
    if case == "lora":
        entry = catalog.pretrained["tiny"]
        lora = saved_lora(tmp_path / "lora")
        tuned = Entry(replace(entry.spec, lora=lora), entry.distribution)
        catalog = replace(catalog, pretrained={"tiny": tuned})
    train = {"sharding": "full"} if case == "sharded" else {}
    prompts = [{"prompt": "a cat", "user": "alice"}]
    data = {**GOOD, "model": {**GOOD["model"], **fields}, "prompts": prompts, "train": train, "device": "cpu"}
    with pytest.raises(RecipeError) as refused:
        build(load_recipe(data, catalog=catalog), catalog=catalog)
    assert sentence in str(refused.value)
    assert "model.quantization" in str(refused.value)


@pytest.mark.usefixtures("nothing_loads")
def test_a_wrong_name_is_told_before_what_is_to_be_installed(catalog: Catalog, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantization, "PACKAGES", {"int8": "no_such_package"})
    for pretrained, name, sentence in (
        ("tiny", "transformer", "transformer is no network of this model; it has"),
        ("org/model", "vae", "vae is neither a denoiser nor a text encoder; name one such as transformer"),
        ("org/model", "transformer", "int8 needs no_such_package"),
    ):
        model = {**GOOD["model"], "pretrained": pretrained, "quantization": {name: "int8"}}
        with pytest.raises(RecipeError, match=sentence):
            build(load_recipe({**GOOD, "model": model, "device": "cpu"}, catalog=catalog), catalog=catalog)
    with pytest.raises(RecipeError, match="'fp4' is no quantization"):
        load_pipeline("tiny", quantization={"unet": "fp4"}, catalog=catalog)


def test_a_loader_refuses_it_too(catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"")
    (tmp_path / "modular").mkdir()
    (tmp_path / "modular" / "modular_model_index.json").write_text("{}")
    for name, kind, sentence, more in (
        (tmp_path / "model.safetensors", "int8", "a single file is not quantised", {"pipeline": "FluxPipeline"}),
        (tmp_path / "modular", "int8", "has no model_index.json, as a modular pipeline", {}),
        ("tiny", "fp4", "'fp4' is no quantization; give nf4 or int8", {}),
    ):
        with pytest.raises(RecipeError, match=sentence):
            load_pipeline(str(name), quantization=kind, catalog=catalog, **more)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(RecipeError, match=r"diffusers loads nf4 on a GPU alone.*; use int8"):
        load_pipeline("tiny", quantization="nf4", catalog=catalog)
