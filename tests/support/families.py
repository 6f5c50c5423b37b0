"""Small random pipelines of many families, built from their configs alone: what `test_families.py` drives.

Every pipeline is seeded, has its family's real classes for denoiser, decoder, scheduler and, but for
few, text encoder and tokenizer, and makes images of 16 to 64 pixels on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from tests.support.thorough import some

PROMPTS = ("a cat", "a red dog")
WIDTH = 16  # of text embeddings
VOCABULARY = 260  # bytes and four marks


@dataclass(frozen=True)
class Family:
    """A kind of pipeline and how its tests call it.

    Arguments:
        name: row of the table.
        make: a fresh pipeline in float32, the same each time.
        guidance: how it is guided here, for the table.
        call: keywords of the call, from the dtype of the pipeline.
        prompts: given to the call; None where `call` has embeddings.
        steps: `num_inference_steps`.
        needs: names in diffusers without which the family is skipped.
        precise: the dtype of the gradient check.
        note: for the table.
    """

    name: str
    make: Callable[[], Any]
    guidance: str
    call: Callable[[torch.dtype], dict[str, Any]]
    prompts: tuple[str, ...] | None = PROMPTS
    steps: int = 2
    needs: tuple[str, ...] = ()
    precise: torch.dtype = torch.float64
    note: str = ""
    seed: int = field(default=0)

    def pipe(self, dtype: torch.dtype = torch.float32) -> Any:
        """The pipeline, its weights in `dtype`, without a progress bar."""
        with torch.random.fork_rng():
            torch.manual_seed(self.seed)
            pipe = self.make()
        for component in pipe.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
                if dtype != torch.float32:
                    component.to(dtype)
        pipe.set_progress_bar_config(disable=True)
        return pipe

    @property
    def missing(self) -> list[str]:
        """What this family needs and the installed diffusers does not have."""
        return [name for name in self.needs if not hasattr(diffusers, name)]


def tokenizer(length: int = 16) -> PreTrainedTokenizerFast:
    """A real tokenizer that knows single bytes, with a beginning, an end, and a chat template."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<pad>", "<s>", "</s>", "<unk>"]
    vocabulary = {token: place for place, token in enumerate([*marks, *letters])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A $B </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=length,
        padding_side="right",
        chat_template="{% for m in messages %}{% if m.content is string %}{{ m.content }}{% else %}"
        "{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}",
    )


# Text encoders


def clip_text(projection: bool = False, length: int = 16) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=length,
        projection_dim=WIDTH,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    return (transformers.CLIPTextModelWithProjection if projection else transformers.CLIPTextModel)(config)


def t5_text(cls: str = "T5") -> Any:
    config = getattr(transformers, f"{cls}Config")(
        vocab_size=VOCABULARY, d_model=WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2, feed_forward_proj="gated-gelu"
    )
    return getattr(transformers, f"{cls}EncoderModel")(config)


def decoder_text(cls: str, layers: int = 2, causal: bool = False) -> Any:
    """A small language model: Qwen3, Gemma2, ..."""
    config = getattr(transformers, f"{cls}Config")(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=16,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=1024,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    return getattr(transformers, f"{cls}ForCausalLM" if causal else f"{cls}Model")(config)


# Decoders


def image_vae(channels: int = 4, **more: Any) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=4,
        sample_size=16,
        **more,
    )


def flux_vae(channels: int = 4) -> Any:
    return image_vae(channels, shift_factor=0.1, scaling_factor=0.4, use_quant_conv=False, use_post_quant_conv=False)


def flux2_vae() -> Any:
    return diffusers.AutoencoderKLFlux2(
        block_out_channels=(8, 8),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=4,
        norm_num_groups=4,
        layers_per_block=1,
        sample_size=16,
    )


def wan_vae() -> Any:
    return diffusers.AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.0, 1.1, 0.9, 1.2],
    )


# Denoisers


