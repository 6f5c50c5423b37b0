"""Further pipeline classes of images, small and random like those in `families`: what `test_classes.py` drives."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch

from tests.support.families import (
    PROMPTS,
    SIZE,
    WIDTH,
    Family,
    awake,
    controlnet,
    controlnet_network,
    decoder_text,
    embedded,
    flow_euler,
    flux,
    flux2_klein,
    flux_transformer,
    flux_vae,
    image,
    image_vae,
    lcm,
    pixart,
    sana,
    sana_transformer,
    sd,
    sd3,
    sdxl,
    t5_text,
    tokenizer,
    unet,
    with_arguments,
    xl_unet,
    z_image,
)

GUIDED = {"guidance_scale": 4.0}
FROM_IMAGE = {"image": image(2), "strength": 0.6}
CONTROL = "control_image"


def of(name: str, pipe: Any, **more: Any) -> Any:
    """The pipeline's components in another pipeline class, those that it has, with some replaced."""
    cls = getattr(diffusers, name)
    known = inspect.signature(cls.__init__).parameters
    return cls(**{**{part: value for part, value in pipe.components.items() if part in known}, **more})


def mask(batch: int = 2, size: int = 16) -> torch.Tensor:
    """Half of an image, (batch, 1, size, size)."""
    half = torch.zeros(batch, 1, size, size)
    half[..., size // 2 :] = 1
    return half


def class_of(
    name: str, make: Callable[[], Any], guidance: str = "classifier-free, 4", steps: int = 2, **call: Any
) -> Family:
    """A pipeline class as a family of its own; `prompts` and `note` are those of the family."""
    own = {key: call.pop(key) for key in ("prompts", "note", "precise", "needs") if key in call}
    return Family(name, make, guidance, with_arguments(call.pop("tensors", None), **call), steps=steps, **own)


# Components


def xl_controlnet(cls: str = "ControlNetModel", **more: Any) -> Any:
    return controlnet_network(
        cls,
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        use_linear_projection=True,
        **more,
    )


def union() -> Any:
    return xl_controlnet("ControlNetUnionModel", num_trans_channel=8, num_trans_head=2, num_proj_channel=8)


def adapter() -> Any:
    return awake(diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2))


def adapted_unet(make: Callable[..., Any] = unet) -> Any:
    """Attention first and last no attention, as adapters want it."""
    return make(
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D")
    )


def xl(name: str, **more: Any) -> Any:
    return of(name, sdxl(), **{"add_watermarker": False, **more})


def xl_control(name: str, **more: Any) -> Any:
    return xl(name, **{"controlnet": xl_controlnet(), **more})


def instruct() -> Any:
    return of("StableDiffusionInstructPix2PixPipeline", sd(), unet=unet(in_channels=8))


def upscale() -> Any:
    pipe, network = sd(), unet(in_channels=7, num_class_embeds=1000)
    return of("StableDiffusionUpscalePipeline", pipe, unet=network, low_res_scheduler=diffusers.DDPMScheduler())


def sd3_controlnet() -> Any:
    network = diffusers.SD3ControlNetModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        out_channels=4,
        pos_embed_max_size=8,
    )
    return of("StableDiffusion3ControlNetPipeline", sd3(), controlnet=awake(network))


def wide_flux(channels: int) -> Any:
    return flux_transformer(in_channels=channels, out_channels=16)


def flux_controlnet() -> Any:
    return awake(flux_transformer("FluxControlNetModel"))


def chroma(name: str = "ChromaPipeline") -> Any:
    transformer = diffusers.ChromaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
        approximator_num_channels=8,
        approximator_hidden_dim=16,
        approximator_layers=1,
    )
    return getattr(diffusers, name)(
        scheduler=flow_euler(),
        vae=flux_vae(),
        text_encoder=t5_text(),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


def lumina2() -> Any:
    transformer = diffusers.Lumina2Transformer2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=24,
        num_layers=1,
        num_refiner_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        axes_dim_rope=(4, 4, 4),
        axes_lens=(64, 16, 16),
        cap_feat_dim=WIDTH,
    )
    return diffusers.Lumina2Pipeline(
        transformer=transformer,
        scheduler=flow_euler(),
        vae=flux_vae(),
        text_encoder=decoder_text("Gemma2"),
        tokenizer=tokenizer(),
    )


