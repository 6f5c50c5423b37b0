"""The model of HPS v3: Qwen2-VL with a head instead of its vocabulary's output, and the names of the published file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor
from transformers import Qwen2VLConfig, Qwen2VLModel

from draft_core.rewards.weights import require_fit

PATCH, MERGE, FRAMES = 14, 2, 2  # pixels of a patch's side, patches of a token's side, copies of the image in time
HEAD = (1024, 16, 2)
HEAD_DROPOUT = 0.05  # active in training alone, and it counts in the names

# Qwen2-VL-7B-Instruct's config.json; the size of the vocabulary is that of the tokenizer.
SEVEN_B: dict[str, Any] = {
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "num_hidden_layers": 28,
    "num_attention_heads": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-6,
    "rope_theta": 1e6,
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vision_config": {"depth": 32, "embed_dim": 1280, "hidden_size": 3584, "num_heads": 16, "mlp_ratio": 4},
}
# For tests: the same shape, at a millionth of its size.
TINY: dict[str, Any] = {
    **SEVEN_B,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.05,
    "bos_token_id": None,
    "eos_token_id": None,
    "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
    "vision_config": {
        "depth": 2,
        "embed_dim": 32,
        "hidden_size": 64,
        "num_heads": 2,
        "mlp_ratio": 2,
        "initializer_range": 0.05,
    },
}

UNUSED = frozenset(["lm_head.weight"])  # the output of the vocabulary, which the score does not use
_PREFIXES = (("backbone.visual.", "visual."), ("backbone.language_model.", "model."), ("head.", "rm_head."))


class Judge(torch.nn.Module):
    """Qwen2-VL and the head: mean and deviation of how well people like an image for its prompt.

    Arguments:
        sizes: `SEVEN_B` or `TINY`.
        vocabulary: how many tokens there are.
        image_token: number of the token that stands for a part of the image.
    """

    def __init__(self, sizes: Mapping[str, Any], vocabulary: int, image_token: int) -> None:
        super().__init__()
        config = Qwen2VLConfig(**sizes, vocab_size=vocabulary, image_token_id=image_token, use_cache=False)
        self.backbone = Qwen2VLModel(config)
        width, (first, second, last) = sizes["hidden_size"], HEAD
        self.head = torch.nn.Sequential(
            torch.nn.Linear(width, first),
            torch.nn.ReLU(),
            torch.nn.Dropout(HEAD_DROPOUT),
            torch.nn.Linear(first, second),
            torch.nn.ReLU(),
            torch.nn.Linear(second, last),
        )

    def forward(self, ids: Tensor, mask: Tensor, patches: Tensor, grid: Tensor, places: Tensor) -> Tensor:
        """Mean and deviation (B, 2) float32, of B texts that each hold one image.

        Arguments:
            ids, mask: (B, L) of the texts' tokens, padded behind.
            patches: (B * patches, D) of the images, one image after the other, in the model's precision.
            grid: (B, 3), copies in time, rows and columns of each image's patches.
            places: (B,) of the tokens that are rated.
        """
        # HPS v3 was trained with positions that count on through the image, as transformers 4.45 gave them to a model
        # that is not asked to generate; today's would give the parts of the image their row and column.
        positions = torch.arange(ids.shape[1], device=ids.device).expand(3, *ids.shape)
        states = self.backbone(
            input_ids=ids,
            attention_mask=mask,
            position_ids=positions,
            pixel_values=patches,
            image_grid_thw=grid,
            use_cache=False,
        ).last_hidden_state
        rated: Tensor = self.head(states[torch.arange(len(ids), device=ids.device), places].float())
        return rated


def published_name(name: str) -> str:
    """What the published file calls one of our tensors."""
    for ours, theirs in _PREFIXES:
        if name.startswith(ours):
            return theirs + name.removeprefix(ours)
    return name


def empty_judge(sizes: Mapping[str, Any], vocabulary: int, image_token: int) -> Judge:
    """A judge whose weights take no memory yet; its other tensors are there."""
    with init_empty_weights(include_buffers=False):
        return Judge(sizes, vocabulary, image_token)


def load_published(judge: Judge, tensors: Mapping[str, Tensor], dtype: torch.dtype, *, where: str) -> None:
    """Makes the tensors of a published file those of the judge: every one that it has, and nothing left over.

    Arguments:
        judge: changed in place, and may be an `empty_judge`.
        tensors: name -> tensor, as the published `state_dict` has them.
        dtype: of the model; the head is float32.
        where: who asks; it begins an error's sentence.

    Raises:
        DraftError: if something is missing, unexpected except `UNUSED`, or of another shape.
    """
    own = {published_name(name): (name, tensor.shape) for name, tensor in judge.state_dict().items()}
    require_fit(
        "HPS v3",
        missing=own.keys() - tensors.keys(),
        unexpected=tensors.keys() - own.keys() - UNUSED,
        mismatched={
            name: (tuple(tensors[name].shape), tuple(shape))
            for name, (_, shape) in own.items()
            if name in tensors and tensors[name].shape != shape
        },
        where=where,
    )
    precision = {name: torch.float32 if name.startswith("head.") else dtype for name, _ in own.values()}
    state = {name: tensors[published].to(precision[name]) for published, (name, _) in own.items()}
    judge.load_state_dict(state, assign=True)