def unet(**more: Any) -> Any:
    config = {
        "sample_size": 8,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return diffusers.UNet2DConditionModel(**{**config, **more})


def xl_unet(**more: Any) -> Any:
    return unet(
        cross_attention_dim=2 * WIDTH,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=6 * 8 + WIDTH,
        use_linear_projection=True,
        **more,
    )


def flux_transformer(cls: str = "FluxTransformer2DModel", **more: Any) -> Any:
    config = {
        "in_channels": 16,
        "num_layers": 1,
        "num_single_layers": 1,
        "attention_head_dim": 16,
        "num_attention_heads": 2,
        "joint_attention_dim": WIDTH,
        "pooled_projection_dim": WIDTH,
        "guidance_embeds": True,
        "axes_dims_rope": (4, 4, 8),
    }
    return getattr(diffusers, cls)(**{**config, **more})


def flux2_transformer(guidance_embeds: bool) -> Any:
    return diffusers.Flux2Transformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=3 * WIDTH,
        timestep_guidance_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        guidance_embeds=guidance_embeds,
    )


def wan_transformer(cls: str = "WanTransformer3DModel", **more: Any) -> Any:
    config = {
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": WIDTH,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return getattr(diffusers, cls)(**{**config, **more})


def controlnet_network(cls: str = "ControlNetModel", **more: Any) -> Any:
    config = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "conditioning_embedding_out_channels": (4, 8),
    }
    return awake(getattr(diffusers, cls)(**{**config, **more}))


def sana_transformer(**more: Any) -> Any:
    config = {
        "in_channels": 4,
        "out_channels": 4,
        "num_attention_heads": 2,
        "attention_head_dim": 8,
        "num_layers": 2,
        "num_cross_attention_heads": 2,
        "cross_attention_head_dim": 8,
        "cross_attention_dim": 16,
        "caption_channels": WIDTH,
        "sample_size": 8,
    }
    return diffusers.SanaTransformer2DModel(**{**config, **more})


def awake(network: Any) -> Any:
    """The network, its weights that start at zero drawn at random."""
    for weight in network.parameters():
        if not weight.any():
            torch.nn.init.normal_(weight, std=0.1)
    return network


# Schedulers, as the families publish them


def ddim(**more: Any) -> Any:
    return diffusers.DDIMScheduler(beta_schedule="scaled_linear", clip_sample=False, steps_offset=1, **more)


def flow_euler(**more: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**more)


def flow_unipc() -> Any:
    return diffusers.UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)


FLUX_SHIFT = {"use_dynamic_shifting": True, "shift": 3.0, "base_shift": 0.5, "max_shift": 1.15}


# Pipelines


def sd(cls: str = "StableDiffusionPipeline", scheduler: Any = None, **more: Any) -> Any:
    components = {
        "vae": image_vae(),
        "text_encoder": clip_text(),
        "tokenizer": tokenizer(),
        "unet": unet(),
        "scheduler": scheduler or ddim(),
        "safety_checker": None,
        "feature_extractor": None,
        "requires_safety_checker": False,
    }
    return getattr(diffusers, cls)(**{**components, **more})


def controlnet() -> Any:
    network = controlnet_network()
    return sd("StableDiffusionControlNetPipeline", controlnet=network)


def sdxl(scheduler: Any = None) -> Any:
    return diffusers.StableDiffusionXLPipeline(
        vae=image_vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=xl_unet(),
        scheduler=scheduler or diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
        add_watermarker=False,
    )


def sd3() -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=8,
        patch_size=2,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        caption_projection_dim=16,
        pooled_projection_dim=2 * WIDTH,
        pos_embed_max_size=8,
        qk_norm="rms_norm",
        dual_attention_layers=(0,),
    )
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer,
        scheduler=flow_euler(shift=3.0),
        vae=flux_vae(),
        text_encoder=clip_text(projection=True),
        tokenizer=tokenizer(),
        text_encoder_2=clip_text(projection=True),
        tokenizer_2=tokenizer(),
        text_encoder_3=_wide_t5(),
        tokenizer_3=tokenizer(),
    )


def _wide_t5() -> Any:
    config = transformers.T5Config(vocab_size=VOCABULARY, d_model=2 * WIDTH, d_kv=8, d_ff=16, num_layers=1, num_heads=2)
    return transformers.T5EncoderModel(config)


