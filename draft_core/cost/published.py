"""Published models as data: the configs of their networks, how they are called, and the encoders of published rewards.

Every config is that of the model's published `config.json` as far as it differs from the defaults of its class. What
stands behind each is its parameter count, which a test compares with the published one. A count does not see what has
no parameters: how many heads share a width, and the places at which a resolution changes. `meta_device.py` builds them
without weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


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
        without: components of the class that are absent.
    """

    hub: str
    pipeline: str
    networks: Mapping[str, Network]
    scheduler: tuple[str, dict[str, Any]]
    embeddings: Mapping[str, tuple[int, ...]]
    call: Mapping[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()

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
# the text side of OpenCLIP's ViT-H/14 without its last layer
CLIP_H = Network(
    "CLIPTextModel",
    {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16},
    340.39,
)
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
# Hub name -> an AutoencoderTiny that decodes latents of 4 or 16 channels, otherwise of the defaults of its class.
TINY_DECODERS = {
    "madebyollin/taesd": Network("AutoencoderTiny", {}, 2.45),
    "madebyollin/taesdxl": Network("AutoencoderTiny", {}, 2.45),
    "madebyollin/taesd3": Network("AutoencoderTiny", {"latent_channels": 16}, 2.46),
    "madebyollin/taef1": Network("AutoencoderTiny", {"latent_channels": 16}, 2.46),
}
VAE_WAN = Network("AutoencoderKLWan", {}, 126.89)  # the defaults of the class


def _sd(hub: str, config: dict[str, Any], parameters: float, encoder: Network, guidance: float) -> Model:
    width = encoder.config["hidden_size"]
    return Model(
        hub=hub,
        pipeline="StableDiffusionPipeline",
        networks={
            "unet": Network(
                "UNet2DConditionModel",
                {
                    "sample_size": 64,
                    "block_out_channels": (320, 640, 1280, 1280),
                    "layers_per_block": 2,
                    "cross_attention_dim": width,
                    **config,
                },
                parameters,
            ),
            "vae": Network("AutoencoderKL", {**_VAE, "sample_size": 512}, 83.65),
            "text_encoder": encoder,
        },
        # sd-turbo's own; that of 1.5 is PNDM, whose steps take numbers that the meta device does not have
        scheduler=("EulerDiscreteScheduler", {"beta_schedule": "scaled_linear", "steps_offset": 1}),
        embeddings={"prompt_embeds": (77, width), "negative_prompt_embeds": (77, width)},
        call={"guidance_scale": guidance},
        without=("tokenizer", "safety_checker", "feature_extractor", "image_encoder"),
    )


SD15 = _sd("stable-diffusion-v1-5/stable-diffusion-v1-5", {"attention_head_dim": 8}, 859.52, CLIP_L, 7.5)
# the class takes `attention_head_dim` for the number of heads
SD_TURBO = _sd(
    "stabilityai/sd-turbo",
    {"attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    865.91,
    CLIP_H,
    0.0,
)

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

SDXL_TURBO = replace(SDXL, hub="stabilityai/sdxl-turbo", call={"guidance_scale": 0.0})

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


def _flux(hub: str, *, guided: bool, parameters: float, tokens: int, shifting: dict[str, Any]) -> Model:
    return Model(
        hub=hub,
        pipeline="FluxPipeline",
        networks={
            # the defaults of the class but for the embedded guidance
            "transformer": Network("FluxTransformer2DModel", {"guidance_embeds": guided}, parameters),
            "vae": VAE_16,
            "text_encoder": CLIP_L,
            "text_encoder_2": T5_XXL,
        },
        scheduler=("FlowMatchEulerDiscreteScheduler", shifting),
        embeddings={"prompt_embeds": (tokens, 4096), "pooled_prompt_embeds": (768,)},
        call={"guidance_scale": 3.5 if guided else 0.0},
        without=("tokenizer", "tokenizer_2"),
    )


FLUX = _flux(
    "black-forest-labs/FLUX.1-dev",
    guided=True,
    parameters=11901.41,
    tokens=512,
    shifting={"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15},
)
FLUX_SCHNELL = _flux(
    "black-forest-labs/FLUX.1-schnell", guided=False, parameters=11891.18, tokens=256, shifting={"shift": 1.0}
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
    "SD 1.5": SD15,
    "SD-turbo": SD_TURBO,
    "SDXL": SDXL,
    "SDXL-turbo": SDXL_TURBO,
    "SD3.5-medium": SD35_MEDIUM,
    "SD3.5-large": SD35_LARGE,
    "FLUX.1-dev": FLUX,
    "FLUX.1-schnell": FLUX_SCHNELL,
    "Wan 2.1 1.3B": WAN_1B,
    "Wan 2.1 14B": WAN_14B,
}

_VIT_H = {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16}
_VIT_L = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
_VIT_B = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}

# Reward -> the image side of its encoder, and how many million parameters the reward has in all.
REWARD_ENCODERS = {
    "aesthetic": (Network("CLIPVisionModel", {**_VIT_L, "patch_size": 14}, 303.18), 304.89),
    "clipscore": (Network("CLIPVisionModel", {**_VIT_B, "patch_size": 32}, 87.46), 151.28),
    "hpsv2": (Network("CLIPVisionModel", {**_VIT_H, "patch_size": 14}, 630.77), 986.11),
    "pickscore": (Network("CLIPVisionModel", {**_VIT_H, "patch_size": 14}, 630.77), 986.11),
}
