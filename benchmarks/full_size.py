"""The full-size models as data, and their pipelines built without weights, on torch's meta device.

A tensor on the meta device has a shape, a type and a size in bytes, but no numbers. So a model of 14 billion
parameters is built in seconds, and a pipeline's own call runs on it as it would on a GPU, in no memory at all.

Every config is that of the model's published `config.json` as far as it differs from the defaults of its class. No
file was fetched to write them down: what stands behind each is its parameter count, which `tests/test_scale.py`
compares with the published one. A count does not see what has no parameters: how many heads share a width, and the
places at which a resolution changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import diffusers
import torch
import transformers

from draft_core.sampling import seams

META = torch.device("meta")


@dataclass(frozen=True)
class Network:
    """One component: its class, what its config says, and how many parameters the published one has.

    Arguments:
        cls: name in diffusers or transformers.
        config: arguments of the class, or of its config class.
        parameters: of the published weights, in millions.
    """

    cls: str
    config: dict[str, Any]
    parameters: float

    def build(self, dtype: torch.dtype) -> Any:
        """The network on the meta device, frozen, in the precision that `from_pretrained` would load it in."""
        with META:
            network = self._of_diffusers() if self.cls in dir(diffusers) else self._of_transformers()
        # Of some, diffusers keeps norms and the like in float32; transformers does so for float16 alone.
        kept = (getattr(network, "_keep_in_fp32_modules", None) or ()) if self.cls in dir(diffusers) else ()
        for name, tensor in (*network.named_parameters(), *network.named_buffers()):
            narrow = tensor.is_floating_point() and not set(kept).intersection(name.split("."))
            tensor.data = tensor.data.to(META, dtype if narrow else None)
        return network.requires_grad_(False).eval()

    def _of_diffusers(self) -> Any:
        return getattr(diffusers, self.cls)(**self.config)

    def _of_transformers(self) -> Any:
        cls = getattr(transformers, self.cls)
        return cls(cls.config_class(**self.config))


@dataclass(frozen=True)
class Model:
    """A published model, and how it is called here.

    Arguments:
        hub: its name on the hub.
        pipeline: class in diffusers.
        networks: component -> network, the text encoders last.
        scheduler: class in diffusers, and what its config says.
        embeddings: argument of the call -> shape of what the text encoders give for one prompt.
        call: further arguments.
        side: shape of what is made, as it is written in tables.
    """

    hub: str
    pipeline: str
    networks: Mapping[str, Network]
    scheduler: tuple[str, dict[str, Any]]
    embeddings: Mapping[str, tuple[int, ...]]
    call: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()  # components of the class that are absent

    @property
    def denoiser(self) -> Network:
        """The first component."""
        return next(iter(self.networks.values()))


# Text encoders. The first two are those of OpenAI's CLIP ViT-L/14 and OpenCLIP's ViT-bigG/14, in transformers' names.
_CLIP_L = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
_CLIP_G = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 20}
_T5_XXL = {
    "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64, "feed_forward_proj": "gated-gelu"
}  # fmt: skip
CLIP_L = Network("CLIPTextModel", _CLIP_L, 123.06)
CLIP_L_PROJECTED = Network("CLIPTextModelWithProjection", {**_CLIP_L, "projection_dim": 768}, 123.65)
CLIP_G = Network("CLIPTextModelWithProjection", {**_CLIP_G, "projection_dim": 1280}, 694.66)
T5_XXL = Network("T5EncoderModel", {**_T5_XXL, "vocab_size": 32128}, 4762.31)
UMT5_XXL = Network("UMT5EncoderModel", {**_T5_XXL, "vocab_size": 256384}, 5680.91)

# Decoders. Stable Diffusion's has 4 latent channels, that of SD3 and FLUX 16 and no convolutions around them.
_VAE = {
    "block_out_channels": (128, 256, 512, 512),
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "layers_per_block": 2,
    "sample_size": 1024,  # also the side of a tile
}
VAE_4 = Network("AutoencoderKL", {**_VAE, "scaling_factor": 0.13025}, 83.65)
VAE_16 = Network(
    "AutoencoderKL",
    {**_VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False, "shift_factor": 0.1},
    83.82,
)
VAE_WAN = Network("AutoencoderKLWan", {}, 126.89)  # the defaults of the class

SDXL = Model(
    hub="stabilityai/stable-diffusion-xl-base-1.0",
    pipeline="StableDiffusionXLPipeline",
    networks={
        "unet": Network(
            "UNet2DConditionModel",
            {
                "sample_size": 128,
                "block_out_channels": (320, 640, 1280),
                "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
                "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
                "layers_per_block": 2,
                "transformer_layers_per_block": (1, 2, 10),
                "attention_head_dim": (5, 10, 20),  # the class takes it for the number of heads
                "cross_attention_dim": 2048,
                "addition_embed_type": "text_time",
                "addition_time_embed_dim": 256,
                "projection_class_embeddings_input_dim": 2816,
                "use_linear_projection": True,
            },
            2567.46,
        ),
        "vae": VAE_4,
        "text_encoder": CLIP_L,
        "text_encoder_2": CLIP_G,
    },
    scheduler=("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "steps_offset": 1}),
    embeddings={
        "prompt_embeds": (77, 2048),
        "negative_prompt_embeds": (77, 2048),
        "pooled_prompt_embeds": (1280,),
        "negative_pooled_prompt_embeds": (1280,),
    },
    call={"guidance_scale": 5.0},
    without=("tokenizer", "tokenizer_2"),
)

_SD3 = {
    "sample_size": 128,
    "patch_size": 2,
    "in_channels": 16,
    "out_channels": 16,
    "attention_head_dim": 64,
    "joint_attention_dim": 4096,
    "pooled_projection_dim": 2048,
    "qk_norm": "rms_norm",
}


def _sd35(hub: str, config: dict[str, Any], parameters: float) -> Model:
    return Model(
        hub=hub,
        pipeline="StableDiffusion3Pipeline",
        networks={
            "transformer": Network("SD3Transformer2DModel", {**_SD3, **config}, parameters),
            "vae": VAE_16,
            "text_encoder": CLIP_L_PROJECTED,
            "text_encoder_2": CLIP_G,
            "text_encoder_3": T5_XXL,
        },
        scheduler=("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        embeddings={  # 77 tokens of the CLIPs, 256 of T5
            "prompt_embeds": (333, 4096),
            "negative_prompt_embeds": (333, 4096),
            "pooled_prompt_embeds": (2048,),
            "negative_pooled_prompt_embeds": (2048,),
        },
        call={"guidance_scale": 4.5},
        without=("tokenizer", "tokenizer_2", "tokenizer_3"),
    )


SD35_MEDIUM = _sd35(
    "stabilityai/stable-diffusion-3.5-medium",
    {
        "num_layers": 24,
        "num_attention_heads": 24,
        "caption_projection_dim": 1536,
        "dual_attention_layers": tuple(range(13)),
        "pos_embed_max_size": 384,
    },
    2243.17,
)
SD35_LARGE = _sd35(
    "stabilityai/stable-diffusion-3.5-large",
    {"num_layers": 38, "num_attention_heads": 38, "caption_projection_dim": 2432, "pos_embed_max_size": 192},
    8056.63,
)

FLUX = Model(
    hub="black-forest-labs/FLUX.1-dev",
    pipeline="FluxPipeline",
    networks={
        # the defaults of the class but for the embedded guidance
        "transformer": Network("FluxTransformer2DModel", {"guidance_embeds": True}, 11901.41),
        "vae": VAE_16,
        "text_encoder": CLIP_L,
        "text_encoder_2": T5_XXL,
    },
    scheduler=(
        "FlowMatchEulerDiscreteScheduler",
        {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15},
    ),
    embeddings={"prompt_embeds": (512, 4096), "pooled_prompt_embeds": (768,)},
    call={"guidance_scale": 3.5},
    without=("tokenizer", "tokenizer_2"),
)


def _wan(hub: str, config: dict[str, Any], parameters: float) -> Model:
    return Model(
        hub=hub,
        pipeline="WanPipeline",
        networks={
            "transformer": Network("WanTransformer3DModel", config, parameters),
            "vae": VAE_WAN,
            "text_encoder": UMT5_XXL,
        },
        scheduler=(
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
        ),
        embeddings={"prompt_embeds": (512, 4096), "negative_prompt_embeds": (512, 4096)},
        call={"guidance_scale": 5.0},
        without=("tokenizer",),
    )


WAN_1B = _wan(
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers", {"num_attention_heads": 12, "ffn_dim": 8960, "num_layers": 30}, 1419.0
)
WAN_14B = _wan("Wan-AI/Wan2.1-T2V-14B-Diffusers", {}, 14288.49)  # the defaults of the class

MODELS = {
    "SDXL": SDXL,
    "SD3.5-medium": SD35_MEDIUM,
    "SD3.5-large": SD35_LARGE,
    "FLUX.1-dev": FLUX,
    "Wan 2.1 1.3B": WAN_1B,
    "Wan 2.1 14B": WAN_14B,
}


def pipeline(model: Model, dtype: torch.dtype) -> Any:
    """The model's pipeline on the meta device, its text encoders left out: they do not take part in an update."""
    cls = getattr(diffusers, model.pipeline)
    scheduler, config = model.scheduler
    parts: dict[str, Any] = dict.fromkeys((*model.without, *(name for name in model.networks if "encoder" in name)))
    parts |= {name: network.build(dtype) for name, network in model.networks.items() if "encoder" not in name}
    more = {"add_watermarker": False} if cls is diffusers.StableDiffusionXLPipeline else {}
    return cls(scheduler=getattr(diffusers, scheduler)(**config), **parts, **more)


def embeddings(model: Model, batch: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """What the text encoders would give for `batch` prompts."""
    return {name: torch.empty(batch, *shape, dtype=dtype, device=META) for name, shape in model.embeddings.items()}


@contextmanager
def without_numbers(pipe: Any) -> Iterator[None]:
    """What a pipeline asks of its tensors' numbers is answered otherwise inside: the scheduler's place in its schedule.

    Schedules are made on the CPU, as numpy needs it, and only the timesteps go to the meta device, where no step can
    be looked up by its timestep: each is taken for the first, whose shapes are those of all.
    """
    scheduler = pipe.scheduler

    def set_timesteps(original: Any, *args: Any, device: Any = None, **kwargs: Any) -> None:
        original(*args, device="cpu", **kwargs)
        scheduler.timesteps = scheduler.timesteps.to(pipe._execution_device)

    with ExitStack() as stack:
        stack.enter_context(seams.replaced(scheduler, "set_timesteps", set_timesteps))
        stack.enter_context(seams.replaced(scheduler, "index_for_timestep", partial(_first_place)))
        yield


def _first_place(original: Any, *args: Any, **kwargs: Any) -> int:
    return 0
