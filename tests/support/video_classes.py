"""Further pipeline classes of video, and those that a sampler refuses in part: what `test_classes.py` drives."""

from __future__ import annotations

from typing import Any

import diffusers
import torch
import transformers
from PIL import Image

from tests.support.families import (
    PROMPTS,
    SIZE,
    VIDEO,
    WIDTH,
    awake,
    clip_text,
    decoder_text,
    flow_euler,
    flow_unipc,
    flux2_klein,
    image,
    image_vae,
    ltx,
    modular_sdxl,
    sd,
    t5_text,
    tokenizer,
    wan,
    wan_transformer,
    wan_vae,
)
from tests.support.image_classes import GUIDED, class_of, of

ONE = {"prompts": PROMPTS[:1], "note": "one prompt a call"}
LTX = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16}
WAN = {**SIZE, **VIDEO, "max_sequence_length": 16}


def film(batch: int = 1, frames: int = 5, size: int = 16) -> torch.Tensor:
    """Videos in [0, 1], (batch, frames, 3, size, size)."""
    return torch.rand(batch, frames, 3, size, size, generator=torch.Generator().manual_seed(6))


def still() -> Image.Image:
    return Image.fromarray((image(size=64)[0].permute(1, 2, 0) * 255).byte().numpy())


def wan_image() -> Any:
    parts = {"tokenizer": tokenizer(), "text_encoder": t5_text("UMT5"), "vae": wan_vae(), "scheduler": flow_unipc()}
    return diffusers.WanImageToVideoPipeline(**parts, transformer=wan_transformer(in_channels=4 + 4 + 4))


def wan_vace() -> Any:
    transformer = wan_transformer("WanVACETransformer3DModel", vace_layers=[0, 1], vace_in_channels=72)
    parts = {"tokenizer": tokenizer(), "text_encoder": t5_text("UMT5"), "vae": wan_vae(), "scheduler": flow_unipc()}
    return diffusers.WanVACEPipeline(**parts, transformer=awake(transformer))


def skyreels(name: str) -> Any:
    transformer = wan_transformer("SkyReelsV2Transformer3DModel", inject_sample_info="Forcing" in name)
    return getattr(diffusers, name)(
        tokenizer=tokenizer(),
        text_encoder=t5_text("UMT5"),
        transformer=transformer,
        vae=wan_vae(),
        scheduler=flow_unipc(),
    )


def hunyuan_video() -> Any:
    transformer = diffusers.HunyuanVideoTransformer3DModel(
        in_channels=4,
        out_channels=4,
        num_attention_heads=2,
        attention_head_dim=10,
        num_layers=1,
        num_single_layers=1,
        num_refiner_layers=1,
        text_embed_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        rope_axes_dim=(2, 4, 4),
    )
    vae = diffusers.AutoencoderKLHunyuanVideo(
        latent_channels=4,
        down_block_types=("HunyuanVideoDownBlock3D",) * 4,
        up_block_types=("HunyuanVideoUpBlock3D",) * 4,
        block_out_channels=(8, 8, 8, 8),
        layers_per_block=1,
        norm_num_groups=4,
    )
    return diffusers.HunyuanVideoPipeline(
        text_encoder=decoder_text("Llama", layers=3),
        tokenizer=tokenizer(),
        transformer=transformer,
        vae=vae,
        scheduler=flow_euler(shift=7.0),
        text_encoder_2=clip_text(length=77),
        tokenizer_2=tokenizer(),
    )


def mochi() -> Any:
    transformer = diffusers.MochiTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        num_layers=2,
        pooled_projection_dim=16,
        in_channels=12,
        text_embed_dim=WIDTH,
        time_embed_dim=4,
        max_sequence_length=16,
    )
    vae = diffusers.AutoencoderKLMochi(
        in_channels=15,
        encoder_block_out_channels=(32, 32, 32, 32),
        decoder_block_out_channels=(32, 32, 32, 32),
        layers_per_block=(1, 1, 1, 1, 1),
    )
    return diffusers.MochiPipeline(
        scheduler=flow_euler(invert_sigmas=True),
        vae=vae,
        text_encoder=t5_text(),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


def motion_adapter() -> Any:
    return awake(
        diffusers.MotionAdapter(
            block_out_channels=(8, 16),
            motion_layers_per_block=1,
            motion_num_attention_heads=2,
            motion_norm_num_groups=4,
        )
    )


def animate(free_init: bool = False) -> Any:
    parts = {name: part for name, part in sd().components.items() if name != "safety_checker"}
    pipe = diffusers.AnimateDiffPipeline(**parts, motion_adapter=motion_adapter())
    if free_init:
        pipe.enable_free_init(num_iters=2)
    return pipe


def svd() -> Any:
    unet = diffusers.UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=1,
        cross_attention_dim=WIDTH,
        num_attention_heads=2,
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=24,
        num_frames=3,
    )
    vae = diffusers.AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 32),
        down_block_types=("DownEncoderBlock2D",) * 2,
        latent_channels=4,
        sample_size=16,
        force_upcast=False,
    )
    config = transformers.CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
        projection_dim=WIDTH,
    )
    return diffusers.StableVideoDiffusionPipeline(
        vae=vae,
        image_encoder=transformers.CLIPVisionModelWithProjection(config),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            prediction_type="v_prediction",
            use_karras_sigmas=True,
            sigma_min=0.002,
            sigma_max=700.0,
            timestep_type="continuous",
            timestep_spacing="leading",
            steps_offset=1,
        ),
        feature_extractor=transformers.CLIPImageProcessor(size=16, crop_size=16),
    )