def flux() -> Any:
    return diffusers.FluxPipeline(
        scheduler=flow_euler(**FLUX_SHIFT),
        vae=flux_vae(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=tokenizer(),
        transformer=flux_transformer(),
    )


def flux2() -> Any:
    return diffusers.Flux2Pipeline(
        scheduler=flow_euler(**FLUX_SHIFT),
        vae=flux2_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=flux2_transformer(guidance_embeds=True),
    )


def flux2_klein() -> Any:
    return diffusers.Flux2KleinPipeline(
        scheduler=flow_euler(**FLUX_SHIFT),
        vae=flux2_vae(),
        text_encoder=decoder_text("Qwen3", layers=3, causal=True),
        tokenizer=tokenizer(),
        transformer=flux2_transformer(guidance_embeds=False),
    )


def pixart() -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=8,
        num_layers=2,
        cross_attention_dim=16,
        sample_size=8,
        caption_channels=WIDTH,
        use_additional_conditions=False,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(beta_schedule="linear", beta_start=0.0001, beta_end=0.02)
    return diffusers.PixArtSigmaPipeline(
        tokenizer=tokenizer(), text_encoder=t5_text(), vae=image_vae(), transformer=transformer, scheduler=scheduler
    )


def sana() -> Any:
    transformer = sana_transformer()
    vae = diffusers.AutoencoderDC(
        latent_channels=4,
        attention_head_dim=4,
        encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"),
        encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8),
        encoder_layers_per_block=(1, 1),
        decoder_layers_per_block=(1, 1),
        encoder_qkv_multiscales=((), (5,)),
        decoder_qkv_multiscales=((), (5,)),
        scaling_factor=0.4,
    )
    scheduler = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )
    return diffusers.SanaPipeline(
        tokenizer=tokenizer(512),
        text_encoder=decoder_text("Gemma2", layers=1),
        vae=vae,
        transformer=transformer,
        scheduler=scheduler,
    )


def qwen_transformer() -> Any:
    return diffusers.QwenImageTransformer2DModel(
        in_channels=16,
        out_channels=4,
        num_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        axes_dims_rope=(4, 4, 8),
    )


def qwen_vae() -> Any:
    return diffusers.AutoencoderKLQwenImage(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1],
        num_res_blocks=1,
        temperal_downsample=[False],
        latents_mean=[0.1, -0.1, 0.2, 0.0],
        latents_std=[1.0, 1.1, 0.9, 1.2],
    )


def qwen_image() -> Any:
    return diffusers.QwenImagePipeline(
        scheduler=flow_euler(**FLUX_SHIFT),
        vae=qwen_vae(),
        text_encoder=None,
        tokenizer=None,
        transformer=qwen_transformer(),
    )


def z_image() -> Any:
    transformer = diffusers.ZImageTransformer2DModel(
        in_channels=4,
        dim=32,
        n_layers=1,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
        cap_feat_dim=WIDTH,
        axes_dims=[4, 4, 8],
        axes_lens=[256, 32, 32],
    )
    for name, weight in transformer.named_parameters():
        if "pad_token" in name:  # allocated, but never initialised
            torch.nn.init.normal_(weight, std=0.02)
    return diffusers.ZImagePipeline(
        scheduler=flow_euler(shift=3.0),
        vae=flux_vae(),
        text_encoder=decoder_text("Qwen3"),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


def wan(two: bool = False) -> Any:
    return diffusers.WanPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5_text("UMT5"),
        vae=wan_vae(),
        scheduler=flow_unipc(),
        transformer=wan_transformer(),
        **({"transformer_2": wan_transformer(), "boundary_ratio": 0.8} if two else {}),
    )


