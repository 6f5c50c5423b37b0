"""The model that answers questions, and how it reads many of them at once.

Several questions about an image stand in one sequence behind it, each hidden from the others, so that the image is read
once; the model's own forward of each question alone gives the same numbers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import (
    CLIPModel,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from .. import pictures
from .questions import Question

LAYERS = [1, 4]  # of the tower: colours and edges are in the first, things in the last
TEXT = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}
SPREAD = 0.09  # of the decoder's first weights, about the root of one in its width
SEED = 31


def build(processor: LlavaProcessor, start: Path) -> LlavaForConditionalGeneration:
    """The model with the vision tower of the CLIP in `start`, frozen, and a random projector and decoder.

    Queries and keys begin equal, so that a word attends to what is like it (Trockman and Kolter 2023).
    """
    tower = CLIPModel.from_pretrained(start, dtype=torch.float32).vision_model
    model = empty(processor, tower.config)
    for layer in model.model.language_model.layers:
        layer.self_attn.k_proj.load_state_dict(layer.self_attn.q_proj.state_dict())
    model.model.vision_tower.load_state_dict(tower.state_dict())
    model.model.vision_tower.requires_grad_(False)
    return model


def empty(processor: LlavaProcessor, vision: CLIPVisionConfig, layers: int = 2) -> LlavaForConditionalGeneration:
    """The model with random weights and so many layers in its decoder, for the words of the processor."""
    ids = processor.tokenizer.convert_tokens_to_ids
    marks = {"bos_token_id": ids("<s>"), "eos_token_id": ids("</s>"), "pad_token_id": ids("<pad>")}
    size = len(processor.tokenizer)
    text = LlamaConfig(
        **TEXT,
        **marks,
        num_hidden_layers=layers,
        vocab_size=size,
        max_position_embeddings=512,
        initializer_range=SPREAD,
    )
    config = LlavaConfig(
        text_config=text,
        vision_config=vision,
        image_token_index=ids(processor.image_token),
        image_seq_length=(pictures.SIZE // vision.patch_size) ** 2 + 1,
        vision_feature_select_strategy="full",
        vision_feature_layer=LAYERS,
        tie_word_embeddings=True,
    )
    torch.manual_seed(SEED)
    return LlavaForConditionalGeneration(config)


class Reader:
    """Token numbers of texts, each looked up once."""

    def __init__(self, processor: LlavaProcessor) -> None:
        self.processor = processor
        self.read: dict[str, list[int]] = {}

    def __call__(self, text: str) -> list[int]:
        """All tokens of a text."""
        if text not in self.read:
            self.read[text] = self.processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        return self.read[text]


@dataclass(frozen=True)
class Packed:
    """Questions with their answers, behind one another in a row for each image, (B, L) each.

    Arguments:
        ids: token numbers.
        block: which question of its row a token belongs to, from 1; 0 behind the last.
        inside: its place in that question, from 0.
        wanted: the token of an answer that is to be predicted before it, or -100.
        is_open: whether that answer is in words of its own.
    """

    ids: Tensor
    block: Tensor
    inside: Tensor
    wanted: Tensor
    is_open: Tensor


def pack(reader: Reader, asked: Sequence[Sequence[Question]]) -> Packed:
    """The questions of every image as the model reads them, each followed by "ASSISTANT:" and its answer."""
    tokenizer = reader.processor.tokenizer
    rows: list[list[tuple[int, int, int, int, int]]] = []
    for of_image in asked:
        row = []
        for number, question in enumerate(of_image, start=1):
            is_open = question.kind == "open"
            before, answer = reader(f"{question.text} ASSISTANT:"), reader(question.answer)
            answer = [*answer, tokenizer.eos_token_id] if is_open else answer
            text = before + answer
            wanted = [-100] * (len(before) - 1) + answer + [-100]
            row += [(token, number, i, wanted[i], int(is_open)) for i, token in enumerate(text)]
        rows.append(row)
    length = max(map(len, rows))
    filling = (tokenizer.pad_token_id, 0, 0, -100, 0)
    table = torch.tensor([row + [filling] * (length - len(row)) for row in rows])
    return Packed(*table.unbind(-1)[:4], table[..., 4].bool())


def image_features(model: LlavaForConditionalGeneration, pixels: Tensor) -> Tensor:
    """What the decoder reads of images (B, 3, 64, 64) in [-1, 1]: (B, 65, D)."""
    return torch.stack(list(model.model.get_image_features(pixels, return_dict=True).pooler_output))


def packed_logits(
    model: LlavaForConditionalGeneration, reader: Reader, features: Tensor, packed: Packed, of: Tensor
) -> Tensor:
    """Logits (N, vocabulary) of the N chosen tokens, as if each question stood alone behind its image.

    Arguments:
        features: of an image, or of the frames of a video behind one another, (B, M, D).
        of: which tokens, bool (B, L).
    """
    return packed_logits_and_layer(model, reader, features, packed, of)[0]


def packed_logits_and_layer(
    model: LlavaForConditionalGeneration, reader: Reader, features: Tensor, packed: Packed, of: Tensor
) -> tuple[Tensor, Tensor]:
    """The same, and what the decoder's first layer makes of the features, (B, M, D)."""
    inner, device = model.model, features.device
    count = len(features)
    opening = torch.tensor(reader("USER:"), device=device)
    words = inner.get_input_embeddings()
    prefix = torch.cat([words(opening).expand(count, -1, -1), features], 1)
    behind = prefix.shape[1]
    places = torch.cat([torch.arange(behind).expand(count, -1), packed.inside + behind], 1).to(device)
    block = torch.cat([torch.full((count, behind), -1), packed.block], 1).to(device)
    at = torch.arange(places.shape[1], device=device)
    seen = (at[:, None] >= at) & ((block == -1)[:, None, :] | (block[:, :, None] == block[:, None, :]))
    mask = torch.zeros(seen.shape, device=device).masked_fill(~seen, torch.finfo(torch.float32).min)
    out = inner.language_model(
        inputs_embeds=torch.cat([prefix, words(packed.ids.to(device))], 1),
        attention_mask=mask[:, None],
        position_ids=places,
        use_cache=False,
        output_hidden_states=True,
    )
    logits = model.lm_head(out.last_hidden_state[:, behind:][of.to(device)])
    return logits, out.hidden_states[1][:, len(opening) : behind]
