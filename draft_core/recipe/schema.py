"""The recipe: everything one run needs, in one YAML file, validated whole before anything is built.

The type is made from the catalog, one union of all installed rewards, so that a misspelt field of a
plugin is found here and an editor can complete it from `draft schema`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial, reduce
from operator import or_
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Tag, create_model
from pydantic_core import PydanticCustomError

from draft_core.errors import PluginError
from draft_core.evaluation.settings import EvaluationSettings
from draft_core.recipe.trackers import TrackersConfig
from draft_core.registry.catalog import Catalog
from draft_core.registry.config import Config, Field, MethodConfig, RewardConfig
from draft_core.registry.environments import RewardInEnvironment
from draft_core.registry.methods import DraftLV
from draft_core.setting import MOST, MOST_STEPS, Prompts, RecipePath
from draft_core.training.settings import CheckpointSettings, RegularizerSettings, TrainSettings

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from draft_core.recipe.objects import RecipeFields

LARGEST_INTEGER = 2**63 - 1  # of a tensor
LARGEST_FLOAT = 2.0**128 * (1 - 2.0**-24)  # single precision, which a run computes in


class LoraConfig(Config):
    """The LoRA that is trained (Hu et al. 2022, arXiv 2106.09685)."""

    rank: int = Field(8, ge=1, le=MOST, description="Rank r of the two factors.")
    alpha: float | None = Field(None, gt=0, description="Scale is alpha / rank; left out, the scale is 1.")
    targets: tuple[str, ...] | None = Field(
        None,
        min_length=1,
        description="Name endings of the denoiser's layers to adapt, linear or convolutional; left out, all attention.",
    )
    init: Annotated[Path, RecipePath(of="either")] | None = Field(
        None,
        description="A LoRA to go on from, of this rank: a run, a LoRA's folder or its file. Left out, training starts "
        "from the base model.",
    )


class UsersConfig(Config):
    """People whose embeddings the denoiser sees beside the prompt: an IP-Adapter is trained, and no LoRA."""

    file: Annotated[Path, RecipePath(of="file")] = Field(
        description="The users' embeddings, a .safetensors file of `draft user`, relative to the recipe's folder."
    )
    column: str = Field(
        "user",
        description="The column of the prompts, or of the pairs, that names the user of each: `alice`, "
        "`alice:0.7,bob:0.3`, or blank for none.",
    )


class SchedulerConfig(Config):
    """The scheduler that samples, made from the configuration of the pipeline's own."""

    name: str = Field(description="Its class in diffusers, such as DDIMScheduler.")
    settings: dict[str, Any] = Field({}, description="What it is configured with otherwise than the pipeline's own.")


class ImageFile(Config):
    """An image that the pipeline's call is given."""

    file: Annotated[Path, RecipePath(of="file")] = Field(description="Of the image, relative to the recipe's folder.")


Quantization = Literal["nf4", "int8"]

CallValue = Annotated[ImageFile | list[ImageFile] | Any, Field(union_mode="left_to_right")]


