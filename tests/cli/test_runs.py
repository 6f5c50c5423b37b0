"""What is done with a finished run's LoRA: mixed, scaled, exported and published, each against diffusers and peft."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from draft_core.reporting.reference_curves import curve_names
from draft_core.rewards.images import to_pil
from tests.support.runs import made_run, saved_lora
from tests.support.tiny import embeddings, tiny_pipe

# diffusers itself loads a second adapter in the way that peft warns of
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute")

FILE = "pytorch_lora_weights.safetensors"


def drawn(*loras: tuple[Path, float]) -> torch.Tensor:
    """Images of plain diffusers with these LoRAs, (2, 3, 16, 16), float32 so that no rounding hides a difference."""
    pipe = tiny_pipe()
    for place, (path, _) in enumerate(loras):
        pipe.load_lora_weights(path, adapter_name=f"lora{place}")
    if loras:
        pipe.set_adapters([f"lora{place}" for place in range(len(loras))], [weight for _, weight in loras])
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    images = pipe(**embeddings(), generator=generator, num_inference_steps=3, output_type="pt").images
    assert isinstance(images, torch.Tensor)
    return images


# Mixing


def test_a_mix_is_what_diffusers_makes_of_both_adapters(draft: Any, tmp_path: Path) -> None:
    one = saved_lora(tmp_path / "one", seed=1, rank=2, alpha=1.0)
    other = saved_lora(tmp_path / "other", seed=2, rank=3)
    code, text = draft("mix", f"{one}:0.3", f"{other}:-0.2", "--output", "mixed")
    assert code == 0, text
    mixed = drawn((tmp_path / "mixed", 1.0))
    torch.testing.assert_close(mixed, drawn((one, 0.3), (other, -0.2)), atol=1e-4, rtol=0)
    for wrong in (drawn((one, 0.3)), drawn((one, 0.6), (other, -0.2)), drawn()):
        assert (mixed - wrong).abs().max() > 1e-3


def test_what_a_mix_adds_to_each_weight_is_the_weighted_sum(draft: Any, tmp_path: Path) -> None:
    one, other = saved_lora(tmp_path / "one", seed=1, alpha=1.0), saved_lora(tmp_path / "other", seed=2)
    draft("mix", f"{one}:0.6", f"{other / FILE}:0.4", "--output", "mixed")
    pipe = tiny_pipe()
    for name in ("one", "other", "mixed"):
        pipe.load_lora_weights(tmp_path / name, adapter_name=name)
    layers = [module for module in pipe.unet.modules() if "mixed" in getattr(module, "lora_A", {})]
    assert layers
    for layer in layers:
        first, second, mixed = (layer.get_delta_weight(name) for name in ("one", "other", "mixed"))  # peft's own
        torch.testing.assert_close(mixed, 0.6 * first + 0.4 * second, atol=1e-5, rtol=1e-5)


def test_runs_are_mixed_by_their_folder(draft: Any, tmp_path: Path) -> None:
    for name in ("one", "other"):
        made_run(tmp_path / name, {"jpeg": [1, 2]}, trained={"jpeg": 1.0})
    code, text = draft("mix", "one:0.5", "other/lora:0.5", "-o", "mixed")
    assert code == 0, text
    torch.testing.assert_close(
        drawn((tmp_path / "mixed", 1.0)), drawn((tmp_path / "one" / "lora", 1.0)), atol=1e-4, rtol=0
    )


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("one:0.5 narrow:0.5", "narrow/pytorch_lora_weights.safetensors: it and one"),
        ("one:0.5 narrow:0.5", "of their layers, first unet."),
        ("one two:0.5", "one: it has no weight; write for example one:0.5"),
        ("one:half two:0.5", "'half' is not a number"),
        ("one:nan two:0.5", "one:nan: nan is not a finite number"),
        ("one:0.5 nowhere:0.5", "nowhere: there is no pytorch_lora_weights.safetensors"),
        ("one:0.5 words.txt:0.5", "words.txt: it is not a safetensors file"),
        ("one:0.5 other.safetensors:0.5", "it is no plain LoRA in diffusers' format, see weight"),
        ("run:0.5 stranger:0.5", "stranger: it is a LoRA of org/other, run is one of tiny"),
        ("one:0.5 two:0.5 --output full", "full: it is there already, and not empty"),
    ],
)
def test_what_cannot_be_mixed_is_refused_by_name(draft: Any, tmp_path: Path, words: str, sentence: str) -> None:
    saved_lora(tmp_path / "one")
    saved_lora(tmp_path / "two")
    saved_lora(tmp_path / "narrow", targets=["to_q"])
    (tmp_path / "words.txt").write_text("words")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    save_file({"weight": torch.ones(2)}, tmp_path / "other.safetensors")
    if "run" in words:
        made_run(tmp_path / "run", {"jpeg": [1, 2]}, trained={"jpeg": 1.0})
        made_run(tmp_path / "stranger", {"jpeg": [1, 2]}, trained={"jpeg": 1.0}, model="org/other")
    code, text = draft("mix", *(words if "--output" in words else f"{words} --output mixed").split())
    assert code == 2
    assert sentence in text
    assert not (tmp_path / "mixed").exists()


# Scaling


def test_a_sweep_has_a_group_of_columns_for_each_scale(draft: Any, tmp_path: Path, catalog: Any) -> None:
    lora = saved_lora(tmp_path / "lora")
    words = ("sample", "tiny", "--prompts", "a cat", "--images", "1", "--lora", str(lora))
    code, text = draft(*words, "--scale", "0,0.5,1", "--output", "sweep.png")
    assert code == 0, text
    for scale in ("0", "0.5", "1"):
        assert draft(*words, "--scale", scale, "--output", f"{scale}.png")[0] == 0

    def cell(file: str, from_right: int, top: int) -> bytes:
        with Image.open(tmp_path / file) as grid:
            left = grid.width - from_right
            return grid.crop((left, top, left + 128, top + 128)).tobytes()

    cells = [cell("sweep.png", 136 + (2 - column) * (136 + 24), 31) for column in range(3)]
    assert cells == [cell(f"{scale}.png", 136, 8) for scale in ("0", "0.5", "1")]
    assert len(set(cells)) == 3


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--scale", "0,half"], "--scale 0,half: 'half' is not a number"),
        (["--scale", "nan"], "--scale nan: nan is not a finite number"),
        (["--guidance", "inf"], "--guidance: inf is not a finite number"),
        (["--scale", "0,1"], "there is no LoRA to scale"),
    ],
)
def test_scales_that_mean_nothing_are_refused(draft: Any, words: list[str], sentence: str) -> None:
    code, text = draft("sample", "tiny", "--prompts", "a cat", *words)
    assert code == 2
    assert sentence in text


# Export


@pytest.mark.parametrize("form", ["diffusers", "comfyui"])
@pytest.mark.parametrize("alpha", [None, 1.0])
def test_an_exported_file_draws_the_same_images(draft: Any, tmp_path: Path, form: str, alpha: float | None) -> None:
    lora = saved_lora(tmp_path / "lora", alpha=alpha)
    code, text = draft("export", str(lora), "--format", form, "--output", "out/lora.safetensors")
    assert code == 0, text
    exported = tmp_path / "out" / "lora.safetensors"
    torch.testing.assert_close(drawn((exported, 1.0)), drawn((lora, 1.0)), atol=1e-4, rtol=0)
    assert (drawn((exported, 1.0)) - drawn()).abs().max() > 1e-3
    if form == "comfyui":
        names = set(load_file(exported))
        assert all(name.startswith("lora_unet_") for name in names)
        stem = "lora_unet_down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_out_0"
        assert {f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"} <= names
        assert not any(name.endswith(".alpha") for name in names), "the scale is in the weights"


def test_a_transformers_lora_keeps_diffusers_names_with_its_scale_in_the_weights(draft: Any, tmp_path: Path) -> None:
    down, up = torch.ones(4, 3), torch.ones(5, 4)
    state = {"transformer.a.to_q.lora_A.weight": down, "transformer.a.to_q.lora_B.weight": up}
    metadata = {"lora_adapter_metadata": json.dumps({"transformer.r": 4, "transformer.lora_alpha": 2})}
    save_file(state, tmp_path / "lora.safetensors", metadata)
    assert draft("export", "lora.safetensors", "-f", "comfyui", "-o", "out.safetensors")[0] == 0
    exported = load_file(tmp_path / "out.safetensors")
    assert exported.keys() == state.keys()
    torch.testing.assert_close(exported["transformer.a.to_q.lora_B.weight"], up * 0.5)
    with safe_open(tmp_path / "out.safetensors", framework="pt") as opened:
        assert opened.metadata() == {"format": "pt"}


def test_exports_that_cannot_be_are_refused(draft: Any, tmp_path: Path) -> None:
    lora = saved_lora(tmp_path / "lora")
    code, text = draft("export", str(lora), "--format", "gguf", "--output", "x.safetensors")
    assert code == 2
    assert "unknown format 'gguf'" in text
    save_file({"weight": torch.ones(1)}, lora / "pytorch_lora_weights_transformer_2.safetensors")
    code, text = draft("export", str(lora), "--output", "x.safetensors")
    assert code == 2
    assert "holds LoRAs of 2 denoisers" in text


# Report and push


def test_report_rebuilds_one_page_and_compares_several(draft: Any, tmp_path: Path) -> None:
    for name in ("one", "other"):
        made_run(tmp_path / name, {"jpeg": [1, 2]}, trained={"jpeg": 1.0})
    code, text = draft("report", "one")
    assert code == 0, text
    assert "wrote one/report.html" in text
    assert (tmp_path / "one" / "report.html").is_file()
    code, text = draft("report", "one", "other", "--output", "both/page.html")
    assert code == 0, text
    assert "2 runs compared" in (tmp_path / "both" / "page.html").read_text()
    code, text = draft("report", "one", "--against", "other", "--against", "jpeg-demo", "-o", "three.html")
    assert code == 0, text
    assert "3 runs compared" in (tmp_path / "three.html").read_text()
    names = curve_names()
    assert "jpeg-demo" in names
    code, text = draft("report", "one", "--against", "nothing")
    assert code == 2
    assert "'nothing' is neither a reference curve nor the folder of a run" in text
    assert f"the curves are {', '.join(names)}" in text
    code, text = draft("report", "one", "--against", "jpeg-deno")
    assert code == 2
    assert "did you mean 'jpeg-demo'? the curves are" in text
    code, text = draft("report", "--curves")
    assert code == 0, text
    assert "jpeg-demo: emoji tuned on jpeg + emoji-clip with draft-lv, 73 updates" in text
    code, text = draft("report")
    assert code == 2
    assert "no run is named" in text
    code, text = draft("report", "nowhere")
    assert code == 2
    assert "nowhere: it holds no finished run" in text


class Hub:
    """The hub's functions, replaced: they remember what they were called with, or raise."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error = error
        self.calls: list[dict[str, Any]] = []

    def create_repo(self, repo_id: str, **arguments: Any) -> Any:
        if self.error:
            raise self.error
        self.calls.append({"repo_id": repo_id, **arguments})
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{repo_id}")

    def upload_folder(self, **arguments: Any) -> None:
        self.calls.append({**arguments, "files": sorted(path.name for path in arguments["folder_path"].iterdir())})


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Path]:
    from draft_core.reporting.page import write_report

    record = made_run(tmp_path / "run", {"jpeg": [1, 2]}, trained={"jpeg": 1.0})
    write_report(record)
    return record.folder


