"""Weight files: found, fetched, read and loaded, or refused in one sentence."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from safetensors.torch import save_file

from draft_core.errors import DraftError
from draft_core.rewards import weights
from draft_core.rewards.weights import (
    HubFile,
    explained,
    load_pretrained,
    load_strict,
    load_tokenizer,
    locate,
    locate_model,
    read_tensors,
    require_fit,
    seeded,
)

FILE = HubFile("owner/name", "model.pt", megabytes=1970)
WHERE = "reward 'x'"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """The files asked of the hub, which has them all."""
    asked: list[tuple[str, str]] = []

    def download(repo: str, filename: str) -> str:
        asked.append((repo, filename))
        return f"/cache/{filename}"

    monkeypatch.setattr(weights, "hf_hub_download", download)
    return asked


@pytest.mark.parametrize(
    ("source", "asked"),
    [("hub", ("owner/name", "model.pt")), ("hf://some/other/sub/file.pth", ("some/other", "sub/file.pth"))],
)
def test_a_file_on_the_hub_is_fetched(hub: list[tuple[str, str]], source: str, asked: tuple[str, str]) -> None:
    assert locate(source, FILE, where=WHERE, option="weights") == Path("/cache") / asked[1]
    assert hub == [asked]


def test_a_local_file_is_taken_where_it_lies(hub: list[tuple[str, str]], tmp_path: Path) -> None:
    (tmp_path / "mine.pt").touch()
    assert locate(str(tmp_path / "mine.pt"), FILE, where=WHERE, option="weights") == tmp_path / "mine.pt"
    assert not hub


def test_without_a_network_one_sentence_names_file_size_and_option(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(DraftError) as caught:
        locate("hub", FILE, where=WHERE, option="weights")
    sentence = str(caught.value)
    assert sentence.startswith("reward 'x': cannot load model.pt of owner/name (1,970 MB): ")
    assert sentence.endswith("; check the name and the network, or set weights to a local path.")
    assert "\n" not in sentence
    with pytest.raises(DraftError, match=r"head\.pt of owner/name \(0\.1 MB\): "):  # not 0 MB
        locate("hub", HubFile("owner/name", "head.pt", megabytes=0.1), where=WHERE, option="weights")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (
            "no/such/file.pt",
            r"reward 'x', head: there is no file 'no/such/file.pt'; give the path of a file, 'hub', or",
        ),
        (
            "hf://owner/name",
            r"reward 'x', head: 'hf://owner/name' names no file on the hub; use hf://owner/name/file\.",
        ),
    ],
)
def test_what_names_no_file_is_refused(source: str, message: str) -> None:
    with pytest.raises(DraftError, match=message):
        locate(source, FILE, where=WHERE, option="head")


def test_a_model_is_a_repository_or_a_folder(tmp_path: Path) -> None:
    for source, expected in (("hub", "a/b"), ("hf://c/d", "c/d"), (str(tmp_path), str(tmp_path))):
        assert locate_model(source, "a/b", where=WHERE, option="model") == expected
    with pytest.raises(DraftError, match=r"reward 'x', model: there is no folder 'c/d'; give .* or hf://owner/name\."):
        locate_model("c/d", "a/b", where=WHERE, option="model")


@pytest.mark.parametrize("error", [OSError("no route. Try later."), ValueError("no route"), RuntimeError("no\nroute")])
def test_a_librarys_own_error_becomes_the_sentence(error: Exception) -> None:
    with pytest.raises(DraftError) as caught, explained("CLIPModel a/b", where=WHERE, option="model"):
        raise error
    assert str(caught.value) == (
        "reward 'x': cannot load CLIPModel a/b: no route; check the name and the network, or set model to a local path."
    )
    assert caught.value.__cause__ is error


def test_tensors_are_read_from_either_format(tmp_path: Path) -> None:
    tensors = {"a": torch.arange(3.0)}
    save_file(tensors, tmp_path / "a.safetensors")
    torch.save(tensors, tmp_path / "a.pth")
    torch.save({"epoch": 3, "state_dict": tensors}, tmp_path / "checkpoint.pt")
    for name in ("a.safetensors", "a.pth", "checkpoint.pt"):
        read = read_tensors(tmp_path / name, where=WHERE)
        assert list(read) == ["a"]
        torch.testing.assert_close(read["a"], tensors["a"])


@pytest.mark.parametrize("name", ["torn.safetensors", "torn.pt"])
def test_a_torn_file_is_refused(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no weights")
    with pytest.raises(DraftError, match=rf"reward 'x', .*{name}: cannot be read as weights: .+; fetch the file again"):
        read_tensors(tmp_path / name, where=WHERE)


def test_the_content_says_what_a_file_is(tmp_path: Path) -> None:
    save_file({"a": torch.arange(3.0)}, tmp_path / "a.pt")
    torch.save({"a": torch.arange(3.0)}, tmp_path / "a.safetensors")
    for name in ("a.pt", "a.safetensors"):
        assert read_tensors(tmp_path / name, where=WHERE)["a"].tolist() == [0, 1, 2]


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a214614ab2935c943f9e0ff69d22e\nsize 3945\n"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        (LFS, "it is a pointer of Git LFS, not the file; run `git lfs pull` in its repository, or download the file"),
        (b"", "it is empty; fetch the file again"),
        (b"<!DOCTYPE html>\n<html>", "it is a web page, not the file; download the file itself"),
        (b"GGUF\x03\0\0\0", "it is a GGUF file; give a safetensors file, or tensors saved by torch"),
    ],
)
@pytest.mark.parametrize("name", ["a.pt", "a.safetensors"])
def test_a_file_that_is_taken_for_weights_is_named(tmp_path: Path, content: bytes, sentence: str, name: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DraftError, match=f"cannot be read as weights: {sentence}"):
        read_tensors(tmp_path / name, where=WHERE)


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_torchscript_archive_is_named_with_what_makes_weights_of_it(tmp_path: Path) -> None:
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 1)), str(tmp_path / "a.pt"))
    with pytest.raises(DraftError) as caught:
        read_tensors(tmp_path / "a.pt", where=WHERE)
    assert "it is a TorchScript archive, which holds code; save its tensors, `torch.save(" in str(caught.value)
    torch.save(torch.jit.load(tmp_path / "a.pt").state_dict(), tmp_path / "weights.pt")  # the advice
    load_strict(torch.nn.Linear(2, 1), read_tensors(tmp_path / "weights.pt", where=WHERE), where=WHERE)


def test_a_whole_model_and_a_nested_checkpoint_are_named(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 1), tmp_path / "model.pt")
    with pytest.raises(DraftError, match="it holds Python objects, which are not executed; load it where you trust it"):
        read_tensors(tmp_path / "model.pt", where=WHERE)
    torch.save({"epoch": 3, "ema": {"a": torch.zeros(1)}}, tmp_path / "nested.pt")
    with pytest.raises(DraftError, match="save the one with the weights alone, perhaps 'ema'"):
        read_tensors(tmp_path / "nested.pt", where=WHERE)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.net."])
def test_names_behind_a_prefix_have_their_own_advice(prefix: str) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(2, 1))
    behind = {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}
    with pytest.raises(DraftError, match=rf"; take '{prefix}' off the names of its tensors, and give that file\.$"):
        load_strict(module, {**behind, "logit_scale": torch.ones(())}, where=WHERE)
    whole = torch.nn.ModuleDict({"visual": module})
    with pytest.raises(DraftError, match=r"; put 'visual\.' before the names of its tensors, and give that file\.$"):
        load_strict(whole, module.state_dict(), where=WHERE)


class Program:
    """Unpickling it would run something."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("the pickle was executed",))