def ltx() -> Any:
    transformer = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=2,
        attention_head_dim=8,
        cross_attention_dim=16,
        num_layers=2,
        caption_channels=WIDTH,
    )
    vae = diffusers.AutoencoderKLLTXVideo(
        latent_channels=8,
        block_out_channels=(8, 8, 8, 8),
        decoder_block_out_channels=(8, 8, 8, 8),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1, 1),
        spatio_temporal_scaling=(True, True, False, False),
        decoder_spatio_temporal_scaling=(True, True, False, False),
        patch_size=1,
        patch_size_t=1,
    )
    return diffusers.LTXPipeline(
        scheduler=flow_euler(**FLUX_SHIFT),
        vae=vae,
        text_encoder=t5_text(),
        tokenizer=tokenizer(),
        transformer=transformer,
    )


def cogvideox(scheduler: str = "CogVideoXDDIMScheduler") -> Any:
    transformer = diffusers.CogVideoXTransformer3DModel(
        num_attention_heads=2,
        attention_head_dim=8,
        in_channels=4,
        out_channels=4,
        time_embed_dim=2,
        text_embed_dim=WIDTH,
        num_layers=2,
        sample_width=2,
        sample_height=2,
        sample_frames=5,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=16,
    )
    vae = diffusers.AutoencoderKLCogVideoX(
        block_out_channels=(8, 8, 8, 8),
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )
    return diffusers.CogVideoXPipeline(
        tokenizer=tokenizer(),
        text_encoder=t5_text(),
        vae=vae,
        transformer=transformer,
        scheduler=getattr(diffusers, scheduler)(
            beta_schedule="scaled_linear",
            prediction_type="v_prediction",
            rescale_betas_zero_snr=True,
            snr_shift_scale=3.0,
            timestep_spacing="trailing",
            set_alpha_to_one=True,
            clip_sample=False,
        ),
    )


def lcm() -> Any:
    return sd("LatentConsistencyModelPipeline", diffusers.LCMScheduler(), unet=unet(time_cond_proj_dim=8))


# Modular pipelines


def modular(blocks: str, without: str = "", **components: Any) -> Any:
    """The pipeline of a tree of blocks, but for the one named `without`, with these components."""
    tree = getattr(diffusers, blocks)()
    if without:
        tree.sub_blocks.pop(without)
    pipe = tree.init_pipeline()
    pipe.update_components(**components)
    return pipe


def modular_flux() -> Any:
    return modular(
        "FluxAutoBlocks",
        scheduler=flow_euler(**FLUX_SHIFT),
        vae=flux_vae(),
        text_encoder=clip_text(),
        tokenizer=tokenizer(),
        text_encoder_2=t5_text(),
        tokenizer_2=tokenizer(),
        transformer=flux_transformer(),
    )


def modular_sdxl() -> Any:
    return modular(
        "StableDiffusionXLAutoBlocks",
        vae=image_vae(),
        text_encoder=clip_text(),
        text_encoder_2=clip_text(projection=True),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=xl_unet(),
        scheduler=diffusers.EulerDiscreteScheduler(beta_schedule="scaled_linear", steps_offset=1),
    )


def modular_wan() -> Any:
    return modular(
        "WanBlocks",
        tokenizer=tokenizer(),
        text_encoder=t5_text("UMT5"),
        vae=wan_vae(),
        scheduler=flow_unipc(),
        transformer=wan_transformer(),
    )


def flux3_transformer(**more: Any) -> Any:
    return diffusers.Flux3Transformer2DModel(
        in_channels=16,
        cond_in_channels=16,
        num_layers=1,
        num_single_layers=1,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=2 * WIDTH,
        timestep_channels=16,
        axes_dims_rope=(4, 4, 4, 4),
        **more,
    )


def qwen3_vl() -> Any:
    shape = {"hidden_size": WIDTH, "intermediate_size": 16}
    config = transformers.Qwen3VLConfig(
        text_config={
            **shape,
            "vocab_size": VOCABULARY,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "head_dim": 8,
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 10000.0},
        },
        vision_config={
            **shape,
            "depth": 1,
            "num_heads": 2,
            "out_hidden_size": WIDTH,
            "deepstack_visual_indexes": [0],
            "num_position_embeddings": 16,
        },
    )
    return transformers.Qwen3VLForConditionalGeneration(config)