class ModelConfig(Config):
    """The pipeline to tune, and how it samples."""

    pretrained: Annotated[str, RecipePath(absent="keep")] = Field(
        description="An alias from a plugin (emoji), a folder in diffusers' format, a hub name (org/model), or one "
        ".safetensors file with all weights, which needs `pipeline`."
    )
    pipeline: str | None = Field(
        None, description="Class of the pipeline in diffusers; left out, the one that the model names."
    )
    config: Annotated[str, RecipePath(absent="keep")] | None = Field(
        None,
        description="For a single file: a folder in diffusers' format, or a hub name, that says how the model is "
        "built; left out, the one that diffusers takes for weights of this kind.",
    )
    variant: str | None = Field(None, description="Of the weight files, such as fp16.")
    scheduler: SchedulerConfig | None = Field(None, description="Instead of the pipeline's own.")
    num_inference_steps: int = Field(
        20,
        ge=1,
        le=MOST_STEPS,
        description="Sampler steps, as in the pipeline's call; an alias may bring its own number.",
    )
    guidance_scale: float | None = Field(
        None, ge=0, description="As in the call; left out, the alias' own, or the pipeline's default."
    )
    noise: float = Field(
        0.0,
        ge=0,
        le=1,
        description="Noise that steps of a deterministic scheduler draw in training: 0 none, 1 as much as DDIM with "
        "eta 1 or an ancestral step. Evaluations are drawn without it.",
    )
    call: dict[str, CallValue] = Field(
        {},
        description="Further arguments of the call, such as height or negative_prompt; an image is `{file: PATH}`. "
        "Those that an alias brings count where they are not said here.",
    )
    columns: dict[str, str] = Field(
        {},
        description="Arguments of the call that every prompt has a value of its own for: argument -> column of the "
        "prompt lists. An image, as of `image` or `control_image`, is the path of a file, relative to the list's "
        "folder; a `negative_prompt` is a text.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] = Field(
        "float32", description="Precision of the frozen weights; the LoRA is always float32."
    )
    quantization: Quantization | Annotated[dict[str, Quantization], Field(min_length=1)] | None = Field(
        None,
        description="Fewer bits for the frozen weights of linear layers, which compute in `dtype`: `nf4`, 4 bits by "
        "bitsandbytes on a GPU of CUDA, or `int8` by torchao. One of them is for the denoisers; networks are named by "
        "`{transformer: nf4, text_encoder_2: int8}`.",
    )
    gradient_checkpointing: bool | Literal["selective", "blocks", "lean", "halves", "sliced"] = Field(
        False,
        description="Recompute recorded denoiser calls in the backward pass, one more call each: with `true` at once, "
        "so that many grad steps take no more memory than one; with `lean` likewise, keeping less of it; with `halves` "
        "and `sliced` one half of the batch, or one image or guidance branch, after another, equal but for the last "
        "bits; with `blocks` one block after another, least for few grad steps. `selective` recomputes norms, "
        "activations and casts alone: half the memory of a UNet.",
    )
    decode: Literal["whole", "selective", "blocks", "checkpointed", "sliced", "tiles"] = Field(
        "whole",
        description="How the decoder's backward pass gets what it needs: stored for all images; norms and "
        "activations recomputed, which halves it; recomputed one block after another; recomputed at once; or at once "
        "for one image at a time, which is equal but for the last bits; or, beside `tiled_decode`, for one tile at a "
        "time.",
    )
    decoder: Annotated[str, RecipePath(absent="keep")] | None = Field(
        None,
        description="A small decoder through which training sees images, for its rewards and their gradient: folder or "
        "hub name of an AutoencoderTiny, such as madebyollin/taesd, that was made for this model. Evaluations and "
        "samples are decoded by the model's own.",
    )
    tiled_decode: bool | dict[str, Annotated[int, Field(ge=1)]] = Field(
        False,
        description="Decode in overlapping tiles by the model's own decoder, for large images; the seams are blended, "
        "so pixels change. A decoder whose `enable_tiling` takes sizes may be given them: "
        "`{tile_sample_min_height: 128, tile_sample_stride_height: 96}`.",
    )
    compile: Literal["none", "regional"] = Field(
        "none",
        description="With `regional` a training compiles the denoiser's repeated blocks by torch.compile, as diffusers "
        "does: faster updates after the first, which takes minutes. Samples and gradients change in the last bits.",
    )
    remember_prompts: bool = Field(
        False,
        description="Encode each prompt once, by itself, and remember it; on a GPU the text encoders then stay in main "
        "memory. In batches of several prompts the samples may differ in the last bits from the pipeline's own call.",
    )
    lora: LoraConfig = Field(LoraConfig(), description="The LoRA that is trained.")
    users: UsersConfig | None = Field(
        None, description="Train attention to people in the place of a LoRA; the model without a user stays as it is."
    )


class RecipeBase(Config):
    """All of a recipe but the rewards, whose type depends on what is installed."""

    model: ModelConfig = Field(description="The pipeline to tune, and how it samples.")
    prompts: Prompts = Field(
        (),
        description="What to train on: a list of texts, or of rows with a prompt and further columns; the name of a "
        "plugin's list (emoji-train); a file of prompts; or a file and the column that holds them. Left out only where "
        "the method names a file of its own, as dpo with pairs.",
    )
    method: MethodConfig = Field(DraftLV(), description="How scores become a gradient.")
    rewards: Sequence[RewardConfig]
    train: TrainSettings = Field(TrainSettings(), description="The optimisation.")
    regularizers: RegularizerSettings = Field(
        RegularizerSettings(), description="What holds the tuned model near the base model."
    )
    checkpoint: CheckpointSettings = Field(CheckpointSettings(), description="How often the run saves itself.")
    evaluation: EvaluationSettings | None = Field(
        None, description="Images and scores on the way; left out, some of the training prompts are evaluated."
    )
    metrics: Sequence[RewardConfig] = ()
    processes: int = Field(
        1,
        ge=1,
        description="How many processes train together on this machine, each with its own GPU where there are GPUs; an "
        "update has that number times `train.batch_size` images. Under `accelerate launch` that says how many.",
    )
    device: Literal["cpu", "cuda", "mps"] | None = Field(
        None, description="Where to run; left out, a GPU where there is one. What is named must exist."
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="Threads that compute on the CPU; left out, OMP_NUM_THREADS, or as many as there are idle cores "
        "when the run starts, which it then fills in.",
    )
    trackers: TrackersConfig = Field(
        TrackersConfig(), description="Where numbers and images go beside the run's own folder."
    )
    output: Annotated[Path, RecipePath(absent="make")] = Field(
        Path("runs/draft"), description="The folder of the run, relative to the recipe's folder."
    )
    versions: dict[str, str] | None = Field(
        None, description="Filled in by the run: what was installed when it started."
    )

    @property
    def held_out_prompts(self) -> Prompts | None:
        """The prompts of the evaluation; None where it takes some of those that are trained on."""
        return self.evaluation.prompts if self.evaluation else None

    def with_(self, catalog: Catalog | None = None, /, **fields: Unpack[RecipeFields]) -> RecipeBase:
        """The recipe with these fields in the place of its own: `recipe.with_(train={"steps": 8}, device="cpu")`.

        Fields of a section go over those that it has; lists, and a method of another kind, replace what was there. With
        another model, what the alias of the old one brought with it goes. It is checked like a recipe that is loaded.

        Arguments:
            catalog: what can be named; None takes what is installed.
            fields: of a recipe, sections as objects of their classes or as mappings.

        Raises:
            RecipeError: as `load_recipe`.
        """
        from draft_core.recipe.objects import changed  # which loads recipes, and so needs this module

        return changed(self, catalog, fields)


