"""Users in whole runs: from pairs with a column of people to files, samples and a resumed run; the loss by hand."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from draft_core import CallColumns, DifferentiableSampler, PromptRow, sample
from draft_core.adapters.user_embeddings import UserEmbeddings
from draft_core.adapters.users import UserAdapter, UserArgument
from draft_core.cli import vote as cli_vote
from draft_core.cli.app import app
from draft_core.errors import DraftError, RecipeError
from draft_core.learners.preference import PreferenceLearner
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import load_images
from draft_core.rewards.image_files import read_image
from draft_core.runs.run import run_recipe
from tests.support.chains import batch_of
from tests.support.runs import without_pages
from tests.support.tiny import Redness, byte_tokenizer, tiny_catalog, tiny_pipe

PEOPLE = UserEmbeddings({"alice": torch.tensor([0.6, 0.8, 0.0]), "bob": torch.tensor([0.0, 0.6, -0.8])})
PAIRS = [
    {"prompt": "a cat", "winner": "0.png", "loser": "1.png", "user": "alice"},
    {"prompt": "a cat", "winner": "1.png", "loser": "0.png", "user": "bob"},
    {"prompt": "a dog", "winner": "1.png", "loser": "2.png", "user": ""},
    {"prompt": "a hat", "winner": "2.png", "loser": "0.png", "user": "alice:0.5,bob:0.5"},
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("users")
    generator = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(made / f"{number}.png")
    (made / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    (made / "held.csv").write_text('prompt,user\na bird,alice\na fish,"alice:0.7,bob:0.3"\na fish,\n')
    PEOPLE.save(made / "people.safetensors")
    return made


@pytest.fixture(scope="module")
def catalog(folder: Path) -> Catalog:
    return tiny_catalog(folder / "tiny")


def recipe_of(folder: Path, catalog: Catalog, output: Path, **changes: Any) -> Any:
    users = {"file": str(folder / "people.safetensors")}
    data = {
        "model": {"pretrained": "tiny", "num_inference_steps": 3, "users": users, **changes.pop("model", {})},
        "method": {"kind": "dpo", "pairs": str(folder / "pairs.jsonl"), "beta": 100.0},
        "rewards": [{"kind": "redness"}],
        "train": {"steps": 4, "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {
            "prompts": str(folder / "held.csv"),
            "images_per_prompt": 1,
            "every": 4,
            "on_collapse": "warn",
            "scales": [0.5],
        },
        "checkpoint": {"every": 2, "keep": 9},
        "output": str(output),
        "device": "cpu",
        **changes,
    }
    return load_recipe(data, catalog=catalog)


def test_a_run_on_the_pairs_of_several_people(
    folder: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its files are loaded again, by us and by diffusers; without a user nothing has changed; resume in every bit."""
    notes: list[str] = []
    done = run_recipe(
        recipe_of(folder, catalog, tmp_path / "whole"), catalog, progress=lambda *said: notes.append(said[3])
    )
    assert "trains attention to 2 users, whose embeddings have 3 numbers, and no LoRA" in notes
    before, after = (load_images(done.folder, update) for update in (0, 4))
    assert [torch.equal(*images) for images in zip(before, after, strict=True)] == [False, False, True]

    prompts = [PromptRow("a bird", {"user": "alice"}), "a fish"]
    drawn = sample("tiny", prompts, lora=done.folder, images_per_prompt=1, scales=(0, 1), catalog=catalog)
    torch.testing.assert_close(drawn[1, :, 0], after[::2], atol=0.51 / 255, rtol=0)
    torch.testing.assert_close(drawn[0, :, 0], before[::2], atol=0.51 / 255, rtol=0)
    mixed = sample("tiny", ["a fish"], lora=done.folder, images_per_prompt=1, user="alice:0.7,bob:0.3", catalog=catalog)
    torch.testing.assert_close(mixed[0, :, 0], after[1:2], atol=0.51 / 255, rtol=0)

    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    card = (done.folder / "lora" / "README.md").read_text(encoding="utf-8")
    assert 'subfolder="", weight_name=' in card
    assert "ip_adapter_image_embeds=users" in card

    first = {"steps": 2, "batch_size": 4, "learning_rate": 1e-2}
    run_recipe(recipe_of(folder, catalog, tmp_path / "parts", train=first), catalog)
    recipe = recipe_of(folder, catalog, tmp_path / "parts")
    parts = run_recipe(recipe, catalog, resume=True, force=True)
    one, other = (load_file(run.folder / "lora" / "ip_adapter.safetensors") for run in (done, parts))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)

    file = Path(recipe.model.users.file)
    kept = file.read_bytes()
    UserEmbeddings({name: -vector for name, vector in PEOPLE.vectors.items()}).save(file)
    with pytest.raises(RecipeError, match=r"model.users.file \(digest\): 1 -> 1 texts, number 1 was"):
        run_recipe(recipe, catalog, resume=True)
    file.write_bytes(kept)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"model": {"lora": {"rank": 2}}}, "model.lora: the recipe trains attention to users"),
        ({"model": {"dtype": "float16"}}, "model.dtype: users are trained in single precision"),
        ({"model": {"pipeline": "FluxPipeline"}}, "model.users: FluxPipeline has no IP-Adapter of a UNet"),
        ({"train": {"sharding": "full"}}, "train.sharding: attention to users is not spread over processes"),
        ({"evaluation": {"prompts": ["a bird"]}}, "model.users reads column 'user', and the list has none"),
        (
            {"evaluation": {"prompts": [{"prompt": "a bird", "user": "carol"}]}},
            r"evaluation.prompts: column 'user': there is no user 'carol'; there are 2, such as alice, bob",
        ),
    ],
)
def test_what_cannot_be_is_refused_before_a_model_loads(
    changes: dict[str, Any],
    problem: str,
    folder: Path,
    catalog: Catalog,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("draft_core.runs.build.load_pipeline", lambda *_, **__: pytest.fail("a model is loaded"))
    with pytest.raises(RecipeError, match=problem):
        run_recipe(recipe_of(folder, catalog, tmp_path / "run", **changes), catalog)


def test_drawing_for_a_user_needs_a_run_with_users(catalog: Catalog) -> None:
    with pytest.raises(DraftError, match="user 'alice': there is no model with users to draw with"):
        sample("tiny", ["a bird"], user="alice", catalog=catalog)


def test_the_loss_is_the_published_one_in_a_program_of_its_own(folder: Path, tmp_path: Path) -> None:
    """The denoiser with each pair's user by diffusers' own argument against the one before an IP-Adapter was loaded."""
    tokenizer = byte_tokenizer(tmp_path / "bytes")
    pipe, plain = tiny_pipe(tokenizer=tokenizer), tiny_pipe(tokenizer=tokenizer)
    torch.manual_seed(0)
    adapter = UserAdapter(pipe, PEOPLE)
    adapter.attach()
    with torch.no_grad():
        for weight in adapter.parameters():
            weight.add_(0.3 * torch.randn(weight.shape))
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=3,
        guidance_scale=1.0,
        base_model=adapter.base_model,
        columns=CallColumns(computed=UserArgument(pipe, PEOPLE)),
    )
    settings: Any = SimpleNamespace(pairs=folder / "pairs.jsonl", loss="sigmoid", beta=50.0, fits=1, levels=1)
    learner = PreferenceLearner(settings)
    batch = batch_of(4, 0)
    rows = [PromptRow(pair["prompt"], {"user": pair["user"]}) for pair in PAIRS]
    columns = {name: [pair[name] for pair in PAIRS] for name in ("winner", "loser")}
    batch = type(batch)(**{**vars(batch), "prompts": rows, "columns": columns, "rng": Random("plan")})
    with torch.no_grad():
        (loss,) = learner.losses(batch, sampler, lambda *_, **__: pytest.fail("nothing is scored"))

        plain.scheduler.set_timesteps(3)
        timestep = plain.scheduler.timesteps[Random("plan").sample(range(3), 1)[0]]
        margins = []
        for pair, generator in zip(PAIRS, batch.generators, strict=True):
            source = torch.Generator().manual_seed(Random(f"pair {generator.initial_seed()} 0").getrandbits(62))
            torch.randn((1, 4, 8, 8), generator=source)  # with which the call begins
            noise = torch.randn((1, 4, 8, 8), generator=source)
            text = plain.encode_prompt([pair["prompt"]], "cpu", 1, False)[0]
            shown = {"image_embeds": [PEOPLE.of(pair["user"], where="")[None, None]]}
            moved = []
            for name in (pair["winner"], pair["loser"]):
                mean = plain.vae.encode(2 * read_image(folder / name) - 1).latent_dist.mean
                noisy = plain.scheduler.add_noise(mean * plain.vae.config.scaling_factor, noise, timestep[None])
                tuned = pipe.unet(noisy, timestep, text, added_cond_kwargs=shown).sample
                base = plain.unet(noisy, timestep, text).sample
                moved.append((tuned - noise).square().mean() - (base - noise).square().mean())
            margins.append(-50.0 / 2 * (moved[0] - moved[1]))
    assert margins[2] == 0, "without a user the model is its own reference"
    assert min(abs(float(margin)) for margin in (margins[0], margins[1], margins[3])) > 1e-4
    expected = -torch.nn.functional.logsigmoid(torch.stack(margins)).mean()
    assert float(loss.value) == pytest.approx(float(expected), rel=1e-4)


