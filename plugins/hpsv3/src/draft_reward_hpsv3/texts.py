"""What HPS v3 is told: the instruction with the prompt, as a conversation, and the tokenizers that read it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer
from transformers.models.qwen2.tokenization_qwen2 import Qwen2Tokenizer

from draft_core.errors import DraftError
from draft_core.rewards.weights import load_tokenizer, locate_model
from draft_reward_hpsv3 import Hpsv3Config
from draft_reward_hpsv3.marks import IMAGE_TOKEN, MARKS, REWARD_TOKEN, refuse_marks

BYTES = "bytes"
BASE, TOKENIZER_MEGABYTES = "Qwen/Qwen2-VL-7B-Instruct", 11
_DATA = json.loads(Path(__file__).with_name("instruction.json").read_text(encoding="utf-8"))
INSTRUCTION, QUESTION = _DATA["instruction"], _DATA["question"]
BEFORE_IMAGE = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n<|vision_start|>"
AFTER_IMAGE, END = "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", *MARKS[1:])


def asked(prompt: str) -> str:
    """The instruction with the prompt, and the question behind it."""
    return f"{INSTRUCTION.replace('{text_prompt}', prompt)}{QUESTION}"


def conversations(prompts: Sequence[str], image_tokens: int, *, where: str) -> list[str]:
    """What the model reads for each prompt and an image of so many tokens: Qwen2-VL's chat template, filled in.

    Raises:
        RewardError: if a prompt holds one of the model's own marks.
    """
    for prompt in prompts:
        refuse_marks(prompt, where=where)
    image = BEFORE_IMAGE + IMAGE_TOKEN * image_tokens + AFTER_IMAGE
    return [f"{image}{asked(prompt)}{END}" for prompt in prompts]


def qwen_tokenizer(config: Hpsv3Config, *, where: str) -> Any:
    """The tokenizer with HPS v3's own token behind all others; it pads behind the text."""
    if config.tokenizer == BYTES:
        tokenizer = byte_tokenizer()
    else:
        name = locate_model(config.tokenizer, BASE, where=where, option="tokenizer")
        tokenizer = load_tokenizer(AutoTokenizer, name, megabytes=TOKENIZER_MEGABYTES, where=where, option="tokenizer")
    known = tokenizer.get_vocab()
    if lacks := [mark for mark in SPECIAL if mark not in known]:
        raise DraftError(
            f"the tokenizer knows no {lacks[0]}", where=f"{where}, tokenizer", next="give that of Qwen2-VL-7B-Instruct"
        )
    tokenizer.add_tokens([REWARD_TOKEN], special_tokens=True)
    tokenizer.padding_side = "right"
    return tokenizer


def byte_tokenizer() -> Any:
    """Qwen2's tokenizer without a vocabulary: prompts byte by byte, and the instruction a line a token."""
    codes = [*range(33, 127), *range(161, 173), *range(174, 256)]  # those that stand for themselves in GPT-2's
    letters = [chr(code) for code in codes] + [chr(256 + place) for place in range(256 - len(codes))]
    with TemporaryDirectory() as folder:
        vocabulary = {letter: place for place, letter in enumerate(letters)}
        (Path(folder) / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
        (Path(folder) / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
        tokenizer = Qwen2Tokenizer.from_pretrained(folder)
    tokenizer.add_tokens(list(SPECIAL), special_tokens=True)
    lines = [line for line in INSTRUCTION.partition("{")[0].split("\n") if len(line) > 1]
    tokenizer.add_tokens(list(dict.fromkeys(lines)))
    return tokenizer