def test_a_pickled_program_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.pt").write_bytes(pickle.dumps(Program(), protocol=2))
    torch.save(Program(), tmp_path / "evil.pth")
    for name in ("evil.pt", "evil.pth"):
        with pytest.raises(DraftError, match="cannot be read as weights"):
            read_tensors(tmp_path / name, where=WHERE)


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    torch.save([torch.zeros(2)], tmp_path / "list.pt")
    with pytest.raises(DraftError, match="holds something else than tensors by name"):
        read_tensors(tmp_path / "list.pt", where=WHERE)


def test_weights_that_fit_are_loaded_in_the_modules_precision() -> None:
    module = torch.nn.Linear(2, 1)
    load_strict(module, {"weight": torch.ones(1, 2).half(), "bias": torch.zeros(1).half()}, where=WHERE)
    assert module(torch.ones(1, 2)).item() == 2
    assert module.weight.dtype == torch.float32


def test_what_does_not_fit_is_reported_and_nothing_is_loaded() -> None:
    module = torch.nn.Linear(2, 1)
    before = module.weight.clone()
    with pytest.raises(DraftError) as caught:
        load_strict(module, {"weight": torch.ones(3, 2), "scale": torch.ones(1)}, where=WHERE)
    assert str(caught.value) == (
        "reward 'x': the weights are not those of this Linear: 1 missing (bias); 1 unexpected (scale); "
        "1 of another shape (weight is 3x2, not 1x2); "
        "give the weights of this architecture, or the architecture of these weights."
    )
    assert torch.equal(module.weight, before)


