"""One process of several: what tests.support.ranks runs for test_distributed.py.

What the gradient cases build is also built alone by the test, with as many images in one batch.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import fsdp  # noqa: F401 once for all
from torch.distributed.tensor import DTensor

from draft_core import DifferentiableSampler, DraftK, DraftLV, Objective, PrefixReuse, Trainer
from draft_core.adapters.lora import adapters_off, add_lora, lora_state
from draft_core.errors import RecipeError
from draft_core.learners.direct import DirectLearner
from draft_core.learners.surrogate_learner import SurrogateLearner
from draft_core.recipe.load import load_recipe
from draft_core.registry.catalog import Catalog
from draft_core.registry.gradient_free import DDPO, DPO, GRPO, Importance
from draft_core.registry.targets import Target
from draft_core.runs.build import build_learner
from draft_core.runs.run import run_recipe
from draft_core.sampling.pipelines import find_denoisers
from draft_core.surrogates.settings import SurrogateSettings
from draft_core.surrogates.surrogate import Surrogate
from draft_core.training.settings import RegularizerSettings, TrainSettings
from tests.support.families import FAMILIES
from tests.support.runs import without_curves
from tests.support.thorough import some
from tests.support.tiny import GOOD, Redness, RednessConfig, byte_tokenizer, tiny_catalog, tiny_pipe, with_lora

PROMPTS = ["a", "b", "c"]

# Name, after the family if it is not the tiny pipeline's -> settings of a trainer. With
# a large beta DPO magnifies the rounding of a step.
ALL: dict[str, dict[str, Any]] = {
    "draft-k": {"method": DraftK(k=2)},
    "draft-lv": {"method": DraftLV(resamples=2)},
    "prefix reuse": {"method": PrefixReuse(updates=4)},
    "prefix reuse that drifts": {"method": PrefixReuse(updates=4, max_drift=1e-3)},
    "accumulation": {"method": DraftLV(resamples=1), "gradient_accumulation_steps": 2, "kl_relative": 0.7},
    "penalties and scale": {"method": DraftK(k=1), "kl": 0.5, "lora_norm": 0.1, "normalize": "scale"},
    "sharded": {"method": DraftLV(resamples=1), "gradient_accumulation_steps": 2, "sharding": "full"},
    "ddpo": {"method": DDPO(minibatches=2, least=2), "kl": 0.5, "steps": 3},
    "grpo": {"method": GRPO(inner_epochs=2, steps=1), "images_per_prompt": 2, "gradient_accumulation_steps": 2},
    "importance": {"method": Importance(fits=2, levels=2, buffer=5, acceptance_rate=0.5), "kl": 0.5, "steps": 3},
    "importance of all": {"method": Importance(fits=1, weighting="softmax", path_weights=False)},
    "sharded importance": {"method": Importance(fits=1, levels=1, acceptance_rate=1.0), "kl": 0.5, "sharding": "full"},
    "dpo": {"method": DPO(fits=2), "kl": 0.5, "images_per_prompt": 2},
    "Stable Diffusion 3, ddpo": {"method": DDPO(least=2, steps=1), "kl": 0.5},
    "Stable Diffusion 3, dpo": {"method": DPO(beta=20.0), "kl": 0.5, "images_per_prompt": 2},
    "Stable Diffusion 3, grpo": {"method": GRPO(steps=1), "kl": 0.5, "images_per_prompt": 2},
    "Stable Diffusion 3, importance": {"method": Importance(fits=1, levels=1, acceptance_rate=1.0), "kl": 0.5},
    "FLUX.1, ddpo": {"method": DDPO(least=2, steps=1), "kl": 0.5},
    "FLUX.1, dpo": {"method": DPO(beta=20.0), "kl": 0.5, "images_per_prompt": 2},
    "target": {"method": Target(last=2, refresh=2, size=6, fits=2), "kl": 0.5, "steps": 3},
    "FLUX.1, grpo": {"method": GRPO(steps=1), "kl": 0.5, "images_per_prompt": 2},
    "FLUX.1, importance": {"method": Importance(fits=1, levels=1, acceptance_rate=1.0), "kl": 0.5},
    "surrogate": {"method": DraftK(k=1), "surrogate": {}, "kl": 0.5, "steps": 3},
    "surrogate of images within prompts": {
        "method": DraftLV(resamples=1),
        "surrogate": {"space": "image", "pairs": "prompt", "refresh": 2},
        "images_per_prompt": 2,
        "gradient_accumulation_steps": 2,
        "steps": 3,
    },
    "sharded and recomputed": {"method": DraftK(k=2), "sharding": "full", "recompute": True, "kl": 0.5},
}
CASES = some(
    ALL,
    *("draft-lv", "prefix reuse that drifts", "accumulation", "penalties and scale", "ddpo", "grpo", "importance"),
    *("dpo", "Stable Diffusion 3, grpo", "target", "surrogate", "sharded and recomputed"),
)


def make_trainer(
    folder: Path,
    processes: int,
    *,
    kl: float = 0.0,
    kl_relative: float = 0.0,
    recompute: bool = False,
    family: str | None = None,
    surrogate: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Trainer:
    """A trainer whose processes together make four images in a pass.

    Arguments:
        family: of a flow model, in the place of the tiny pipeline.
    """
    method, lora_norm = settings.pop("method"), settings.pop("lora_norm", 0.0)
    learner, objective = build_learner(method, Catalog()), Objective({"redness": Redness(RednessConfig())})
    call: dict[str, Any]
    if family is None:
        pipe = with_lora(tiny_pipe(tokenizer=byte_tokenizer(folder)))
        call = {"guidance_scale": 3.0, "eta": 0.0 if learner.needs_gradient else 1.0}
    else:
        known = next(known for known in FAMILIES if known.name == family)
        pipe = with_lora(known.pipe())
        call = {**known.call(torch.float32), "negative_prompt": "", "noise": 0.7}
    sampler = DifferentiableSampler(
        pipe,
        num_inference_steps=2,
        **call,
        gradient_checkpointing=recompute,
        base_model=partial(adapters_off, pipe) if kl or kl_relative else None,
    )
    shared = {"steps": 2, "batch_size": 4 // processes, "learning_rate": 3e-2, "max_grad_norm": 1e9}
    return Trainer(
        sampler,
        objective,
        learner if surrogate is None else on_a_surrogate(learner, objective, batch_size=6 // processes, **surrogate),
        PROMPTS,
        TrainSettings(**{**shared, **settings}),
        regularizers=RegularizerSettings(kl=kl, kl_relative=kl_relative, lora_norm=lora_norm),
        device="cpu",
    )


def settings_of(case: str) -> dict[str, Any]:
    """What `make_trainer` is given for a case, beside the folder and the number of processes."""
    family, *method = case.split(", ")
    return {"family": family, **CASES[case]} if method else CASES[case]


def on_a_surrogate(learner: Any, objective: Objective, *, batch_size: int, **settings: Any) -> SurrogateLearner:
    """The learner on a small surrogate of its reward; warm-up and buffer are no multiples of the batch."""
    small = {"warmup": 17, "warmup_fits": 6, "fits": 2, "buffer": 19, "batch_size": 8, "width": 4}
    surrogate = Surrogate(
        SurrogateSettings(**{**small, **settings}), seed=0, within_prompt=settings.get("pairs") == "prompt"
    )
    return SurrogateLearner(learner, {"redness": surrogate}, objective, prompts=PROMPTS, seed=0, batch_size=batch_size)


def gradients(one: Trainer) -> dict[str, Any]:
    """The gradients of the optimiser steps of two updates, and what was reported of them."""
    taken: list[torch.Tensor] = []
    step = one.optimizer.step

    def spy() -> None:
        taken.append(torch.cat([parameter.grad.flatten() for parameter in one.parameters]))
        step()

    one.optimizer.step = spy
    reports = []
    for report in one:
        reports.append([report.loss, report.reward, report.grad_norm, report.optimizer_steps, report.reward_queries])
        if isinstance(one.learner, SurrogateLearner):
            reports[-1] += report.learner.values()
    return {"gradients": taken, "reports": reports}


def held(denoiser: torch.nn.Module) -> float:
    """How much of the frozen weights this process holds."""
    frozen = [weight for weight in denoiser.parameters() if not weight.requires_grad]
    local = sum(weight.to_local().numel() if isinstance(weight, DTensor) else weight.numel() for weight in frozen)
    return local / sum(weight.numel() for weight in frozen)


def recipe_of(folder: Path, catalog: Any, *overrides: str) -> Any:
    """A short run with evaluations, held-out scores and checkpoints, four images an update."""
    data = {
        **GOOD,
        "train": {"steps": 4, "batch_size": 2, "learning_rate": 3e-2},
        "evaluation": {"prompts": "tiny-heldout", "count": 2, "images_per_prompt": 2, "every": 2, "tolerance": 99},
        "metrics": [{"kind": "brightness"}],
        "checkpoint": {"every": 2, "keep": 9},
        "device": "cpu",
        "output": str(folder / "run"),
    }
    return load_recipe(data, overrides, catalog=catalog)


class Drawn(DirectLearner):
    """A learner with a trained part of its own, whose weights and buffers it draws."""

    def __init__(self) -> None:
        super().__init__(DraftK(k=1))
        self.value = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
        torch.nn.init.normal_(self.value[1].running_mean)

    def modules(self) -> Mapping[str, torch.nn.Module]:
        return {"value": self.value}


def drawn_weights(folder: Path, seed: int) -> dict[str, dict[str, torch.Tensor]]:
    """Weights of a LoRA and of a learner, drawn from `seed`, before a trainer has them and after."""
    pipe = tiny_pipe(tokenizer=byte_tokenizer(folder))
    torch.manual_seed(seed)
    add_lora(pipe, rank=2)
    learner = Drawn()

    def weights() -> dict[str, torch.Tensor]:
        found = {**lora_state(pipe), **learner.value.state_dict()}
        return {name: tensor.detach().clone() for name, tensor in found.items()}

    before = weights()
    sampler = DifferentiableSampler(pipe, num_inference_steps=2)
    Trainer(sampler, Objective({"redness": Redness(RednessConfig())}), learner, ["a"], TrainSettings(), device="cpu")
    return {"before": before, "after": weights()}


def main(folder: Path) -> None:
    """The gradients of all cases, and a whole run."""
    torch.set_num_threads(1)
    without_curves(pytest.MonkeyPatch())
    place = os.environ["RANK"]
    found = {}
    for name in CASES:
        one = make_trainer(folder / f"tokens {place}", 2, **settings_of(name))
        (denoiser,) = find_denoisers(one.sampler.pipe).values()
        found[name] = {**gradients(one), "held": held(denoiser)}
    torch.save(drawn_weights(folder / f"tokens {place}", int(place)), folder / f"drawn-{place}.pt")
    torch.save(found, folder / f"gradients-{place}.pt")
    catalog = tiny_catalog(folder / "catalog")  # the test has made it: of several processes only one can save
    lines: list[str] = []

    def progress(stage: str, done: int, total: int, note: str) -> None:
        lines.append(f"{stage} {done} {note}")

    run_recipe(recipe_of(folder, catalog), catalog, progress=progress)
    (folder / f"lines-{place}").write_text("\n".join(lines))
    if place == "0":
        shutil.copytree(folder / "run", folder / "first")
    (folder / f"refused-{place}").write_text(once_more(folder, catalog))


def once_more(folder: Path, catalog: Any) -> str:
    """Further runs of this program: one that is refused, one in another precision, and the first, taken up again."""
    try:
        run_recipe(recipe_of(folder, catalog), catalog)
    except RecipeError as error:
        refused = str(error)
    other = ["train.mixed_precision=bf16", "train.steps=1", f"output={folder / 'other'}", "evaluation.scales=[]"]
    run_recipe(recipe_of(folder, catalog, *other), catalog)
    run_recipe(recipe_of(folder, catalog, "train.steps=5"), catalog, resume=True)
    return refused
