"""People as a condition: diffusers' IP-Adapter, whose "image" is the embedding of a person.

PPD (Dang et al. 2025, arXiv 2501.06655): beside the prompt's keys and values every cross-attention gets those of a
user, Z' = softmax(Q K^T) V + softmax(Q K'^T) V' with K' = W_k P u and V' = W_v P u. Values start at zero, and nothing
has a bias, so that without a user, u = 0, the pipeline is the base model in every bit.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers.loaders import IPAdapterMixin
from diffusers.models.attention_processor import (
    IPAdapterAttnProcessor,
    IPAdapterAttnProcessor2_0,
    IPAdapterXFormersAttnProcessor,
)
from safetensors import SafetensorError
from safetensors.torch import save_file

from draft_core.adapters.files import IP_ADAPTER_FILE, USERS_FILE
from draft_core.adapters.fitting import hushed
from draft_core.adapters.user_embeddings import UserEmbeddings
from draft_core.errors import CheckpointError, DraftError, RecipeError
from draft_core.sampling.pipelines import networks

ARGUMENT = "ip_adapter_image_embeds"
TOKENS = 4  # of a user, as many as diffusers makes of an image's embedding
PROCESSORS = (IPAdapterAttnProcessor, IPAdapterAttnProcessor2_0, IPAdapterXFormersAttnProcessor)

# diffusers normalises what it projects. Where the variance is far below the norm's epsilon (1e-5, torch's own), a norm
# is a factor, 1 / sqrt(epsilon): so small is the projection, and its inverse the norm's weight. For an embedding of
# length 1 this is linear to 0.5 %, and half of a user is half of what it adds.
EPSILON = 1e-5
SPREAD = 3e-4  # standard deviation of what is normalised


class UserAdapter:
    """The users of a pipeline with a UNet, as `adapter.Adapter` describes what is trained: maps to keys and values.

    The projection P is random and stays: a linear map behind a linear map adds nothing that W_k and W_v cannot say.

    Arguments:
        pipe: a diffusers pipeline that loads IP-Adapters of UNets.
        users: the embeddings that it is trained with, which are saved with it.
        column: of the prompts, that names the user of each.
    """

    def __init__(self, pipe: Any, users: UserEmbeddings, *, column: str = "user") -> None:
        self.pipe = pipe
        self.users = users
        self.column = column

    def attach(self) -> None:
        """Freezes the pipeline and adds the attention to users, its projection drawn from torch's global state.

        Raises:
            RecipeError: if the pipeline has no IP-Adapter of that kind, or is not of single precision.
            DraftError: if it carries an IP-Adapter already.
        """
        require_users(type(self.pipe))
        if processors_of(self.pipe):
            raise DraftError(
                "it carries an IP-Adapter already", where=type(self.pipe).__name__, next="pipe.unload_ip_adapter()"
            )
        if self.pipe.unet.dtype != torch.float32:
            raise RecipeError(
                f"users are trained in single precision, and the denoiser is {self.pipe.unet.dtype}",
                where="model.dtype",
                next="set it to float32, and train.mixed_precision where the machine is faster so",
            )
        for network in networks(self.pipe).values():
            network.requires_grad_(False).eval()
        load_state(self.pipe, self._initial())
        for weight in self.parameters():
            weight.requires_grad_(True)

    def _initial(self) -> dict[str, torch.Tensor]:
        """The adapter's file before training."""
        unet = self.pipe.unet
        width, size = unet.config.cross_attention_dim, self.users.size
        state = {
            "image_proj.proj.weight": SPREAD * torch.randn(TOKENS * width, size),
            "image_proj.proj.bias": torch.zeros(TOKENS * width),
            "image_proj.norm.weight": torch.full((width,), EPSILON**0.5 / SPREAD),
            "image_proj.norm.bias": torch.zeros(width),
        }
        for number, name in enumerate(_attending(unet)):
            of_text = unet.get_submodule(name.removesuffix(".processor")).to_k
            weight = getattr(of_text, "base_layer", of_text).weight
            state[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"] = weight.detach().float().cpu().clone()
            state[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"] = torch.zeros(weight.shape)
        return state

    def notes(self) -> list[str]:
        """How many people it is trained with."""
        of = f"{len(self.users.names)} users, whose embeddings have {self.users.size} numbers"
        return [f"trains attention to {of}, and no LoRA"]

    def parameters(self) -> list[torch.nn.Parameter]:
        """The maps to keys and values, in a fixed order; raises DraftError if there are none."""
        found = processors_of(self.pipe)
        if not found:
            raise DraftError("it carries no users", where=type(self.pipe).__name__, next="call `attach` first")
        return [layer[0].weight for part in found for layer in (part.to_k_ip, part.to_v_ip)]

    def base_model(self) -> AbstractContextManager[None]:
        """The model without users inside, whatever the prompts say."""
        return self.scaled(0.0)

    def scaled(self, scale: float) -> AbstractContextManager[None]:
        """What users add times `scale` inside; at 0 diffusers leaves it out."""
        return users_scaled(self.pipe, scale)

    def penalty(self) -> torch.Tensor:
        """The squared Frobenius norm of the maps to values, with gradient, ()."""
        return torch.stack([part.to_v_ip[0].weight.square().sum() for part in processors_of(self.pipe)]).sum()

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The weights on the CPU, in the names of IP-Adapter files."""
        return {name: weight.detach().cpu().clone() for name, weight in _weights(self.pipe).items()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Puts weights of `state_dict` back; raises CheckpointError if they do not fit."""
        weights = _weights(self.pipe)
        expected, found = ({name: tensor.shape for name, tensor in it.items()} for it in (weights, state))
        if different := sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)):
            raise CheckpointError(
                f"its users do not fit this model: {len(different)} of {len(expected)} tensors differ, "
                f"first {different[0]}",
                next="resume with the recipe that the run was started with",
            )
        with torch.no_grad():
            for name, weight in weights.items():
                weight.copy_(state[name])

    def save(self, folder: Path) -> Path:
        """Writes the file that `pipe.load_ip_adapter` loads, and beside it the users; returns the first."""
        folder.mkdir(parents=True, exist_ok=True)
        save_file(self.state_dict(), folder / IP_ADAPTER_FILE, {"format": "pt"})
        self.users.save(folder / USERS_FILE)
        return folder / IP_ADAPTER_FILE


