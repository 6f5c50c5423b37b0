"""The library's `sample`: images of a pipeline with or without a LoRA, which `draft sample` puts into a grid."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from draft_core.adapters.files import USERS_FILE, load_lora, lora_files, run_around, users_folder
from draft_core.adapters.lora import adapters_scaled, is_adapted
from draft_core.adapters.user_embeddings import UserEmbeddings
from draft_core.adapters.users import load_users, processors_of, users_scaled
from draft_core.errors import DraftError, RecipeError, list_of_prompts, require_finite, require_from_one
from draft_core.evaluation.evaluate import evaluate
from draft_core.frames import still
from draft_core.prompt_rows import Column, PromptRow
from draft_core.recipe.load import load_recipe
from draft_core.recipe.schema import ModelConfig
from draft_core.recipe.yaml_text import read_yaml
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import RewardConfig
from draft_core.registry.validation.messages import validate
from draft_core.reporting.run_record import METRICS, RECIPE
from draft_core.rewards.columns import CallColumns
from draft_core.rewards.objective import Objective
from draft_core.runs.build import build_sampler
from draft_core.runs.cut_prompts import cut_prompts
from draft_core.runs.pipeline_loading import guided
from draft_core.runs.progress import Progress, image_stage, silent
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.search.starts import images_from
from draft_core.training.precision import AUTOCAST

STEPS = 50  # diffusers' own default; where neither the caller, nor the LoRA's run, nor the model's plugin says another
SOURCE = ("pipeline", "config", "variant")  # of a recipe's model: they say how that one's files are read
DRAWN_ONLY = {"gradient_checkpointing": False}  # there is no backward pass
OF_EVALUATION = ("num_inference_steps", "guidance_scale")  # a run's evaluation may have its own


def sample(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    lora: Path | str | None = None,
    scales: Sequence[float] = (1.0,),
    images_per_prompt: int = 4,
    steps: int | None = None,
    guidance: float | None = None,
    seed: int = 0,
    latents: torch.Tensor | None = None,
    keep: Callable[[torch.Tensor], torch.Tensor] = still,
    user: str | None = None,
    catalog: Catalog | None = None,
    progress: Progress = silent,
) -> torch.Tensor:
    """Images (F, P, S, 3, H, W) in [0, 1] for F scales, P prompts and S images of each; of videos the middle frame.

    An image is the one that plain diffusers makes from `torch.Generator("cpu").manual_seed(seed + i)`. A LoRA that lies
    in the folder of a run is drawn as that run's evaluations were: steps, guidance, call, precision of the weights.

    Arguments:
        pipeline: a diffusers pipeline, which stays on its device, or what `load_pipeline` takes: an alias, a folder, a
            hub name. That is drawn with on a GPU where there is one, unless the run of the LoRA says `device: cpu`.
        prompts: the texts themselves, at least one.
        lora: the folder of a run or of a LoRA, or a file; it stays loaded in a pipeline that was given. Also a run that
            trained attention to users.
        scales: F finite factors of the LoRA; 0 is the base model, 1 what was trained.
        images_per_prompt: S, 1 or more, from the seeds `seed`, `seed + 1`, ...
        steps: of the sampler, 1 or more; if left out as in the run of the LoRA, else the alias' own number, else 50.
        guidance: scale of the guidance; if left out likewise, at last the pipeline's default.
        latents: what the images start from in the place of their seeds' noise, (P, S, ...), as `optimise_noise` finds
            them; what the call draws beside it stays that of the seeds.
        keep: what is kept of images (N, 3, H, W), or videos (N, T, 3, H, W): one row each; with `lambda videos: videos`
            all frames of videos come back, (F, P, S, T, 3, H, W). Not used with `latents`.
        user: whom the images are for, of a run that was trained on users: a name, or several with weights,
            `alice:0.7,bob:0.3`; "" for nobody. None takes what the prompts' rows say.
        catalog: what is installed; loaded if left out.
        progress: called with a stage, how many images are done, of how many, and a note.

    Raises:
        RecipeError: if there is no such model, or no such user.
        DraftError: if the LoRA cannot be loaded into it, or there is none to scale; if the latents do not fit.
    """
    prompts = list_of_prompts(prompts, where="sample")
    if not scales:
        raise DraftError("there are no scales", where="sample", next="give at least one, such as 1.0")
    require_from_one(images_per_prompt, where="sample: images_per_prompt")
    if latents is not None and latents.shape[:2] != (len(prompts), images_per_prompt):
        raise DraftError(
            f"they are {tuple(latents.shape)} for {len(prompts)} prompts and {images_per_prompt} images of each",
            where="sample: latents",
            next="give (prompts, images of each, ...)",
        )
    seeds = range(seed, seed + images_per_prompt)
    if user is not None:
        prompts = for_user(prompts, user, None if lora is None else Path(lora))
    with drawing(
        pipeline, prompts, lora=lora, scales=scales, steps=steps, guidance=guidance, catalog=catalog, progress=progress
    ) as drawn:
        made = []
        for scale in scales:
            told = image_stage("sample" if len(scales) == 1 else f"scale {scale:g}", progress)
            how: dict[str, Any] = {"batch_size": images_per_prompt, "autocast": drawn.autocast, "progress": told}
            with drawn.scaled(scale):
                if latents is None:
                    images = evaluate(drawn.sampler, Objective({}), prompts, seeds, keep=keep, **how).images
                else:
                    of_images = [prompt for prompt in prompts for _ in seeds]
                    start = latents.flatten(0, 1)
                    images = images_from(drawn.sampler, of_images, [*seeds] * len(prompts), start, **how)
            made.append(images.view(len(prompts), images_per_prompt, *images.shape[1:]))
    return torch.stack(made)


@dataclass(frozen=True)
class Drawing:
    """A pipeline that is loaded with its LoRA, and how it draws.

    Arguments:
        sampler: with the steps and the guidance that hold.
        autocast: makes the precision context of its calls.
    """

    sampler: DifferentiableSampler
    autocast: Callable[[], AbstractContextManager[Any]]

    def scaled(self, scale: float) -> AbstractContextManager[Any]:
        """The LoRA, or what users add, where there is one, times `scale` inside."""
        pipe = self.sampler.pipe
        if processors_of(pipe):
            return users_scaled(pipe, scale)
        return adapters_scaled(pipe, scale) if is_adapted(pipe) else nullcontext()


@contextmanager
def drawing(
    pipeline: Any,
    prompts: Sequence[str],
    *,
    lora: Path | str | None = None,
    scales: Sequence[float] = (1.0,),
    steps: int | None = None,
    guidance: float | None = None,
    recomputes: Mapping[str, Any] = DRAWN_ONLY,
    catalog: Catalog | None = None,
    progress: Progress = silent,
) -> Iterator[Drawing]:
    """A pipeline to draw with inside, as `sample` takes it.

    Arguments:
        pipeline, prompts, lora, steps, guidance, catalog, progress: as in `sample`.
        scales: those that the LoRA will be drawn at.
        recomputes: fields of a recipe's model that say how a backward pass saves memory, over those of the LoRA's run.

    Raises:
        RecipeError, DraftError: as `sample`.
    """
    catalog = catalog if catalog is not None else load_catalog()
    pipeline = str(pipeline) if isinstance(pipeline, Path) else pipeline
    lora = Path(lora) if lora is not None else None
    require_from_one(1 if steps is None else steps, where="sample: steps")
    for scale in scales:
        require_finite(scale, where=f"scales {list(scales)}")
    users = users_folder(lora) if lora else None
    if lora and users is None:
        lora_files(lora)
        if not isinstance(pipeline, str) and is_adapted(pipeline):
            raise DraftError(
                "the pipeline carries a LoRA already",
                where=f"sample: lora {lora}",
                next="leave out `lora` to draw with that one, or take it off first, pipe.unload_lora_weights()",
            )
    name = pipeline if isinstance(pipeline, str) else type(pipeline).__name__
    settings = _settings(name, lora, {"num_inference_steps": steps, "guidance_scale": guidance}, recomputes, catalog)
    sampler = _sampler(pipeline, settings.model, catalog, prompts)
    if users is not None:
        shown = load_users(sampler.pipe, users, column=_column_of_users(users))
        sampler.columns = replace(sampler.columns, computed=shown)
    elif lora:
        load_lora(sampler.pipe, lora)
    if isinstance(pipeline, str) and (device := _device(settings.device)).type != sampler.pipe.device.type:
        sampler.pipe.to(device)
    if settings.run:
        progress("note", 0, 0, f"as the run in {settings.run} was evaluated: {_shown(settings)}")
    if users is None and not is_adapted(sampler.pipe) and list(scales) != [1.0]:
        raise DraftError("there is no LoRA to scale", where=f"scales {list(scales)}", next="give one as `lora`")
    with cut_prompts() as cut:
        cut.prompts, cut.progress = prompts, progress
        yield Drawing(sampler, partial(_autocast, settings.mixed_precision, sampler.pipe.device.type))


def for_user(prompts: Sequence[str], user: str, lora: Path | None) -> list[str]:
    """The prompts for a user, whatever their rows say.

    Raises:
        DraftError: if what is drawn with was not trained on users, or does not know this one.
    """
    folder = None if lora is None else users_folder(lora)
    if folder is None:
        raise DraftError(
            "there is no model with users to draw with",
            where=f"user {user!r}",
            next="give a run that was trained on users as `lora`",
        )
    UserEmbeddings.read(folder / USERS_FILE).of(user, where="user")
    column = _column_of_users(folder)
    return [
        PromptRow(str(prompt), {**getattr(prompt, "columns", {}), column: user}, getattr(prompt, "folder", None))
        for prompt in prompts
    ]


def _column_of_users(folder: Path) -> str:
    """The column of the prompts that names the user of each, as in the run around what was trained."""
    run = run_around(folder, RECIPE, METRICS)
    model = read_yaml(run / RECIPE)[2].get("model") if run else None
    users = model.get("users") if isinstance(model, Mapping) else None
    return str(users.get("column", "user")) if isinstance(users, Mapping) else "user"


def rewards_of(lora: Path, catalog: Catalog) -> Sequence[RewardConfig]:
    """The rewards of the run that a LoRA lies in; none where it lies in no run.

    Raises:
        RecipeError, PluginError: as `load_recipe`, of that run's recipe.
    """
    run = run_around(lora, RECIPE, METRICS)
    return load_recipe(run / RECIPE, catalog=catalog).rewards if run else ()


@dataclass(frozen=True)
class _Settings:
    """How images are drawn.

    Arguments:
        run: the folder of the run that this is taken from, None where there is none.
        mixed_precision, device: as in the recipe.
    """

    model: ModelConfig
    run: Path | None = None
    mixed_precision: str = "no"
    device: Any = None


def _settings(
    name: str, lora: Path | None, said: Mapping[str, Any], recomputes: Mapping[str, Any], catalog: Catalog
) -> _Settings:
    """Those of the run that the LoRA lies in, else the alias' own, with what the caller says instead."""
    given = {field: value for field, value in said.items() if value is not None}
    if lora is not None and (run := run_around(lora, RECIPE, METRICS)):
        _, _, recipe = read_yaml(run / RECIPE)
        fields, train = recipe.get("model"), recipe.get("train")
        if not isinstance(fields, Mapping):
            raise RecipeError("it says nothing of the model", where=str(run / RECIPE), next="give a copy of the LoRA")
        mixed = train.get("mixed_precision", "no") if isinstance(train, Mapping) else "no"
        if mixed not in ["no", *AUTOCAST]:
            raise RecipeError(
                f"{mixed!r} is no precision",
                where=f"{run / RECIPE}: train.mixed_precision",
                next=f"give no, {' or '.join(AUTOCAST)}",
            )
        evaluation = recipe.get("evaluation")
        evaluation = evaluation if isinstance(evaluation, Mapping) else {}
        evaluated = {field: evaluation[field] for field in OF_EVALUATION if evaluation.get(field) is not None}
        own = name == fields.get("pretrained")
        kept = {field: value for field, value in fields.items() if own or field not in SOURCE}
        drawn = {
            **kept,
            "pretrained": name,
            "lora": {},
            "users": None,
            "decoder": None,
            "noise": 0.0,
            **recomputes,
            **evaluated,
            **given,
        }
        model = validate(ModelConfig, drawn, catalog, where=str(run / RECIPE))
        return _Settings(model, run, mixed, recipe.get("device"))
    known = catalog.pretrained.get(name)
    call = dict(known.spec.call) if known else {}
    drawn = {"pretrained": name, "num_inference_steps": call.pop("num_inference_steps", STEPS), **recomputes, **given}
    call = {field: value for field, value in call.items() if field not in given}
    return _Settings(validate(ModelConfig, {**drawn, "call": call}, catalog, where="sample"))


