"""Makes the processor of the model that answers: a tokenizer of whole words, and images as the CLIP takes them."""

from __future__ import annotations

from collections.abc import Sequence

from tokenizers import Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from .. import pictures

PATCH = 8
SPECIAL = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
IMAGE = "<image>"
TEMPLATE = (
    "{% for m in messages %}{{ m.role | upper }}: {% for c in m.content %}{% if c.type == 'text' %}{{ c.text }}"
    "{% else %}<image>\n{% endif %}{% endfor %} {% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


def make_processor(texts: Sequence[str]) -> LlavaProcessor:
    """A processor that knows the words of `texts`, in lower case, each as one token, and the marks between them."""
    split = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Punctuation("isolated")])
    words = sorted({word for text in texts for word, _ in split.pre_tokenize_str(text.lower())})
    vocabulary = {word: number for number, word in enumerate([*SPECIAL.values(), IMAGE, *words])}
    tokenizer = Tokenizer(WordLevel(vocab=vocabulary, unk_token=SPECIAL["unk_token"]))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = split
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, additional_special_tokens=[IMAGE], **SPECIAL)
    side = {"height": pictures.SIZE, "width": pictures.SIZE}
    images = CLIPImageProcessor(size=side, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return LlavaProcessor(
        images,
        made,
        patch_size=PATCH,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
        image_token=IMAGE,
    )