def check_users(pipeline: type | None, dtype: str, *, has_lora: bool) -> None:
    """What can be known of a recipe's model with users before it is loaded.

    Arguments:
        pipeline: its class, where that is known.
        dtype: of the frozen weights, as the recipe says it.
        has_lora: whether the recipe says anything of a LoRA.

    Raises:
        RecipeError: if a LoRA is to be trained too, the precision is another than float32, or as `require_users`.
    """
    if has_lora:
        raise RecipeError(
            "the recipe trains attention to users, and a LoRA beside it is not trained",
            where="model.lora",
            next="leave it out, or leave out model.users",
        )
    if dtype != "float32":
        raise RecipeError("users are trained in single precision", where="model.dtype", next="leave it out")
    if pipeline is not None:
        require_users(pipeline)


def require_users(pipeline: type) -> None:
    """Refuses pipelines whose denoiser is no UNet that diffusers gives an IP-Adapter.

    Arguments:
        pipeline: its class; nothing needs to be loaded.

    Raises:
        RecipeError: naming it.
    """
    takes = inspect.signature(pipeline.__call__).parameters
    if not issubclass(pipeline, IPAdapterMixin) or ARGUMENT not in takes:
        raise RecipeError(
            f"{pipeline.__name__} has no IP-Adapter of a UNet, by which a user is shown to the denoiser",
            where="model.users",
            next="use a model of Stable Diffusion 1 or 2, SDXL or AnimateDiff, or leave it out",
        )


def load_users(pipe: Any, folder: Path, *, column: str = "user") -> UserArgument:
    """Loads what `UserAdapter.save` wrote, and gives the argument that shows users to the pipeline's calls.

    Raises:
        RecipeError: if the pipeline has no such IP-Adapter.
        CheckpointError: if a file is damaged, or is of another model.
    """
    require_users(type(pipe))
    users = UserEmbeddings.read(folder / USERS_FILE)
    try:
        with hushed():
            _load(pipe, folder, weight_name=IP_ADAPTER_FILE)
    except (RuntimeError, ValueError, KeyError, TypeError, OSError, SafetensorError) as error:  # diffusers' or torch's
        raise CheckpointError(
            f"its users cannot be loaded into {type(pipe).__name__} ({type(error).__name__})",
            where=str(folder),
            next="give a run of this model",
        ) from error
    return UserArgument(pipe, users, column)