def lumina() -> Any:
    transformer = diffusers.LuminaNextDiT2DModel(
        sample_size=8,
        in_channels=4,
        hidden_size=32,
        num_layers=1,
        num_attention_heads=2,
        num_kv_heads=1,
        multiple_of=8,
        cross_attention_dim=WIDTH,
    )
    return diffusers.LuminaPipeline(
        transformer=transformer,
        scheduler=flow_euler(),
        vae=image_vae(),
        text_encoder=decoder_text("Gemma2"),
        tokenizer=tokenizer(),
    )


def aura_flow() -> Any:
    transformer = diffusers.AuraFlowTransformer2DModel(
        sample_size=8,
        in_channels=4,
        num_mmdit_layers=1,
        num_single_dit_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        caption_projection_dim=16,
        pos_embed_max_size=64,
    )
    return diffusers.AuraFlowPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5_text("UMT5"),
        vae=image_vae(),
        transformer=transformer,
        scheduler=flow_euler(),
    )


def cogview4() -> Any:
    transformer = diffusers.CogView4Transformer2DModel(
        in_channels=4,
        out_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        sample_size=8,
        rope_axes_dim=(16, 16),
    )
    return diffusers.CogView4Pipeline(
        tokenizer=tokenizer(), text_encoder=None, vae=image_vae(), transformer=transformer, scheduler=flow_euler()
    )


def cogview3() -> Any:
    transformer = diffusers.CogView3PlusTransformer2DModel(
        in_channels=4,
        num_layers=1,
        attention_head_dim=8,
        num_attention_heads=2,
        out_channels=4,
        text_embed_dim=WIDTH,
        time_embed_dim=8,
        condition_dim=4,
        pos_embed_max_size=8,
        sample_size=8,
    )
    scheduler = diffusers.CogVideoXDDIMScheduler(
        beta_schedule="scaled_linear", prediction_type="v_prediction", timestep_spacing="trailing", clip_sample=False
    )
    return diffusers.CogView3PlusPipeline(
        tokenizer=tokenizer(), text_encoder=t5_text(), vae=image_vae(), transformer=transformer, scheduler=scheduler
    )


def bria() -> Any:
    transformer = diffusers.BriaTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=[4, 4, 8],
    )
    return diffusers.BriaPipeline(
        transformer=transformer,
        scheduler=flow_euler(),
        vae=image_vae(shift_factor=0.0),
        text_encoder=t5_text(),
        tokenizer=tokenizer(),
    )


def ovis() -> Any:
    transformer = diffusers.OvisImageTransformer2DModel(
        in_channels=16,
        out_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )
    return diffusers.OvisImagePipeline(
        scheduler=flow_euler(),
        vae=flux_vae(),
        text_encoder=decoder_text("Qwen3"),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


def dit() -> Any:
    transformer = diffusers.DiTTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=1,
        sample_size=8,
        num_embeds_ada_norm=1000,
        norm_num_groups=4,
    )
    return diffusers.DiTPipeline(
        transformer=awake(transformer), vae=image_vae(), scheduler=diffusers.DDIMScheduler(clip_sample=False)
    )


def pixels(cls: str) -> Any:
    network = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
        norm_num_groups=4,
    )
    scheduler = {"DDPMPipeline": diffusers.DDPMScheduler, "DDIMPipeline": diffusers.DDIMScheduler}[cls]()
    return getattr(diffusers, cls)(unet=network, scheduler=scheduler)