def replace_hub(monkeypatch: pytest.MonkeyPatch, hub: Hub, token: str | None = "token") -> None:
    monkeypatch.setattr(huggingface_hub, "create_repo", hub.create_repo)
    monkeypatch.setattr(huggingface_hub, "upload_folder", hub.upload_folder)
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)


def test_push_uploads_the_lora_with_its_card(draft: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    replace_hub(monkeypatch, hub)
    code, text = draft("push", "run", "me/lora", "--private")
    assert code == 0, text
    assert "published https://huggingface.co/me/lora" in text
    made, uploaded = hub.calls
    assert made == {"repo_id": "me/lora", "private": True, "exist_ok": True}
    assert uploaded["repo_id"] == "me/lora"
    assert uploaded["files"] == ["README.md", "before_after.png", FILE]


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (huggingface_hub.errors.HFValidationError("Repo id must be x"), "it is no name of a repository (Repo id must"),
        (ConnectionError("no route"), "cannot be reached (no route)"),
        (huggingface_hub.errors.HfHubHTTPError.__bases__[0]("offline"), "cannot be reached (offline)"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    draft: Any, run: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, sentence: str
) -> None:
    replace_hub(monkeypatch, Hub(error))
    code, text = draft("push", "run", "me/lora")
    assert code == 2
    assert sentence in text


def test_without_a_token_nothing_is_asked_of_the_hub(draft: Any, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    replace_hub(monkeypatch, hub, token=None)
    code, text = draft("push", "run", "me/lora")
    assert code == 2
    assert "there is no token" in text
    code, text = draft("push", "run", "me/lora", "--best")
    assert "leave out --best" in text
    assert not hub.calls


def test_the_image_of_the_card_is_the_loras(run: Path) -> None:
    from draft_core.reporting.run_record import load_images

    with Image.open(run / "lora" / "before_after.png") as grid:
        left = grid.width - 2 * 136
        cell = grid.crop((left, 31, left + 128, 159))
    expected = to_pil(load_images(run, 10)[0]).resize((128, 128), Image.Resampling.NEAREST)
    assert cell.tobytes() == expected.tobytes()
