"""What a notebook does: defaults, images between updates, a run with functions of one's own, and what Jupyter shows."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from PIL import Image

from draft_core import (
    DifferentiableSampler,
    DraftLV,
    Objective,
    StepPlan,
    Trainer,
    TrainSettings,
    add_lora,
    evaluate,
    load_recipe,
    run_recipe,
)
from draft_core.adapters.lora import lora_state, trainable
from draft_core.display import MOST, gallery, table
from draft_core.errors import DraftError
from draft_core.learners.direct import DirectLearner
from draft_core.registry.catalog import Catalog
from draft_core.reporting.run_record import load_images, read_run
from tests.support.runs import with_small_images, without_pages
from tests.support.tiny import GOOD, byte_tokenizer, tiny_pipe


def redness(images: torch.Tensor) -> torch.Tensor:
    red, green, blue = images.mean((-2, -1)).unbind(1)
    return red - (green + blue) / 2


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return byte_tokenizer(tmp_path_factory.mktemp("tokens"))


def sampler(tokenizer: Any, *, rank: int = 2) -> DifferentiableSampler:
    pipe = tiny_pipe(tokenizer=tokenizer)
    torch.manual_seed(0)
    add_lora(pipe, rank=rank)
    return DifferentiableSampler(pipe, num_inference_steps=2, guidance_scale=2.0)


def shown(html: str) -> list[Image.Image]:
    """The images that a piece of HTML carries."""
    found = re.findall(r'src="data:image/png;base64,([^"]+)"', html)
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found]


def test_a_trainer_of_defaults_is_the_one_that_says_them(tokenizer: Any) -> None:
    short, long = (
        Trainer(sampler(tokenizer), redness, prompts=["a", "b"], device="cpu"),
        Trainer(
            sampler(tokenizer),
            Objective({"redness": redness}),
            DirectLearner(DraftLV()),
            ["a", "b"],
            TrainSettings(),
            device="cpu",
        ),
    )
    first, second = next(iter(short)), next(iter(long))
    assert (first.scores, first.grad_norm) == (second.scores, second.grad_norm)
    assert first.grad_norm > 0
    for name, weight in lora_state(short.sampler.pipe).items():
        assert torch.equal(weight, lora_state(long.sampler.pipe)[name])
    for method in (DirectLearner().method, DraftLV()):
        assert method.plan(5, Random(0)) == StepPlan(5, grad_steps={4})
        assert method.renoising().copies == 2
    with pytest.raises(DraftError, match="Trainer: there are no prompts"):
        Trainer(sampler(tokenizer), redness, device="cpu")


def test_drawing_between_updates_changes_nothing(tokenizer: Any) -> None:
    of = {"settings": TrainSettings(steps=2, batch_size=2), "device": "cpu"}
    drawing, quiet = (Trainer(sampler(tokenizer), redness, prompts=["a", "b"], **of) for _ in range(2))
    state = torch.get_rng_state()
    before = drawing.draw(["a", "b"], seed=3)
    next(iter(drawing))
    after = drawing.draw(["a", "b"], seed=3, images_per_prompt=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert after.images.shape == (4, 3, 16, 16)
    assert not torch.equal(before.images, after.images[::2]), "it is the model as it is now"
    own = evaluate(drawing.sampler, drawing.objective, ["a", "b"], [3, 4], batch_size=2)
    assert torch.equal(own.images, after.images)
    assert torch.equal(own.scores["redness"], after.scores["redness"])
    reports = [[report.grad_norm for report in trainer] for trainer in (drawing, quiet)]
    assert reports[0] == reports[1][1:], "the updates are those of a run that drew nothing"


def test_a_lora_replaces_another_and_leaves_nothing_of_it(tokenizer: Any) -> None:
    used = sampler(tokenizer)
    with torch.no_grad():
        for weight in trainable(used.pipe):
            weight.add_(0.1)
    with pytest.raises(DraftError, match=r"carries a LoRA already \(default\).*add_lora\(..., replace=True\)"):
        add_lora(used.pipe, rank=2)
    torch.manual_seed(0)
    add_lora(used.pipe, rank=2, replace=True)
    fresh = sampler(tokenizer)
    assert lora_state(used.pipe).keys() == lora_state(fresh.pipe).keys()
    assert all(torch.equal(weight, lora_state(fresh.pipe)[name]) for name, weight in lora_state(used.pipe).items())
    plan, source = StepPlan(2, grad_steps=()), torch.Generator
    drawn = [one(["a"], plan=plan, generator=source().manual_seed(0)).images for one in (used, fresh)]
    assert torch.equal(*drawn)
    add_lora(used.pipe, rank=3, replace=True)
    assert {weight.shape[0] for name, weight in lora_state(used.pipe).items() if "lora_A" in name} == {3}


RUN = {
    **GOOD,
    "train": {"steps": 2, "batch_size": 2, "learning_rate": 3e-2},
    "evaluation": {"prompts": "tiny-heldout", "images_per_prompt": 1, "every": 2, "on_collapse": "warn"},
    "device": "cpu",
}


def test_a_run_tells_what_it_does_and_shows_what_came_out(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", with_small_images)
    updates: list[Any] = []
    evaluations: list[Any] = []
    recipe = load_recipe({**RUN, "output": str(tmp_path / "run")}, catalog=catalog)
    run = run_recipe(recipe, catalog, on_update=updates.append, on_evaluation=evaluations.append)
    record = read_run(tmp_path / "run")
    for told, written in ((updates, record.reports), (evaluations, record.evaluations)):
        assert [(one.update, one.scores) for one in told] == [(one.update, one.scores) for one in written]
    assert list(run.images) == ["before", "best", "after"]
    assert torch.equal(run.images["after"], load_images(run.folder, 2))
    run.plot().save(tmp_path / "curves.png")
    assert (tmp_path / "curves.png").read_bytes() == (run.folder / "curve.png").read_bytes() == run.plot()._repr_png_()
    html = run._repr_html_()
    assert run.outcome.headline in html
    assert f"<td>redness</td><td>{run.before.means()['redness']:.4g}</td>" in html
    assert [image.size for image in shown(html)] == [(9, 3)]


def test_a_function_that_fails_ends_the_run_in_one_sentence_and_it_goes_on(
    catalog: Catalog, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("draft_core.runs.run.write_report", without_pages)
    recipe = load_recipe({**RUN, "output": str(tmp_path / "run")}, catalog=catalog)

    def full(report: Any) -> None:
        raise OSError(f"no room at {report.update}")

    with pytest.raises(DraftError, match=r"on_update: it raised OSError: no room at 1 \(.*\); mend the function"):
        run_recipe(recipe, catalog, on_update=full)
    seen: list[int] = []
    run_recipe(recipe, catalog, on_update=lambda report: seen.append(report.update))
    assert seen == [1, 2]


def test_jupyter_shows_images_with_what_they_are_of(tokenizer: Any) -> None:
    one = sampler(tokenizer)
    rollout = one(["a <b>", "c"], plan=StepPlan(2, grad_steps={1}), generator=torch.Generator().manual_seed(0))
    html = rollout._repr_html_()
    assert "a &lt;b&gt;" in html
    assert "<b>" not in html
    first = shown(html)[0].resize((16, 16), Image.Resampling.NEAREST)
    level = (rollout.images[0].detach().clamp(0, 1) * 255).round().to(torch.uint8)
    assert first.getpixel((5, 0)) == tuple(level[:, 0, 5].tolist())
    drawn = evaluate(one, Objective({"redness": redness}, {"redness": 2.0}, {"redness": 0.5}), ["a"], [0, 1])
    assert f"a, seed 1, redness {float(drawn.scores['redness'][1]):.4g}" in drawn._repr_html_()
    objective = Objective({"redness": redness}, {"redness": 2.0}, {"redness": 0.5})
    assert "<td>redness</td><td>2</td><td>0.5</td><td>FunctionReward</td>" in objective._repr_html_()
    scores = objective(rollout.images.detach(), ["", ""])
    assert f"<td>0</td><td>{float(scores.total[0]):.4g}</td>" in scores._repr_html_()


def test_what_is_too_much_to_show_is_counted() -> None:
    assert "and 3 more" in table(["n"], [(number,) for number in range(MOST + 3)])
    assert "and 2 more" in gallery([Image.new("RGB", (2, 2))] * MOST, ["x"] * MOST, of=MOST + 2)
    assert "more" not in table(["n"], [(1,)])