def deepfloyd(cls: str = "IFPipeline") -> Any:
    network = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(8, 16),
        layers_per_block=1,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        in_channels=3,
        out_channels=6,
        cross_attention_dim=2 * WIDTH,
        encoder_hid_dim=WIDTH,
        attention_head_dim=4,
        norm_num_groups=4,
        addition_embed_type="text",
        addition_embed_type_num_heads=2,
        cross_attention_norm="group_norm",
        resnet_time_scale_shift="scale_shift",
        act_fn="gelu",
    )
    return getattr(diffusers, cls)(
        tokenizer=tokenizer(),
        text_encoder=t5_text(),
        unet=network,
        scheduler=diffusers.DDPMScheduler(variance_type="learned_range", beta_schedule="squaredcos_cap_v2"),
        safety_checker=None,
        feature_extractor=None,
        watermarker=None,
        requires_safety_checker=False,
    )


def prx(pixel: bool = False) -> Any:
    transformer = diffusers.PRXTransformer2DModel(
        in_channels=3 if pixel else 4,
        patch_size=2,
        context_in_dim=WIDTH,
        hidden_size=32,
        mlp_ratio=2.0,
        num_heads=2,
        depth=1,
        axes_dim=[8, 8],
    )
    parts = {
        "transformer": awake(transformer),
        "scheduler": flow_euler(),
        "text_encoder": t5_text(),
        "tokenizer": tokenizer(),
    }
    if pixel:
        return diffusers.PRXPixelPipeline(**parts)
    return diffusers.PRXPipeline(**parts, vae=flux_vae())


def sana_sprint() -> Any:
    pipe, network = sana(), sana_transformer(num_layers=1, guidance_embeds=True)
    return of("SanaSprintPipeline", pipe, transformer=network, scheduler=diffusers.SCMScheduler())


SANA_CALL = {
    "use_resolution_binning": False,
    "complex_human_instruction": None,
    "max_sequence_length": 16,
    "height": 32,
    "width": 32,
}
PAG = {**GUIDED, "pag_scale": 2.0}
SDXL = {**GUIDED, **SIZE}
SHORT = {"max_sequence_length": 16, **SIZE}
EMBEDDED = "prompt embeddings here"

