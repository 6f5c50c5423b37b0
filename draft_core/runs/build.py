"""From what was said to what happens: a recipe becomes a trainer, a kind a reward, a name a pipeline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from draft_core.adapters.adapter import Adapter
from draft_core.adapters.lora_adapter import Lora
from draft_core.adapters.user_embeddings import UserEmbeddings
from draft_core.adapters.users import UserAdapter, UserArgument
from draft_core.errors import PluginError, RecipeError
from draft_core.learners.learner import Learner
from draft_core.learners.surrogate_learner import SurrogateLearner
from draft_core.prompt_rows import PromptRow
from draft_core.recipe.columns import columns_of
from draft_core.recipe.paths import with_absolute_paths, working_directory
from draft_core.recipe.prompt_lists import PromptList
from draft_core.recipe.resolve import locate_decoder, locate_pretrained, require_recipe, rows_of, training_prompts
from draft_core.recipe.rewards import within_prompt
from draft_core.recipe.schema import ModelConfig, RecipeBase, entry_type
from draft_core.registry.catalog import Catalog, load_catalog
from draft_core.registry.config import MethodConfig, QuantileCap, RewardConfig
from draft_core.registry.environments import Place, RewardInEnvironment, described
from draft_core.registry.validation.messages import validate
from draft_core.reward_process.making import check_device, made_by_plugin, made_reward
from draft_core.rewards.columns import CallColumns
from draft_core.rewards.objective import Objective, Rewards, as_objective
from draft_core.runs.loading.classes import set_scheduler
from draft_core.runs.loading.compilation import check_compiler, compile_denoisers
from draft_core.runs.loading.quantization import check_machine
from draft_core.runs.pipeline_loading import (
    LOADING,
    check_files,
    check_model,
    guided,
    load_pipeline,
    read_images,
    refuse_twice,
    with_tuples,
)
from draft_core.sampling.decoders.tiles import tile_decode
from draft_core.sampling.decoders.tiny import load_tiny_decoder
from draft_core.sampling.pipelines import KeywordError, check_keywords
from draft_core.sampling.prompt_cache import remember_prompts
from draft_core.sampling.sampler import DifferentiableSampler
from draft_core.setting import images_per_prompt
from draft_core.surrogates.surrogate import Surrogate
from draft_core.tracking.trackers import require_trackers
from draft_core.training.distributed import Processes
from draft_core.training.learner_contract import require_columns, require_own_values, require_regularized
from draft_core.training.precision import autocast
from draft_core.training.scoring import check_images
from draft_core.training.sharding import require_several
from draft_core.training.trainer import Trainer
from draft_core.workers.remote_reward import RemoteReward
from draft_core.workers.worker import Worker

LEARNER_MEMBERS = ("needs_gradient", "yields_divergence", "losses", "modules", "state_dict", "load_state_dict")


def build(
    recipe: RecipeBase,
    *,
    rewards: Rewards | None = None,
    catalog: Catalog | None = None,
    prompts: PromptList | None = None,
) -> Trainer:
    """The trainer of a recipe: pipeline loaded, LoRA added, rewards built, everything on its device.

    Arguments:
        recipe: what `load_recipe` gives.
        rewards: what to train on in the place of the recipe's rewards: an `Objective`, or a module or a function of
            images and prompts, or several by name.
        catalog: what is installed; loaded if left out.
        prompts: those of the recipe where they are resolved already, with their columns; else its list or file is read
            here.

    Raises:
        DraftError: if the device, a package or a weight is missing; what costs nothing is checked first.
    """
    require_recipe(recipe, where="build")
    given = None if rewards is None else as_objective(rewards)
    if given is not None:
        _refuse_surrogates(recipe)
    catalog = catalog if catalog is not None else load_catalog()
    _check_machine(recipe)
    evaluated = recipe.evaluation.guidance_scale if recipe.evaluation else None
    check_model(recipe.model, catalog, evaluated_guidance=evaluated)
    prompts = prompts if prompts is not None else training_prompts(recipe, catalog)
    if given is not None and given.columns:
        prompts = replace(
            prompts, prompts=tuple(rows_of(prompts))
        )  # with all columns: the recipe does not say which it reads
    check_files(recipe, prompts.prompts, catalog)
    learner = build_learner(recipe.method, catalog, seed=recipe.train.seed)
    require_columns(learner, prompts.columns)
    require_regularized(learner, recipe.regularizers)
    objective = build_objective(recipe.rewards, catalog) if given is None else given
    gating = [metric for metric in recipe.metrics if metric.kind in recipe.regularizers.kl_gate]
    sampler = build_sampler(recipe.model, catalog=catalog, example=prompts.prompts[0])
    adapter = build_adapter(recipe.model, sampler.pipe, seed=recipe.train.seed)
    if recipe.model.compile == "regional":
        compile_denoisers(sampler.pipe)
    if isinstance(adapter, UserAdapter):
        shown = UserArgument(sampler.pipe, adapter.users, adapter.column)
        sampler.columns = replace(sampler.columns, computed=shown)
    if any(reward.surrogate is not None for reward in recipe.rewards):
        learner = with_surrogates(learner, recipe, objective, prompts.prompts, catalog)
    if recipe.regularizers.asks_base_model or getattr(learner, "needs_base_model", False):
        sampler.base_model = adapter.base_model
    trainer = Trainer(
        sampler,
        objective,
        learner,
        prompts.prompts,
        recipe.train,
        regularizers=recipe.regularizers,
        adapter=adapter,
        device=recipe.device,
        columns=prompts.columns,
        gate=build_objective(gating, catalog) if gating else None,
    )
    require_own_values(trainer.sampler, recipe.train)
    trainer.sampler.frames = trainer.batches.frames(recipe.train.frames, 0)  # a forecast samples before an update
    return trainer


def _refuse_surrogates(recipe: RecipeBase) -> None:
    for place, reward in enumerate(recipe.rewards):
        if reward.surrogate is not None:
            raise RecipeError(
                "a surrogate learns this reward, and others are given in its place",
                where=f"rewards.{place}.surrogate",
                next="leave it out, or leave out `rewards`",
            )


def build_adapter(model: ModelConfig, pipe: Any, *, seed: int) -> Adapter:
    """What is trained, attached to the pipeline: the recipe's LoRA, or attention to its users, drawn from `seed`.

    Raises:
        RecipeError: if no layer matches its targets.
        CheckpointError: if the LoRA to go on from does not fit.
    """
    lora, users = model.lora, model.users
    adapter: Adapter
    if users is None:
        adapter = Lora(pipe, rank=lora.rank, alpha=lora.alpha, targets=lora.targets, init=lora.init)
    else:
        adapter = UserAdapter(pipe, UserEmbeddings.read(users.file), column=users.column)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        adapter.attach()
    return adapter


def build_sampler(model: ModelConfig, *, catalog: Catalog, example: str = "") -> DifferentiableSampler:
    """The sampler of a recipe's model.

    Arguments:
        example: one of the prompts that it will be given, which carries what the call reads of its columns.

    Raises:
        RecipeError: if the pipeline's call does not take what a field of the model says.
        DraftError: if the model cannot be loaded, or not be driven.
    """
    refuse_twice(model)
    call = read_images(model.call)
    decoder = None
    if model.decoder is not None:
        location = locate_pretrained(model.pretrained, catalog)
        with LOADING:
            decoder = load_tiny_decoder(locate_decoder(model.decoder), of=location, dtype=getattr(torch, model.dtype))
    pipe = load_pipeline(
        model.pretrained,
        dtype=model.dtype,
        pipeline=model.pipeline,
        config=model.config,
        variant=model.variant,
        quantization=model.quantization,
        catalog=catalog,
    )
    if model.scheduler is not None:
        set_scheduler(pipe, model.scheduler)
    if model.tiled_decode:
        tile_decode(pipe, model.tiled_decode)
    if model.remember_prompts:
        remember_prompts(pipe)
    guidance = guided(pipe, model.guidance_scale)
    try:
        check_keywords(pipe, {**guidance, **call}, takes_steps=True)  # before they meet the sampler's own
        return DifferentiableSampler(
            pipe,
            num_inference_steps=model.num_inference_steps,
            gradient_checkpointing=model.gradient_checkpointing,
            decode=model.decode,
            decoder=decoder,
            noise=model.noise,
            columns=CallColumns(model.columns, example if isinstance(example, PromptRow) else None),
            **guidance,
            **with_tuples(pipe, call),
        )
    except KeywordError as error:
        said = [field for field in ("call", "columns") if error.keyword in getattr(model, field)]
        field = f"model.{(*said, error.keyword)[0]}"
        steps = "use another pipeline; the library's DifferentiableSampler takes None there"
        raise RecipeError(
            error.what,
            where=f"{field}: {error.where}",
            next=steps if error.keyword == "num_inference_steps" else error.next,
        ) from error


def build_learner(config: MethodConfig, catalog: Catalog, *, seed: int = 0) -> Learner:
    """What the method's factory makes of its config, its random weights drawn by torch from `seed`.

    Raises:
        PluginError: if the factory raises anything but a `DraftError`, or makes no learner, or one that contradicts
            what its `MethodSpec` says.
    """
    entry = catalog.method(config.kind)
    where = f"method {config.kind!r} of {entry.distribution}"
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        learner = made_by_plugin(entry.spec.load(), config, where)
    if missing := [name for name in LEARNER_MEMBERS if not hasattr(learner, name)]:
        raise PluginError(
            f"its factory made {type(learner).__name__}, which has no {missing[0]}", where=where, next="tell its author"
        )
    could = ("gates_divergence", "trains_through_sampler")  # and where its spec does not say so, is not asked to
    for name in ("needs_gradient", "yields_divergence", *could):
        said, found = getattr(entry.spec, name), getattr(learner, name, False)
        if said != found and (said or name not in could):
            raise PluginError(
                f"its spec says {name} = {said}, its learner {found}", where=where, next="tell its author"
            )
    made: Learner = learner
    return made


def with_surrogates(
    learner: Learner, recipe: RecipeBase, objective: Objective, prompts: Sequence[str], catalog: Catalog
) -> SurrogateLearner:
    """The learner, trained on the surrogates that rewards of the recipe have.

    Arguments:
        objective: the recipe's rewards, in its order.
        prompts: of the training.
    """
    seed = recipe.train.seed
    surrogates = {
        name: Surrogate(reward.surrogate, seed=seed, within_prompt=within_prompt(reward, catalog))
        for name, reward in zip(objective.rewards, recipe.rewards, strict=True)
        if reward.surrogate is not None
    }
    batch_size = recipe.train.batch_size
    return SurrogateLearner(learner, surrogates, objective, prompts=prompts, seed=seed, batch_size=batch_size)


def build_objective(
    configs: Sequence[RewardConfig],
    catalog: Catalog,
    *,
    beside: Objective | None = None,
    gate: Objective | None = None,
) -> Objective:
    """The weighted sum of these rewards; a kind that stands there twice gets a number behind its name.

    Arguments:
        beside: rewards that are built already, and come first: none is loaded twice.
        gate: those of these that are built already, by kind.
    """
    beside = beside or Objective({})
    rewards, weights, caps = dict(beside.rewards.items()), dict(beside.weights), dict(beside.caps)
    columns, quantiles, radii = dict(beside.columns), dict(beside.quantiles), dict(beside.radii)
    made = dict(gate.rewards.items()) if gate else {}
    for config in configs:
        count = sum(name.split("#")[0] == config.kind for name in rewards)
        name = f"{config.kind}#{count + 1}" if count else config.kind
        rewards[name] = made[config.kind] if config.kind in made else build_reward(config, catalog)
        weights[name] = config.weight
        columns[name] = columns_of(config, catalog, where=f"reward {name!r}: columns")
        if isinstance(config.cap, QuantileCap):
            quantiles[name] = config.cap.quantile
        elif config.cap is not None:
            caps[name] = config.cap
        if config.worst_within is not None:
            radii[name] = config.worst_within
    return Objective(rewards, weights, caps, columns, quantiles, radii)


def build_reward(config: RewardConfig, catalog: Catalog) -> torch.nn.Module:
    """What the plugin's factory makes of its config, here or in the config's own environment.

    Raises:
        DraftError: if the factory raises, or makes no module, or the environment's process cannot be started.
    """
    if not isinstance(config, RewardInEnvironment):
        return made_reward(config, catalog)
    environment, facts = config.environment, config.facts
    worker = Worker(
        environment.interpreter, config.there(), timeout=environment.timeout, where=f"reward {config.kind!r}"
    )
    return RemoteReward(worker, differentiable=facts.differentiable, scope=facts.scope)


def reward_config(kind: str, fields: Mapping[str, Any], catalog: Catalog) -> RewardConfig:
    """The validated config of an installed kind.

    Raises:
        DraftError: like `load_reward`.
    """
    if "kind" in fields:
        raise RecipeError("the kind is said already", where=f"reward {kind!r}: kind", next="leave it out")
    if "environment" not in fields:
        catalog.reward(kind)
    where, type_ = f"reward {kind!r}", entry_type(catalog) if catalog.rewards else RewardInEnvironment
    config: RewardConfig = validate(type_, {"kind": kind, **fields}, catalog, where=where)
    config = with_absolute_paths(config, working_directory, where=where)
    if isinstance(config, RewardInEnvironment):
        (config,) = described({Place(where, Path.cwd(), joint=": "): config})
    return config


def _check_machine(recipe: RecipeBase) -> None:
    if recipe.device:
        check_device(recipe.device, where="device")
    for place, reward in enumerate([*recipe.rewards, *recipe.metrics]):
        if reward.device and not isinstance(reward, RewardInEnvironment):
            name = f"rewards.{place}" if place < len(recipe.rewards) else f"metrics.{place - len(recipe.rewards)}"
            check_device(reward.device, where=f"{name}.device")
    processes = Processes(cpu=recipe.device == "cpu")
    if recipe.train.sharding != "none":
        require_several(processes.world_size)
    check_machine(recipe.model.quantization, processes.device)
    if recipe.model.compile == "regional":
        check_compiler(processes.device)
    autocast(processes.device, recipe.train.mixed_precision)  # refuses what the device cannot do
    moving = [reward.kind for reward in recipe.rewards if isinstance(reward.cap, QuantileCap)]
    ranked, several = bool(recipe.regularizers.kl_gate), images_per_prompt(recipe.model.call)
    check_images(recipe.train, several, processes.world_size, moving, ranked=ranked)
    require_trackers(recipe.trackers)