def load_state(pipe: Any, state: Mapping[str, torch.Tensor]) -> None:
    """Gives the pipeline the attention to users of a file's tensors, by diffusers' own loader."""
    parts = {
        part: {name.removeprefix(f"{part}."): tensor for name, tensor in state.items() if name.startswith(f"{part}.")}
        for part in ("image_proj", "ip_adapter")
    }
    with hushed():
        _load(pipe, parts, weight_name="")


def _load(pipe: Any, source: Any, *, weight_name: str) -> None:
    """`load_ip_adapter` without an image encoder; the image processor that it adds is taken off again."""
    had = getattr(pipe, "feature_extractor", None)
    pipe.load_ip_adapter(
        source, subfolder="", weight_name=weight_name, image_encoder_folder=None, low_cpu_mem_usage=False
    )
    if had is None and hasattr(pipe, "feature_extractor"):
        pipe.register_modules(feature_extractor=None)
    for part in (pipe.unet.encoder_hid_proj, *processors_of(pipe)):
        part.requires_grad_(False)


def processors_of(pipe: Any) -> list[Any]:
    """The attention of a pipeline's UNet to users, in its order; empty where there is none."""
    processors = getattr(getattr(pipe, "unet", None), "attn_processors", {})
    return [part for part in processors.values() if isinstance(part, PROCESSORS)]


@contextmanager
def users_scaled(pipe: Any, scale: float) -> Iterator[None]:
    """What users add, times `scale` inside, and as before afterwards."""
    parts = processors_of(pipe)
    before = [part.scale for part in parts]
    for part in parts:
        part.scale = [scale * own for own in part.scale]
    try:
        yield
    finally:
        for part, own in zip(parts, before, strict=True):
            part.scale = own


def _attending(unet: Any) -> list[str]:
    """The processors that see the prompt, in diffusers' order, by which the layers of a file are numbered."""
    return [name for name in unet.attn_processors if not name.endswith("attn1.processor") and "motion_" not in name]


def _weights(pipe: Any) -> dict[str, torch.Tensor]:
    """Name in a file -> the weight in the pipeline."""
    (projection,) = pipe.unet.encoder_hid_proj.image_projection_layers
    found = {
        "image_proj.proj.weight": projection.image_embeds.weight,
        "image_proj.proj.bias": projection.image_embeds.bias,
        "image_proj.norm.weight": projection.norm.weight,
        "image_proj.norm.bias": projection.norm.bias,
    }
    for number, part in enumerate(processors_of(pipe)):
        found[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"] = part.to_k_ip[0].weight
        found[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"] = part.to_v_ip[0].weight
    return found


@dataclass(frozen=True)
class UserArgument:
    """The argument of a pipeline's call that shows it the users of its prompts, a `rewards.columns.Computed`.

    Arguments:
        pipe: carries the attention to users.
        users: their embeddings.
        column: of the prompts, that names the user of each: a name, or several with weights, `alice:0.7,bob:0.3`. A
            prompt without the column, or with a blank in it, has no user.
    """

    pipe: Any
    users: UserEmbeddings
    column: str = "user"

    names = (ARGUMENT,)

    def of(self, prompts: Sequence[str]) -> dict[str, Any]:
        """The embeddings of B prompts, [(B, 1, D)].

        Raises:
            DraftError: if there is no such user.
        """
        vectors = [self.users.of_row(prompt, self.column, where=type(self.pipe).__name__) for prompt in prompts]
        return {ARGUMENT: [torch.stack(vectors)[:, None]]}

    def seams(self) -> list[tuple[Any, str, Any]]:
        """What prepares the embeddings in the call: diffusers' own takes one image for all prompts of a batch."""
        return [(self.pipe, "prepare_ip_adapter_image_embeds", _of_each)]


def _of_each(original: Any, *args: Any, **kwargs: Any) -> list[torch.Tensor]:
    """The embeddings of N images, each its prompt's own, (N, 1, D), behind as many zeros where the call guides."""
    given = inspect.signature(original).bind(*args, **kwargs).arguments
    (shown,) = given["ip_adapter_image_embeds"]
    shown = shown.to(given["device"]).repeat_interleave(given["num_images_per_prompt"] // len(shown), dim=0)
    return [torch.cat([torch.zeros_like(shown), shown]) if given["do_classifier_free_guidance"] else shown]