IMAGE_CLASSES = (
    class_of(
        "StableDiffusionInpaintPipeline",
        lambda: sd("StableDiffusionInpaintPipeline"),
        mask_image=mask(),
        steps=4,
        **FROM_IMAGE,
        **SDXL,
    ),
    class_of(
        "StableDiffusionControlNetImg2ImgPipeline",
        lambda: of("StableDiffusionControlNetImg2ImgPipeline", controlnet(), requires_safety_checker=False),
        steps=4,
        control_image=image(2),
        **FROM_IMAGE,
        **GUIDED,
    ),
    class_of(
        "StableDiffusionControlNetInpaintPipeline",
        lambda: of("StableDiffusionControlNetInpaintPipeline", controlnet(), requires_safety_checker=False),
        steps=4,
        control_image=image(2),
        mask_image=mask(),
        **FROM_IMAGE,
        **SDXL,
    ),
    class_of(
        "StableDiffusionPAGPipeline", lambda: sd("StableDiffusionPAGPipeline", requires_safety_checker=False), **PAG
    ),
    class_of(
        "StableDiffusionPAGImg2ImgPipeline",
        lambda: sd("StableDiffusionPAGImg2ImgPipeline"),
        steps=4,
        **FROM_IMAGE,
        **PAG,
    ),
    class_of(
        "StableDiffusionPAGInpaintPipeline",
        lambda: sd("StableDiffusionPAGInpaintPipeline"),
        steps=4,
        mask_image=mask(),
        **FROM_IMAGE,
        **PAG,
        **SIZE,
    ),
    class_of(
        "StableDiffusionControlNetPAGPipeline",
        lambda: of("StableDiffusionControlNetPAGPipeline", controlnet(), requires_safety_checker=False),
        image=image(2),
        **PAG,
    ),
    class_of(
        "StableDiffusionControlNetPAGInpaintPipeline",
        lambda: of("StableDiffusionControlNetPAGInpaintPipeline", controlnet(), requires_safety_checker=False),
        steps=4,
        control_image=image(2),
        mask_image=mask(),
        **FROM_IMAGE,
        **PAG,
        **SIZE,
    ),
    class_of("StableDiffusionInstructPix2PixPipeline", instruct, image=image(2), image_guidance_scale=1.5, **GUIDED),
    class_of("StableDiffusionUpscalePipeline", upscale, image=image(2, 8), noise_level=20, **GUIDED),
    class_of(
        "LatentConsistencyModelImg2ImgPipeline",
        lambda: of("LatentConsistencyModelImg2ImgPipeline", lcm(), requires_safety_checker=False),
        "embedded, 4",
        steps=4,
        **FROM_IMAGE,
        **GUIDED,
    ),
    class_of(
        "StableDiffusionGLIGENPipeline",
        lambda: of(
            "StableDiffusionGLIGENPipeline",
            sd(),
            unet=awake(unet(attention_type="gated")),
            requires_safety_checker=False,
        ),
        gligen_phrases=["cat"],
        gligen_boxes=[[0.1, 0.2, 0.6, 0.7]],
        **SDXL,
    ),
    class_of(
        "StableDiffusionXLImg2ImgPipeline",
        lambda: xl("StableDiffusionXLImg2ImgPipeline"),
        steps=4,
        **FROM_IMAGE,
        **GUIDED,
    ),
    class_of(
        "StableDiffusionXLInpaintPipeline",
        lambda: xl("StableDiffusionXLInpaintPipeline"),
        steps=4,
        mask_image=mask(),
        **FROM_IMAGE,
        **SDXL,
    ),
    class_of(
        "StableDiffusionXLInstructPix2PixPipeline",
        lambda: of(
            "StableDiffusionXLInstructPix2PixPipeline",
            sdxl(),
            unet=xl_unet(in_channels=8),
            add_watermarker=False,
        ),
        image=image(2),
        image_guidance_scale=1.5,
        **SDXL,
    ),
    class_of(
        "StableDiffusionXLControlNetPipeline",
        lambda: xl_control("StableDiffusionXLControlNetPipeline"),
        image=image(2),
        **SDXL,
    ),
    class_of(
        "StableDiffusionXLControlNetImg2ImgPipeline",
        lambda: xl_control("StableDiffusionXLControlNetImg2ImgPipeline"),
        steps=4,
        control_image=image(2),
        **FROM_IMAGE,
        **GUIDED,
    ),
    class_of(
        "StableDiffusionXLControlNetInpaintPipeline",
        lambda: xl_control("StableDiffusionXLControlNetInpaintPipeline"),
        steps=4,
        control_image=image(2),
        mask_image=mask(),
        **FROM_IMAGE,
        **SDXL,
    ),
    class_of(
        "StableDiffusionXLControlNetUnionPipeline",
        lambda: xl_control("StableDiffusionXLControlNetUnionPipeline", controlnet=union()),
        control_image=[image(2)],
        control_mode=[1],
        **SDXL,
    ),
    class_of(
        "StableDiffusionXLControlNetUnionImg2ImgPipeline",
        lambda: xl_control("StableDiffusionXLControlNetUnionImg2ImgPipeline", controlnet=union()),
        steps=4,
        control_image=[image(2)],
        control_mode=[1],
        **FROM_IMAGE,
        **SDXL,
    ),
    class_of(
        "StableDiffusionXLAdapterPipeline",
        lambda: of("StableDiffusionXLAdapterPipeline", sdxl(), unet=adapted_unet(xl_unet), adapter=adapter()),
        image=image(2),
        **SDXL,
    ),
    class_of("StableDiffusionXLPAGPipeline", lambda: xl("StableDiffusionXLPAGPipeline"), **PAG, **SIZE),
    class_of(
        "StableDiffusionXLPAGImg2ImgPipeline",
        lambda: xl("StableDiffusionXLPAGImg2ImgPipeline"),
        steps=4,
        **FROM_IMAGE,
        **PAG,
    ),
    class_of(
        "StableDiffusionXLPAGInpaintPipeline",
        lambda: xl("StableDiffusionXLPAGInpaintPipeline"),
        steps=4,
        mask_image=mask(),
        **FROM_IMAGE,
        **PAG,
        **SIZE,
    ),
    class_of(
        "StableDiffusionXLControlNetPAGPipeline",
        lambda: xl_control("StableDiffusionXLControlNetPAGPipeline"),
        image=image(2),
        **PAG,
        **SIZE,
    ),
    class_of(
        "StableDiffusionXLControlNetPAGImg2ImgPipeline",
        lambda: xl_control("StableDiffusionXLControlNetPAGImg2ImgPipeline"),
        steps=4,
        control_image=image(2),
        **FROM_IMAGE,
        **PAG,
    ),
    class_of(
        "StableDiffusion3Img2ImgPipeline",
        lambda: of("StableDiffusion3Img2ImgPipeline", sd3()),
        steps=4,
        **FROM_IMAGE,
        **SDXL,
    ),
    class_of("StableDiffusion3ControlNetPipeline", sd3_controlnet, control_image=image(2), **SDXL),
    class_of(
        "StableDiffusion3PAGPipeline",
        lambda: of("StableDiffusion3PAGPipeline", sd3(), pag_applied_layers=["blocks.1"]),
        **PAG,
        **SIZE,
    ),
    class_of(
        "StableDiffusion3PAGImg2ImgPipeline",
        lambda: of("StableDiffusion3PAGImg2ImgPipeline", sd3(), pag_applied_layers=["blocks.1"]),
        steps=4,
        **FROM_IMAGE,
        **PAG,
        **SIZE,
    ),
    class_of(
        "FluxImg2ImgPipeline",
        lambda: of("FluxImg2ImgPipeline", flux()),
        "embedded, 3.5",
        steps=4,
        guidance_scale=3.5,
        **FROM_IMAGE,
        **SHORT,
    ),
    class_of(
        "FluxInpaintPipeline",
        lambda: of("FluxInpaintPipeline", flux()),
        "embedded, 3.5",
        steps=4,
        guidance_scale=3.5,
        mask_image=mask(),
        **FROM_IMAGE,
        **SHORT,
    ),
    class_of(
        "FluxFillPipeline",
        lambda: of("FluxFillPipeline", flux(), transformer=wide_flux(48)),
        "embedded, 30",
        guidance_scale=30.0,
        image=image(2),
        mask_image=mask(),
        **SHORT,
    ),
    class_of(
        "FluxControlPipeline",
        lambda: of("FluxControlPipeline", flux(), transformer=wide_flux(32)),
        "embedded, 3.5",
        guidance_scale=3.5,
        control_image=image(2),
        **SHORT,
    ),
    class_of(
        "FluxControlImg2ImgPipeline",
        lambda: of("FluxControlImg2ImgPipeline", flux(), transformer=wide_flux(32)),
        "embedded, 3.5",
        steps=4,
        guidance_scale=3.5,
        control_image=image(2),
        **FROM_IMAGE,
        **SHORT,
    ),
    class_of(
        "FluxControlNetPipeline",
        lambda: of("FluxControlNetPipeline", flux(), controlnet=flux_controlnet()),
        "embedded, 3.5",
        guidance_scale=3.5,
        control_image=image(2),
        **SHORT,
    ),
    class_of(
        "FluxControlNetImg2ImgPipeline",
        lambda: of("FluxControlNetImg2ImgPipeline", flux(), controlnet=flux_controlnet()),
        "embedded, 3.5",
        steps=4,
        guidance_scale=3.5,
        control_image=image(2),
        **FROM_IMAGE,
        **SHORT,
    ),
    class_of(
        "FluxControlNetInpaintPipeline",
        lambda: of("FluxControlNetInpaintPipeline", flux(), controlnet=flux_controlnet()),
        "embedded, 3.5",
        steps=4,
        guidance_scale=3.5,
        control_image=image(2),
        mask_image=mask(),
        **FROM_IMAGE,
        **SHORT,
    ),
    class_of(
        "FluxKontextPipeline",
        lambda: of("FluxKontextPipeline", flux()),
        "embedded, 3.5",
        guidance_scale=3.5,
        image=image(2),
        max_area=256,
        _auto_resize=False,
        **SHORT,
    ),
    class_of("ChromaPipeline", chroma, **GUIDED, **SHORT),
    class_of(
        "ChromaImg2ImgPipeline", lambda: chroma("ChromaImg2ImgPipeline"), steps=4, **FROM_IMAGE, **GUIDED, **SHORT
    ),
    class_of(
        "Flux2KleinInpaintPipeline",
        lambda: of("Flux2KleinInpaintPipeline", flux2_klein()),
        steps=4,
        text_encoder_out_layers=(1, 2, 3),
        mask_image=mask(),
        **FROM_IMAGE,
        **GUIDED,
        **SHORT,
    ),
    class_of(
        "ZImageImg2ImgPipeline",
        lambda: of("ZImageImg2ImgPipeline", z_image()),
        steps=4,
        **FROM_IMAGE,
        **GUIDED,
        **SHORT,
    ),
    class_of(
        "ZImageInpaintPipeline",
        lambda: of("ZImageInpaintPipeline", z_image()),
        steps=4,
        mask_image=mask(),
        **FROM_IMAGE,
        **GUIDED,
        **SHORT,
    ),
    class_of(
        "PixArtAlphaPipeline",
        lambda: of("PixArtAlphaPipeline", pixart()),
        use_resolution_binning=False,
        clean_caption=False,
        **GUIDED,
        **SHORT,
    ),
    class_of(
        "PixArtSigmaPAGPipeline",
        lambda: of("PixArtSigmaPAGPipeline", pixart(), pag_applied_layers="blocks.1"),
        use_resolution_binning=False,
        clean_caption=False,
        **PAG,
        **SHORT,
    ),
    class_of(
        "SanaPAGPipeline", lambda: of("SanaPAGPipeline", sana(), pag_applied_layers="blocks.1"), **PAG, **SANA_CALL
    ),
    class_of("SanaSprintPipeline", sana_sprint, "embedded, 4", **GUIDED, **SANA_CALL),
    class_of("LuminaPipeline", lumina, clean_caption=False, **GUIDED, **SHORT),
    class_of("Lumina2Pipeline", lumina2, **GUIDED, **SHORT),
    class_of("AuraFlowPipeline", aura_flow, **GUIDED, **SHORT),
    class_of("CogView3PlusPipeline", cogview3, **GUIDED, **SHORT),
    class_of(
        "CogView4Pipeline",
        cogview4,
        tensors=embedded("prompt_embeds", "negative_prompt_embeds"),
        prompts=None,
        note=EMBEDDED,
        **GUIDED,
        **SIZE,
    ),
    class_of("BriaPipeline", bria, **GUIDED, **SHORT),
    class_of("OvisImagePipeline", ovis, **GUIDED, **SHORT),
    class_of("DiTPipeline", dit, class_labels=[1, 2], prompts=None, note="classes for prompts", **GUIDED),
    class_of(
        "DDPMPipeline", lambda: pixels("DDPMPipeline"), "none", batch_size=2, prompts=None, note="no prompt, pixels"
    ),
    class_of(
        "DDIMPipeline", lambda: pixels("DDIMPipeline"), "none", batch_size=2, prompts=None, note="no prompt, pixels"
    ),
    class_of(
        "IFPipeline",
        deepfloyd,
        note="pixels, predicts a variance too",
        clean_caption=False,
        height=8,
        width=8,
        **GUIDED,
    ),
    class_of(
        "PRXPipeline",
        prx,
        use_resolution_binning=False,
        skip_text_cleaning=True,
        prompts=PROMPTS[:1],
        **GUIDED,
        **SIZE,
    ),
    class_of(
        "PRXPixelPipeline",
        lambda: prx(pixel=True),
        use_resolution_binning=False,
        prompts=PROMPTS[:1],
        note="pixels, noise of deviation 2",
        **GUIDED,
        **SIZE,
    ),
)