def test_the_command_makes_a_user_of_a_file_of_pairs(
    folder: Path, catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli_vote, "load_catalog", lambda: catalog)
    monkeypatch.setattr(Redness, "image_features", lambda self, images: images.mean(dim=(2, 3)), raising=False)
    output = tmp_path / "users.safetensors"
    for name in ("alice", "bob"):
        command = ["user", name, str(folder / "pairs.jsonl"), "--reward", "redness", "--output", str(output)]
        result = CliRunner().invoke(app, command)
        assert result.exit_code == 0, result.output
    assert result.output == f"bob: 1 pairs; 2 users in {output}\n"
    again = CliRunner().invoke(app, command)
    assert again.output == f"bob: 1 pairs, in the place of an earlier embedding; 2 users in {output}\n"
    colours = [read_image(folder / f"{number}.png").mean(dim=(2, 3))[0] for number in range(2)]
    expected = colours[1] - colours[0]  # of bob's row alone
    torch.testing.assert_close(UserEmbeddings.read(output).vectors["bob"], expected / expected.norm())

    def beside(pairs: Any, encoder: Any) -> torch.Tensor:  # another process adds dave meanwhile
        file = UserEmbeddings.read(output)
        UserEmbeddings({**file.vectors, "dave": torch.ones(3)}, file.encoder).save(output)
        return torch.zeros(3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("draft_core.adapters.user_embeddings.embed_pairs", beside)
        result = CliRunner().invoke(app, command)
    assert set(UserEmbeddings.read(output).names) == {"alice", "bob", "dave"}, result.output
    result = CliRunner().invoke(app, ["user", "carol", *command[2:]])
    assert "no pair is of user 'carol'; it has pairs of alice" in " ".join(result.output.split())
    result = CliRunner().invoke(app, [*command, "--set", "weight=2"])
    assert "its users were embedded by redness, and redness, weight=2 sees other" in " ".join(result.output.split())
    result = CliRunner().invoke(app, ["user", "bob", str(tmp_path / "none.jsonl"), "--reward", "redness"])
    assert result.exit_code == 2
    assert "there is no such file; give a file of pairs" in result.output.replace("\n", "")
