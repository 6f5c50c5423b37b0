"""Writes the captions, the model's tokenizer, and turns captions into token numbers.

The style comes first: after the words of the thing, a small text tower learns to overlook it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch import Tensor
from transformers import CLIPTokenizer

from .pictures import STYLES, Picture

LENGTH = 24  # tokens, start and end included
VOCABULARY = 2800
START, END = "<|startoftext|>", "<|endoftext|>"
WITH_STYLE, WITH_TAGS, EMPTY = 0.7, 0.3, 0.1

# The pattern of CLIP's own tokenizer, without which a CLIPTokenizer would split words differently.
SPLIT = r"""<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""


def caption(picture: Picture, generator: torch.Generator, empty: float = EMPTY) -> str:
    """ "3d style, a red apple, fruit": style and up to two tags at random, sometimes nothing at all."""
    draw = torch.rand(3, generator=generator).tolist()
    if draw[0] < empty:
        return ""
    words = [picture.phrase]
    if draw[1] < WITH_STYLE:
        words.insert(0, styled(picture.style))
    if draw[2] < WITH_TAGS and picture.tags:
        count = 1 + int(torch.randint(2, (), generator=generator))
        order = torch.randperm(len(picture.tags), generator=generator)[:count].tolist()
        words += [picture.tags[i] for i in order]
    return ", ".join(words)


def styled(style: str) -> str:
    """The words that ask for a style."""
    return f"{style} style"


def make_tokenizer(folder: Path, meta: Sequence[Picture]) -> CLIPTokenizer:
    """The folder's tokenizer; where there is none, a byte-pair tokenizer trained on all labels and tags.

    It is trained once only: equal counts are ordered differently each time, and then a checkpoint would
    read other words. transformers 5 reads tokenizer.json; 4.x also wants vocab.json and merges.txt.
    """
    if (folder / "tokenizer.json").exists():
        return CLIPTokenizer.from_pretrained(folder)
    texts = [w for p in meta for w in (p.phrase, *p.tags)] + [styled(s) for s in STYLES] * len(meta)
    bpe = Tokenizer(models.BPE(unk_token=END, end_of_word_suffix="</w>", continuing_subword_prefix=""))
    bpe.normalizer = normalizers.Sequence(
        [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
    )
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 2 - 256,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    vocab = dict(model["vocab"])
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):  # any word must have an ending that is in the list
        vocab.setdefault(byte + "</w>", len(vocab))
    for special in (START, END):  # the end has the highest number, as in CLIP: pooling looks for it
        vocab[special] = len(vocab)
    merges = [tuple(m) if not isinstance(m, str) else tuple(m.split(" ")) for m in model["merges"]]
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "vocab.json").write_text(json.dumps(vocab, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text(
        "\n".join(["#version: 0.2", *(" ".join(m) for m in merges)]) + "\n", encoding="utf-8"
    )
    tokenizer = CLIPTokenizer(
        vocab=vocab,
        merges=merges,
        bos_token=START,
        eos_token=END,
        unk_token=END,
        pad_token=END,
        model_max_length=LENGTH,
    )
    tokenizer.save_pretrained(folder)
    return tokenizer


def tokens(tokenizer: CLIPTokenizer, texts: Sequence[str]) -> Tensor:
    """int64 (B, LENGTH), padded with the end token as StableDiffusionPipeline pads."""
    return tokenizer(
        list(texts), padding="max_length", max_length=LENGTH, truncation=True, return_tensors="pt"
    ).input_ids
