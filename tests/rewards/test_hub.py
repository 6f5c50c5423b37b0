"""Without a network nothing is asked twice, and one sentence says so."""

from __future__ import annotations

import logging
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants
from transformers import CLIPConfig, CLIPModel, CLIPTokenizer

from draft_core.errors import DraftError
from draft_core.registry.catalog import Catalog
from draft_core.rewards import hub
from draft_core.rewards.hub import hub_or_cache
from draft_core.rewards.weights import HubFile, load_pretrained, load_tokenizer, locate
from draft_core.runs.pipeline_loading import load_pipeline
from tests.support.tiny import byte_tokenizer, tiny_pipe

WHERE = "reward 'x'"
SMALL = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[list[Any]]:
    """A machine without a network: what it tries to connect to."""
    tried: list[Any] = []

    def refuse(place: Any, *args: Any, **kwargs: Any) -> Any:
        tried.append(place)
        raise OSError(-2, "Name or service not known")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(socket, "create_connection", refuse)
    monkeypatch.setattr("urllib.request.getproxies", dict)
    hub.unreachable.cache_clear()
    yield tried
    hub.unreachable.cache_clear()


def load_weights(name: str) -> None:
    locate(f"hf://{name}/model.pt", None, where=WHERE, option="weights")


def load_model(name: str) -> None:
    load_pretrained(CLIPModel, name, where=WHERE, option="weights")


def load_words(name: str) -> None:
    load_tokenizer(CLIPTokenizer, name, where=WHERE, option="weights")


@pytest.mark.parametrize("load", [load_weights, load_model, load_words])
def test_a_reward_without_a_network_fails_at_once_in_one_sentence(
    load: Any, connections: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(DraftError) as caught:
        load("owner/name")
    assert str(caught.value).startswith("reward 'x': cannot load ")
    assert str(caught.value).endswith(
        f": {constants.ENDPOINT} cannot be reached (Name or service not known), and it is not in the cache of earlier "
        "downloads; check the name and the network, or set weights to a local path."
    )
    assert connections == [("huggingface.co", 443)]
    assert "Retrying" not in caplog.text
    assert constants.HF_HUB_OFFLINE is False, "as before"


def test_a_pipeline_without_a_network_fails_at_once_in_one_sentence(
    connections: list[Any], caplog: pytest.LogCaptureFixture, catalog: Catalog
) -> None:
    with caplog.at_level(logging.WARNING), pytest.raises(DraftError) as caught:
        load_pipeline("owner/name", catalog=catalog)
    assert "owner/name cannot be loaded (" in str(caught.value)
    assert "cannot be reached (Name or service not known), and it is not in the cache" in str(caught.value)
    assert len(connections) == 1
    assert "Retrying" not in caplog.text


def test_a_local_folder_is_loaded_without_a_look_at_the_hub(
    connections: list[Any], tmp_path: Path, catalog: Catalog
) -> None:
    tiny_pipe(tokenizer=byte_tokenizer(tmp_path / "bytes")).save_pretrained(tmp_path / "pipe")
    load_pipeline(str(tmp_path / "pipe"), catalog=catalog)
    CLIPModel(CLIPConfig(text_config=SMALL, vision_config=SMALL)).save_pretrained(tmp_path / "model")
    load_model(str(tmp_path / "model"))
    (tmp_path / "words").mkdir()
    with pytest.raises(DraftError, match="cannot load the tokenizer"):
        load_words(str(tmp_path / "words"))
    assert not connections


def test_what_is_in_the_cache_is_loaded(connections: list[Any], tmp_path: Path) -> None:
    repo = tmp_path / "models--owner--name"
    snapshot = repo / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "model.pt").write_bytes(b"weights")
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("0" * 40)
    path = locate("hf://owner/name/model.pt", None, where=WHERE, option="weights")
    assert path.read_bytes() == b"weights"


def test_a_user_who_is_offline_on_purpose_is_told_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DraftError, match="HF_HUB_OFFLINE is set, and it is not in the cache"):
        locate("hub", HubFile("owner/name", "model.pt"), where=WHERE, option="weights")


def test_other_errors_pass_and_the_network_is_used_where_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "unreachable", lambda: None)
    with hub_or_cache():
        assert not huggingface_hub.is_offline_mode()
    with pytest.raises(ValueError, match="torn"), hub_or_cache():
        raise ValueError("torn")
