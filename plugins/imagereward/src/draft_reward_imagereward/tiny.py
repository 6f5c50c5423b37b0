"""A BERT tokenizer that knows single characters, and so needs no vocabulary: no download."""

from __future__ import annotations

import string
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import BertTokenizerFast

CHARACTERS = "characters"
_SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_LETTERS = string.ascii_lowercase + string.digits
_OTHERS = string.punctuation + "“”’‘"


def character_tokenizer() -> Any:
    """The tokenizer; letters and digits are a token each, first of a word or not, and so is a mark."""
    tokens = [*_SPECIAL, *_LETTERS, *(f"##{letter}" for letter in _LETTERS), *_OTHERS]
    with TemporaryDirectory() as folder:
        (Path(folder) / "vocab.txt").write_text("\n".join(tokens), encoding="utf-8")
        return BertTokenizerFast.from_pretrained(folder)