class TextProcessor:
    """What FLUX.3 calls its tokenizer: a processor, of which it uses the tokenizer and its chat template."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer(512)
        self.apply_chat_template = self.tokenizer.apply_chat_template


def flux3() -> Any:
    return modular(
        "Flux3AutoBlocks",
        without="prompt_upsampler",
        text_encoder=qwen3_vl(),
        tokenizer=TextProcessor(),
        vae=flux2_vae(),
        transformer=flux3_transformer(),
        scheduler=flow_euler(shift=6.93),
    )


def flux3_distilled() -> Any:
    return modular(
        "Flux3DistilledAutoBlocks",
        without="prompt_upsampler",
        text_encoder=qwen3_vl(),
        tokenizer=TextProcessor(),
        vae=flux2_vae(),
        transformer=flux3_transformer(flow_map=True),
        scheduler=flow_euler(shift=6.93),
    )


# How each is called


def embedded(*names: str, batch: int = 2, length: int = 5, width: int = WIDTH) -> Callable[[torch.dtype], Any]:
    """Prompt embeddings under these names, for a pipeline without a text encoder here."""

    def call(dtype: torch.dtype) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(3)
        return {name: torch.randn(batch, length, width, generator=generator).to(dtype) for name in names}

    return call


def with_arguments(call: Callable[[torch.dtype], Any] | None = None, **arguments: Any) -> Callable[[torch.dtype], Any]:
    return lambda dtype: {**(call(dtype) if call else {}), **arguments}


def image(batch: int = 1, size: int = 16) -> torch.Tensor:
    """A image in [0, 1], (batch, 3, size, size)."""
    return torch.rand(batch, 3, size, size, generator=torch.Generator().manual_seed(4))


MODULAR = ("Flux2AutoBlocks",)  # older releases have modular pipelines that are not finished
SIZE = {"height": 16, "width": 16}
VIDEO = {"num_frames": 5}

FAMILIES = (
    Family("Stable Diffusion 1.x", sd, "classifier-free, 4", with_arguments(guidance_scale=4.0), steps=3),
    Family(
        "Stable Diffusion 2.x",
        lambda: sd(scheduler=ddim(prediction_type="v_prediction")),
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0),
        note="v-prediction",
    ),
    Family("Stable Diffusion XL", sdxl, "classifier-free, 4", with_arguments(guidance_scale=4.0, **SIZE)),
    Family(
        "SDXL turbo",
        lambda: sdxl(
            diffusers.EulerAncestralDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="trailing")
        ),
        "none, 0",
        with_arguments(guidance_scale=0.0, **SIZE),
        note="ancestral sampling",
    ),
    Family("Latent consistency", lcm, "embedded, 4", with_arguments(guidance_scale=4.0)),
    Family(
        "SD image to image",
        lambda: sd("StableDiffusionImg2ImgPipeline"),
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, image=image(2), strength=0.5),
        steps=6,
        note="`image` and `strength` in the call",
    ),
    Family(
        "SD with ControlNet",
        controlnet,
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, image=image()),
        note="`image` in the call",
    ),
    Family("Stable Diffusion 3", sd3, "classifier-free, 4", with_arguments(guidance_scale=4.0, **SIZE)),
    Family(
        "FLUX.1",
        flux,
        "embedded, 3.5, and classifier-free, 2",
        with_arguments(
            guidance_scale=3.5, true_cfg_scale=2.0, negative_prompt=["", ""], max_sequence_length=16, **SIZE
        ),
        note="packed latents",
    ),
    Family(
        "FLUX.2",
        flux2,
        "embedded, 4",
        with_arguments(embedded("prompt_embeds", width=3 * WIDTH), guidance_scale=4.0, **SIZE),
        prompts=None,
        needs=("Flux2Pipeline",),
        note="prompt embeddings here",
    ),
    Family(
        "FLUX.2 klein",
        flux2_klein,
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, max_sequence_length=16, text_encoder_out_layers=(1, 2, 3), **SIZE),
        needs=("Flux2KleinPipeline",),
    ),
    Family(
        "PixArt-Sigma",
        pixart,
        "classifier-free, 4",
        with_arguments(
            guidance_scale=4.0, use_resolution_binning=False, clean_caption=False, max_sequence_length=16, **SIZE
        ),
        steps=3,
        note="predicts a variance too",
    ),
    Family(
        "Sana",
        sana,
        "classifier-free, 4",
        with_arguments(
            guidance_scale=4.0,
            use_resolution_binning=False,
            complex_human_instruction=None,
            max_sequence_length=16,
            height=32,
            width=32,
        ),
    ),
    Family(
        "Qwen-Image",
        qwen_image,
        "classifier-free, 4",
        with_arguments(
            embedded("prompt_embeds", "negative_prompt_embeds"),
            prompt_embeds_mask=torch.ones(2, 5, dtype=torch.long),
            negative_prompt_embeds_mask=torch.ones(2, 5, dtype=torch.long),
            true_cfg_scale=4.0,
            **SIZE,
        ),
        prompts=None,
        note="prompt embeddings here",
    ),
    Family(
        "Z-Image",
        z_image,
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, max_sequence_length=16, **SIZE),
        needs=("ZImagePipeline",),
        note="lists of tensors in and out of the denoiser",
    ),
    Family(
        "Wan 2.1, video",
        wan,
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, max_sequence_length=16, **SIZE, **VIDEO),
        steps=3,
    ),
    Family(
        "Wan 2.2, video",
        lambda: wan(two=True),
        "classifier-free, 4 and 3",
        with_arguments(guidance_scale=4.0, guidance_scale_2=3.0, max_sequence_length=16, **SIZE, **VIDEO),
        note="two denoisers",
    ),
    Family(
        "LTX, video",
        ltx,
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, max_sequence_length=16, height=32, width=32, num_frames=9),
    ),
    Family(
        "CogVideoX, video",
        cogvideox,
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, max_sequence_length=16, **SIZE, **VIDEO),
    ),
    Family(
        "CogVideoX, video, DPM",
        lambda: cogvideox("CogVideoXDPMScheduler"),
        "classifier-free, 4",
        with_arguments(guidance_scale=4.0, max_sequence_length=16, **SIZE, **VIDEO),
        steps=3,
        note="its step takes the x0 of the step before",
    ),
    Family(
        "FLUX.1, modular",
        modular_flux,
        "embedded, 3.5",
        with_arguments(guidance_scale=3.5, max_sequence_length=16, **SIZE),
        needs=("FluxAutoBlocks", *MODULAR),
    ),
    Family(
        "SDXL, modular",
        modular_sdxl,
        "classifier-free, 7.5",
        with_arguments(**SIZE),
        needs=("StableDiffusionXLAutoBlocks", *MODULAR),
        note="a guider",
    ),
    Family(
        "Wan 2.1, video, modular",
        modular_wan,
        "classifier-free, 5",
        with_arguments(max_sequence_length=16, **SIZE, **VIDEO),
        needs=("WanBlocks", *MODULAR),
        note="a guider",
    ),
    Family(
        "FLUX.3",
        flux3,
        "classifier-free, 3.5",
        with_arguments(max_sequence_length=64, text_encoder_out_layers=(1, 2), **SIZE),
        prompts=PROMPTS[:1],
        needs=("Flux3AutoBlocks",),
        note="modular only; one prompt a call",
    ),
    Family(
        "FLUX.3, distilled",
        flux3_distilled,
        "none",
        with_arguments(max_sequence_length=64, text_encoder_out_layers=(1, 2), **SIZE),
        prompts=PROMPTS[:1],
        needs=("Flux3DistilledAutoBlocks",),
        note="modular only; one prompt a call",
    ),
)

# A UNet with and without a second network, transformers with each kind of attention, autoencoders of images and of
# videos, two denoisers, several prompts in a call and one, and a modular pipeline: for checks that are slow on all.
DISTINCT = some(
    {family.name: family for family in FAMILIES},
    *("Stable Diffusion XL", "SD with ControlNet", "Stable Diffusion 3", "FLUX.1", "Sana", "PixArt-Sigma"),
    *("Wan 2.2, video", "CogVideoX, video", "LTX, video", "SDXL, modular"),
)