def _sampler(pipeline: Any, model: ModelConfig, catalog: Catalog, prompts: Sequence[str]) -> DifferentiableSampler:
    """Of a pipeline that was given, as it is; of a name as a run builds it.

    Raises:
        DraftError: if its call takes an image, say, of every prompt's row, and a prompt has none.
    """
    example = prompts[0]
    for argument, column in model.columns.items():
        for prompt in prompts:
            Column(column).of(prompt, where=f"model.columns.{argument} of the run", may_be_blank=True)
    if isinstance(pipeline, str):
        return build_sampler(model, catalog=catalog, example=example)
    call = {**model.call, **guided(pipeline, model.guidance_scale)}
    return DifferentiableSampler(
        pipeline,
        num_inference_steps=model.num_inference_steps,
        gradient_checkpointing=model.gradient_checkpointing,
        decode=model.decode,
        columns=CallColumns(model.columns, example if isinstance(example, PromptRow) else None),
        **call,
    )


def _shown(settings: _Settings) -> str:
    """What of the settings changes the images."""
    model = settings.model.model_dump(mode="json", exclude={"pretrained", "lora", *SOURCE}, exclude_defaults=True)
    steps = {"num_inference_steps": settings.model.num_inference_steps}
    mixed = {} if settings.mixed_precision == "no" else {"mixed_precision": settings.mixed_precision}
    shown = {
        **steps,
        **{field: value for field, value in model.items() if field != "call"},
        **settings.model.call,
        **mixed,
    }
    return ", ".join(f"{field} {value}" for field, value in shown.items())


def _device(said: Any) -> torch.device:
    """Where a model is drawn with, as a training chooses it: on a GPU where there is one, if not on the CPU `said`."""
    found = torch.accelerator.current_accelerator() if said != "cpu" and torch.accelerator.is_available() else None
    return found or torch.device("cpu")


def _autocast(mixed_precision: str, device: str) -> AbstractContextManager[Any]:
    """The precision that a run's evaluations have."""
    return torch.autocast(device, AUTOCAST[mixed_precision]) if mixed_precision in AUTOCAST else nullcontext()
