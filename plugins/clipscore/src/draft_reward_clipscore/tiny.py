"""The tiny CLIP of transformers with CLIP's real vocabulary, which open_clip's wheel carries: no download."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

from open_clip.tokenizer import bytes_to_unicode, default_bpe
from transformers import CLIPConfig, CLIPModel

from draft_core.rewards.weights import seeded

_LAYERS = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
_VISION = {**_LAYERS, "image_size": 224, "patch_size": 32}
_MERGES = 49152 - 256 - 2  # of the lines in open_clip's file, as its tokenizer reads them


def save_tiny(folder: Path, seed: int) -> None:
    """Writes a model with seeded weights as transformers saves it, with tokenizer and image processor."""
    with seeded(seed):
        CLIPModel(CLIPConfig(vision_config=_VISION, text_config=_LAYERS, projection_dim=64)).save_pretrained(folder)
    with gzip.open(default_bpe(), "rt", encoding="utf-8") as file:
        merges = file.read().split("\n")[1 : _MERGES + 1]
    letters = list(bytes_to_unicode().values())
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(
        json.dumps({token: place for place, token in enumerate(tokens)}), encoding="utf-8"
    )
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}), encoding="utf-8")
    # Sizes as plain numbers, as the oldest repositories have them.
    settings = {"image_processor_type": "CLIPImageProcessor", "size": 224, "crop_size": 224, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