def test_a_long_report_is_cut() -> None:
    names = {f"layer{place}" for place in range(9)}
    with pytest.raises(DraftError, match=r"9 missing \(layer0, layer1, layer2, layer3, layer4 and 4 more\)"):
        require_fit("CLIP", missing=names, unexpected=(), mismatched={}, where=WHERE)
    require_fit("CLIP", missing=(), unexpected=(), mismatched={}, where=WHERE)


class Model:
    """As much of a transformers model, and of a tokenizer, as is asked of it."""

    info: ClassVar[dict[str, Any]] = {"missing_keys": set(), "unexpected_keys": set(), "mismatched_keys": set()}
    all_special_tokens = ("<end>", "<end>")

    def __init__(self, words: int = 0) -> None:
        self.words = words

    def __len__(self) -> int:
        return 1 + self.words

    @classmethod
    def from_pretrained(cls, name: str, **more: Any) -> Any:
        if name == "nowhere":
            raise OSError("nowhere does not exist")
        if name == "none":
            raise TypeError("not NoneType")
        return (cls(), {**cls.info, **more}) if more.get("output_loading_info") else cls(len(name))


class Torn(Model):
    info: ClassVar[dict[str, Any]] = {
        "missing_keys": {"head"},
        "unexpected_keys": {"tail", "text_model.position_ids"},
        "mismatched_keys": [("body", torch.Size([2]), torch.Size([3]))],
    }


def test_a_pretrained_model_is_loaded_whole_or_not_at_all() -> None:
    assert isinstance(load_pretrained(Model, "a/b", where=WHERE, option="weights"), Model)
    with pytest.raises(DraftError, match=r"cannot load the model nowhere \(5 MB\): nowhere does not exist; check"):
        load_pretrained(Model, "nowhere", megabytes=5, where=WHERE, option="weights")
    with pytest.raises(DraftError) as caught:
        load_pretrained(Torn, "a/b", where=WHERE, option="weights")
    assert str(caught.value).startswith(
        "reward 'x', weights: the weights are not those of this Torn: 1 missing (head); 1 unexpected (tail); "
        "1 of another shape (body is 2, not 3);"
    )


def test_a_tokenizer_without_words_is_refused() -> None:
    assert load_tokenizer(Model, "words", where=WHERE, option="tokenizer").words == 5
    for name in ("", "none"):
        with pytest.raises(DraftError, match=f"reward 'x': cannot load the tokenizer {name}: it has no vocabulary; "):
            load_tokenizer(Model, name, where=WHERE, option="tokenizer")


def test_random_weights_are_repeated_and_leave_no_trace() -> None:
    before = torch.random.get_rng_state()
    built = []
    for seed in (1, 1, 2):
        with seeded(seed):
            built.append(torch.nn.Linear(2, 1).weight)
    assert torch.equal(built[0], built[1])
    assert not torch.equal(built[0], built[2])
    assert torch.equal(torch.random.get_rng_state(), before)
