"""A pipeline that the sampler has never seen, as diffusers might add one tomorrow; it also tries schedulers out.

Its loop is its own, its latents are tokens, its denoiser is called twice a step with names of its own.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from diffusers import ConfigMixin, DiffusionPipeline, ModelMixin
from diffusers.configuration_utils import register_to_config
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

TOKENS, CHANNELS, PATCH = 4, 3, 4  # four patches of 4 by 4 pixels


class Mixer(ModelMixin, ConfigMixin):
    """Tokens, their time and the words in, a prediction for each token out."""

    @register_to_config
    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.enter = torch.nn.Linear(CHANNELS + 2, width)
        self.to_q = torch.nn.Linear(width, width)
        self.to_k = torch.nn.Linear(width, width)
        self.leave = torch.nn.Linear(width, CHANNELS)

    def forward(self, *, tokens: torch.Tensor, when: torch.Tensor, words: torch.Tensor) -> dict[str, torch.Tensor]:
        time = (when / 1000).to(tokens).reshape(-1, 1, 1).expand(*tokens.shape[:2], 1)
        words = words.to(tokens).reshape(-1, 1, 1).expand(*tokens.shape[:2], 1)
        hidden = self.enter(torch.cat([tokens, time, words], dim=-1))
        attention = (self.to_q(hidden) @ self.to_k(hidden).mT).softmax(dim=-1)
        return {"answer": self.leave((attention @ hidden).tanh())}


class Painter(ModelMixin, ConfigMixin):
    """Tokens to patches of an image."""

    @register_to_config
    def __init__(self) -> None:
        super().__init__()
        self.paint = torch.nn.Linear(CHANNELS, 3 * PATCH * PATCH)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        patches = self.paint(tokens).reshape(len(tokens), 2, 2, 3, PATCH, PATCH)
        return patches.permute(0, 3, 1, 4, 2, 5).reshape(len(tokens), 3, 2 * PATCH, 2 * PATCH).tanh() / 2 + 0.5


class NewcomerOutput(BaseOutput):
    """The images."""

    images: Any


class NewcomerPipeline(DiffusionPipeline):
    """Prompts to images, by a loop of its own."""

    def __init__(self, transformer: Mixer, painter: Painter, scheduler: Any) -> None:
        super().__init__()
        self.register_modules(transformer=transformer, painter=painter, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        prompt: list[str] | str,
        num_inference_steps: int = 5,
        strength_of_words: float = 3.0,
        generator: torch.Generator | None = None,
        output_type: str = "pt",
        return_dict: bool = True,
    ) -> Any:
        prompts = [prompt] if isinstance(prompt, str) else prompt
        words = torch.tensor([len(text) / 10 for text in prompts])
        self.scheduler.set_timesteps(num_inference_steps)
        dtype = self.transformer.dtype
        tokens = randn_tensor((len(prompts), TOKENS, CHANNELS), generator=generator, dtype=dtype)
        tokens = tokens * getattr(self.scheduler, "init_noise_sigma", 1.0)
        extra = {"generator": generator} if "generator" in inspect.signature(self.scheduler.step).parameters else {}
        for when in self.scheduler.timesteps:
            seen = (
                self.scheduler.scale_model_input(tokens, when)
                if hasattr(self.scheduler, "scale_model_input")
                else tokens
            )
            without = self.transformer(words=torch.zeros_like(words), tokens=seen, when=when)["answer"]
            answer = self.transformer(words=words, tokens=seen, when=when)["answer"]
            guided = without + strength_of_words * (answer - without)
            tokens = self.scheduler.step(guided, when, tokens, **extra, return_dict=False)[0]
        images = self.painter(tokens.to(dtype))
        return NewcomerOutput(images=images) if return_dict else (images,)


def newcomer(scheduler: Any, dtype: torch.dtype = torch.float32) -> NewcomerPipeline:
    """Seeded, with this scheduler."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        pipe = NewcomerPipeline(Mixer().to(dtype), Painter().to(dtype), scheduler)
    return pipe