def latte() -> Any:
    transformer = diffusers.LatteTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        cross_attention_dim=16,
        sample_size=8,
        patch_size=2,
        num_embeds_ada_norm=1000,
        norm_type="ada_norm_single",
        norm_elementwise_affine=False,
        caption_channels=WIDTH,
        video_length=2,
        activation_fn="gelu-approximate",
        attention_bias=True,
    )
    return diffusers.LattePipeline(
        tokenizer=tokenizer(),
        text_encoder=t5_text(),
        vae=image_vae(),
        transformer=transformer,
        scheduler=diffusers.DDIMScheduler(clip_sample=False, beta_start=0.0001, beta_end=0.02),
    )


def text_to_video() -> Any:
    unet = diffusers.UNet3DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("CrossAttnDownBlock3D", "DownBlock3D"),
        up_block_types=("UpBlock3D", "CrossAttnUpBlock3D"),
        cross_attention_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
    )
    return of("TextToVideoSDPipeline", sd(), unet=awake(unet))


def momentum() -> Any:
    """SDXL, modular, with a guider that remembers."""
    pipe = modular_sdxl()
    guider = diffusers.AdaptiveProjectedGuidance(guidance_scale=5.0, adaptive_projected_guidance_momentum=-0.5)
    pipe.update_components(guider=guider)
    return pipe


def sag() -> Any:
    return of("StableDiffusionSAGPipeline", sd(), requires_safety_checker=False)


VIDEO_CLASSES = (
    class_of("WanImageToVideoPipeline", wan_image, image=image(1), **ONE, **GUIDED, **WAN),
    class_of(
        "WanVideoToVideoPipeline",
        lambda: of("WanVideoToVideoPipeline", wan()),
        steps=4,
        video=film(),
        strength=0.6,
        height=16,
        width=16,
        max_sequence_length=16,
        **ONE,
        **GUIDED,
    ),
    class_of("WanVACEPipeline", wan_vace, **ONE, **GUIDED, **WAN),
    class_of(
        "LTXImageToVideoPipeline",
        lambda: of("LTXImageToVideoPipeline", ltx()),
        image=image(1, 32),
        **ONE,
        **GUIDED,
        **LTX,
    ),
    class_of(
        "LTXConditionPipeline",
        lambda: of("LTXConditionPipeline", ltx(), scheduler=flow_euler()),
        image=image(1, 32),
        **ONE,
        **GUIDED,
        **LTX,
    ),
    class_of("SkyReelsV2Pipeline", lambda: skyreels("SkyReelsV2Pipeline"), **GUIDED, **WAN),
    class_of(
        "HunyuanVideoPipeline",
        hunyuan_video,
        "embedded, 4",
        prompt_template={"template": "{}", "crop_start": 0},
        **GUIDED,
        **WAN,
    ),
    class_of(
        "MochiPipeline",
        mochi,
        num_frames=7,
        max_sequence_length=16,
        note="inverted sigmas",
        **GUIDED,
        **SIZE,
    ),
    class_of("AnimateDiffPipeline", animate, num_frames=2, **GUIDED, **SIZE),
    class_of(
        "StableVideoDiffusionPipeline",
        svd,
        "frame by frame, 1 to 3",
        image=image(2),
        num_frames=3,
        decode_chunk_size=2,
        prompts=None,
        note="no prompt, images to videos",
        **SIZE,
    ),
    class_of("LattePipeline", latte, video_length=2, clean_caption=False, **GUIDED, **SIZE),
    class_of("TextToVideoSDPipeline", text_to_video, num_frames=2, **GUIDED, **SIZE),
    class_of(
        "StableDiffusionXLModularPipeline",
        momentum,
        "adaptive projected, 5, with momentum",
        steps=3,
        note="a guider that remembers",
        **SIZE,
    ),
)

# What is refused in part.
ODD_CLASSES = (
    class_of(
        "AnimateDiffPipeline, FreeInit",
        lambda: animate(free_init=True),
        num_frames=2,
        note="several chains",
        **GUIDED,
        **SIZE,
    ),
    class_of("StableDiffusionSAGPipeline", sag, sag_scale=0.75, note="looks into its denoiser", **GUIDED, **SIZE),
    class_of(
        "Flux2KleinKVPipeline",
        lambda: of("Flux2KleinKVPipeline", flux2_klein()),
        "none",
        image=[still()],
        max_sequence_length=16,
        text_encoder_out_layers=(1, 2, 3),
        note="keeps keys and values of its image",
        prompts=PROMPTS[:1],
        **SIZE,
    ),
)

# What is refused wholly.
REFUSED_CLASSES = (
    class_of(
        "StableDiffusionPanoramaPipeline",
        lambda: of("StableDiffusionPanoramaPipeline", sd(), requires_safety_checker=False),
        height=16,
        width=32,
        **GUIDED,
    ),
    class_of(
        "StableDiffusionLDM3DPipeline",
        lambda: of("StableDiffusionLDM3DPipeline", sd(), requires_safety_checker=False),
        **GUIDED,
        **SIZE,
    ),
    class_of(
        "SkyReelsV2DiffusionForcingPipeline", lambda: skyreels("SkyReelsV2DiffusionForcingPipeline"), **GUIDED, **WAN
    ),
)