def recipe_type(catalog: Catalog, *, needs_rewards: bool = True) -> type[RecipeBase]:
    """The recipe model whose `rewards` and `metrics` are unions of everything in `catalog`.

    Arguments:
        needs_rewards: whether an entry may be of a reward that is installed here; False if all have environments of
            their own.

    Raises:
        PluginError: if no reward is installed where one is needed; a union of nothing would accept anything.
    """
    entry: Any = entry_type(catalog) if needs_rewards or catalog.rewards else RewardInEnvironment
    entries: Any = tuple[entry, ...]
    return create_model(
        "Recipe",
        __base__=RecipeBase,
        __doc__="One run: what is tuned, on which prompts and rewards, and how.",
        method=(
            method_type(catalog),
            Field(DraftLV(), description="How scores become a gradient; `draft methods` lists the methods."),
        ),
        rewards=(entries, Field(min_length=1, description="What to maximise: a weighted sum.")),
        metrics=(
            entries,
            Field((), description="Further rewards, measure-only ones too, to score the evaluation with."),
        ),
    )


def entry_type(catalog: Catalog) -> Any:
    """A reward that is installed here, or one in an environment of its own: told apart by that field.

    Raises:
        PluginError: as `reward_type`.
    """
    here, elsewhere = Annotated[reward_type(catalog), Tag(_HERE)], Annotated[RewardInEnvironment, Tag(_ELSEWHERE)]
    return Annotated[here | elsewhere, Discriminator(_where_it_is)]


_HERE, _ELSEWHERE = "(installed here)", "(in an environment)"


def _where_it_is(entry: Any) -> str:
    has_one = "environment" in entry if isinstance(entry, Mapping) else isinstance(entry, RewardInEnvironment)
    return _ELSEWHERE if has_one else _HERE


def reward_type(catalog: Catalog) -> Any:
    """The union of all reward configs in `catalog`, told apart by `kind`."""
    if not catalog.rewards:
        broken = [f"{plugin.distribution} is broken ({plugin.reason})" for plugin in catalog.broken]
        raise PluginError(
            "; ".join(["no reward plugin is installed", *broken]),
            next="install one, for example `pip install draft-reward-jpeg`",
        )
    union = reduce(or_, (entry.spec.config for entry in catalog.rewards.values()))
    if len(catalog.rewards) > 1:
        return Annotated[union, Field(discriminator="kind")]
    # pydantic discriminates no union of one, and would let its only member's default stand in for the kind.
    (kind,) = catalog.rewards
    return Annotated[union, BeforeValidator(partial(_require_kind, kind))]


def method_type(catalog: Catalog) -> Any:
    """The union of all method configs in `catalog`, told apart by `kind`."""
    union = reduce(or_, (entry.spec.config for entry in catalog.methods.values()))
    return Annotated[union, Field(discriminator="kind")]


def _require_kind(kind: str, entry: Any) -> Any:
    """Says of an entry what pydantic says of one in a union of several."""
    if isinstance(entry, Mapping) and "kind" not in entry:
        raise PydanticCustomError("union_tag_not_found", "it does not say its kind")
    if isinstance(entry, Mapping) and entry["kind"] != kind:
        raise PydanticCustomError("union_tag_invalid", "its kind is not known", {"tag": str(entry["kind"])})
    return entry
