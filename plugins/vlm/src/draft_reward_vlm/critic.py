"""Questions to a vision-language model about images, and how probable its answers are: where text and pixels meet."""

from __future__ import annotations

import inspect
import re
from collections import OrderedDict, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from draft_core.errors import DraftError, one_line
from draft_core.rewards.images import through
from draft_reward_vlm import ModelConfig

REMEMBERED = 4096  # questions whose tokens are kept
OTHER_MODEL = "choose another model"


@dataclass(frozen=True)
class Asked:
    """A question about one image as the model reads it, its answers included.

    Arguments:
        inputs: what the processor made of the text, (1, length) each, on the CPU.
        answers: the tokens of each answer, the wanted one first.
        visual: names of the model's inputs that hold the image.
    """

    inputs: Mapping[str, Tensor]
    answers: tuple[tuple[int, ...], ...]
    visual: frozenset[str]


class Critic(torch.nn.Module):
    """Answers of a vision-language model about images, as log-probabilities with a gradient.

    Arguments:
        model: an image-text-to-text model of transformers with its `processor`.
        config: how questions and frames are laid out.
        where: who asks; it begins an error's sentence.

    Raises:
        DraftError: if it shall see videos and takes none, or a part of the frames of one.
    """

    def __init__(self, model: Any, config: ModelConfig, where: str) -> None:
        super().__init__()
        self.model, self.config, self.where = model, config, where
        self.processor = model.processor
        takes_video = getattr(self.processor, "video_processor", None) is not None
        if config.frames == "video" and not takes_video:
            raise DraftError(
                f"{type(model).__name__} takes no videos", where=f"{where}, frames", next="set it to images or each"
            )
        self.as_video = takes_video and config.frames in ("auto", "video")
        if self.as_video and config.frame_count is not None:
            raise DraftError(
                f"{type(model).__name__} is shown videos whole",
                where=f"{where}, frame_count",
                next="set frames to images, or leave frame_count out",
            )
        self._asked: OrderedDict[tuple[Any, ...], Asked] = OrderedDict()
        self._visual_names: dict[tuple[int, ...], frozenset[str]] = {}

    def forward(self, images: Sequence[Tensor], asked: Sequence[Asked], of: Sequence[int]) -> list[Tensor]:
        """For each question the log-probabilities of its answers, float32 (answers, tokens of an answer).

        Answers of a question with several tokens must be its only one. Questions of the same length are put to the
        model together, without padding.

        Arguments:
            images: of the same size, (3, H, W) in [0, 1], or videos (F, 3, H, W).
            asked: the questions, as `ask` gives them.
            of: for each question the number of its image.
        """
        pixels = [self._visual(image) for image in images]
        groups = defaultdict(list)
        for place, question in enumerate(asked):
            groups[question.inputs["input_ids"].shape[1], len(question.answers[0])].append(place)
        found: dict[int, Tensor] = {}
        for places in groups.values():
            found.update(
                zip(places, self._answered([asked[i] for i in places], [pixels[of[i]] for i in places]), strict=True)
            )
        return [found[place] for place in range(len(asked))]

    def _answered(self, asked: Sequence[Asked], pixels: Sequence[Mapping[str, Tensor]]) -> list[Tensor]:
        """Of questions of one length: one forward of the model."""
        device, dtype = self.model.device, self.model.dtype
        text = {name: torch.cat([one.inputs[name] for one in asked]).to(device) for name in asked[0].inputs}
        wanted = torch.tensor([one.answers[0] for one in asked], device=device)
        inputs: dict[str, Any] = dict(_continued(text, wanted[:, :-1]))
        for name in sorted(asked[0].visual):
            joined = torch.cat([of_one[name] for of_one in pixels]).to(device)
            inputs[name] = joined.to(dtype) if joined.is_floating_point() else joined
        kept = wanted.shape[1]
        if "logits_to_keep" in inspect.signature(self.model.forward).parameters:
            inputs["logits_to_keep"] = kept
        logits = self.model(**inputs).logits[:, -kept:].float().log_softmax(-1)
        return [
            logits[row, 0, [tokens[0] for tokens in one.answers]][:, None]
            if kept == 1
            else logits[row].gather(1, wanted[row][:, None]).T
            for row, one in enumerate(asked)
        ]

    def _visual(self, image: Tensor) -> Mapping[str, Tensor]:
        """What the model's own processor makes of an image, of frames as images, or of a video."""
        if image.ndim == 4 and self.as_video:
            found = through(self.processor.video_processor, image[None], **self._video_call(len(image)))
        else:
            kwargs = _defaults(self.processor, "images_kwargs")
            found = through(self.processor.image_processor, image if image.ndim == 4 else image[None], **kwargs)
        return {name: value for name, value in found.items() if isinstance(value, Tensor)}

    def _video_call(self, frames: int) -> dict[str, Any]:
        metadata = {"fps": self.config.fps, "total_num_frames": frames, "frames_indices": list(range(frames))}
        given = {"do_sample_frames": False, "video_metadata": [{**metadata, "duration": frames / self.config.fps}]}
        return {**_defaults(self.processor, "videos_kwargs"), **given}

    # Text

    def ask(self, question: str, answers: Sequence[str], shape: tuple[int, ...]) -> Asked:
        """A question about an image as the model reads it; what was asked before is remembered.

        Arguments:
            answers: the wanted one first; if there are several, each must be a single token.
            shape: of the image, (3, H, W), or of the video, (F, 3, H, W): the text holds a token for each of its
                patches.

        Raises:
            DraftError: if the processor cannot read it so, or an answer cannot be told from the text before it.
        """
        key = (question, tuple(answers), shape)
        if key in self._asked:
            self._asked.move_to_end(key)
        else:
            self._asked[key] = self._read(question, answers, shape)
            if len(self._asked) > REMEMBERED:
                self._asked.popitem(last=False)
        return self._asked[key]

    def _read(self, question: str, answers: Sequence[str], shape: tuple[int, ...]) -> Asked:
        text = self.text_of(question, shape)
        self._require_all_frames(text, shape)
        with torch.inference_mode(False), torch.no_grad():  # what is remembered may meet autograd later
            noise = torch.rand(shape, generator=torch.Generator().manual_seed(0)).mul(255).round().div(255)
            read = self._process(text, noise, question)
            if shape not in self._visual_names:
                self._visual_names[shape] = self._compared(self._visual(noise), read)
        self._require_known(read["input_ids"], question)
        names = self._visual_names[shape]
        inputs = {name: value for name, value in read.items() if name not in names and isinstance(value, Tensor)}
        tokens = tuple(self._tokens(text, answer) for answer in answers)
        return Asked(_as_generated(self.model.config.model_type, inputs, self.model), tokens, names)

    def text_of(self, question: str, shape: tuple[int, ...]) -> str:
        """The text with a question about one image, or video, that the model is to continue with its answer."""
        is_video = len(shape) == 4 and self.as_video
        count = shape[0] if len(shape) == 4 and not self.as_video else 1
        layout = self.config.layout
        if layout is None and getattr(self.processor, "chat_template", None) is None:
            layout = "{question}"
        if layout is not None:
            return layout.replace("{question}", question).rstrip(" ")
        seen = [{"type": "video" if is_video else "image"}] * count
        conversation = [{"role": "user", "content": [*seen, {"type": "text", "text": question}]}]
        try:
            text: str = self.processor.apply_chat_template(conversation, add_generation_prompt=True, tokenize=False)
        except Exception as error:
            raise self._unreadable("its chat template", question, error) from error
        return text.rstrip(" ")  # " Yes" is one token, and follows a text without a blank at its end

    def _require_all_frames(self, text: str, shape: tuple[int, ...]) -> None:
        """Refuses frames as images where the text has no place for each: the model would see the first alone."""
        marks = [getattr(self.processor, name, None) for name in ("image_token", "boi_token")]
        places = max((text.count(mark) for mark in marks if mark), default=0)
        if len(shape) == 4 and not self.as_video and places < shape[0]:
            raise DraftError(
                f"{type(self.model).__name__} is shown {places} of {shape[0]} frames at once",
                where=f"{self.where}, frames",
                next="set it to each",
            )

    def _require_known(self, tokens: Any, text: str) -> None:
        """Refuses words that the model has no token for: it would read every one of them as the same."""
        tokenizer = self.processor.tokenizer
        unknown = tokenizer.unk_token_id
        if unknown is None or unknown not in torch.as_tensor(tokens):
            return
        words = [
            word
            for word in re.findall(r"\w+|[^\w\s]", text)
            if unknown in tokenizer(word, add_special_tokens=False)["input_ids"]
        ]
        raise DraftError(
            f"{type(self.model).__name__} does not know {', '.join(map(repr, words)) or 'a word'} in {text!r}",
            where=self.where,
            next="ask in words that its tokenizer has",
        )

    def _process(self, text: str, image: Tensor, question: str) -> Any:
        """The processor's own call on Pillow images, from which the text inputs are taken."""
        frames = [_to_pillow(frame) for frame in (image if image.ndim == 4 else image[None])]
        call: dict[str, Any] = {"images": frames}
        if image.ndim == 4 and self.as_video:
            call = {"videos": [frames], **self._video_call(len(image))}
        bos = self.processor.tokenizer.bos_token
        if bos is not None and text.startswith(bos):
            call["add_special_tokens"] = False  # as transformers' own apply_chat_template does
        try:
            return self.processor(text=[text], return_tensors="pt", **call)
        except Exception as error:
            raise self._unreadable(f"its {type(self.processor).__name__}", question, error) from error

    def _unreadable(self, what: str, question: str, error: Exception) -> DraftError:
        return DraftError(
            f"{what} cannot read the question {question!r}: {one_line(error).rstrip('.')}",
            where=self.where,
            next="say in the field layout where image and question stand, and keep special words out of the question",
        )

    def _compared(self, visual: Mapping[str, Tensor], read: Mapping[str, Any]) -> frozenset[str]:
        """The names of what is made of the image, which the processor's one call for image and text must make too."""
        names = frozenset(visual) & frozenset(read)
        if not names:
            raise DraftError(f"{type(self.processor).__name__} prepares no image", where=self.where, next=OTHER_MODEL)
        for name in sorted(names):
            wanted, found = read[name].double(), visual[name].double()
            if wanted.shape != found.shape or not torch.allclose(wanted, found, atol=1e-5):
                raise DraftError(
                    f"{type(self.processor).__name__} prepares {name} otherwise than its image processor alone",
                    where=self.where,
                    next=OTHER_MODEL,
                )
        return names

    def _tokens(self, text: str, answer: str) -> tuple[int, ...]:
        """The tokens by which an answer continues the text, with a blank between unless a line or a mark ends there."""
        tokenizer = self.processor.tokenizer
        marks = tuple(mark for mark in tokenizer.all_special_tokens if mark)
        glue = "" if not text or text[-1].isspace() or text.endswith(marks) else " "
        before = tokenizer(text, add_special_tokens=False)["input_ids"]
        whole = tokenizer(text + glue + answer.strip(), add_special_tokens=False)["input_ids"]
        self._require_known(whole[len(before) :], answer)
        if whole[: len(before)] != before or len(whole) == len(before):
            raise DraftError(
                f"the answer {answer!r} does not begin with a token of its own after {text[-20:]!r}",
                where=self.where,
                next="let layout end with a colon or a line end",
            )
        return tuple(whole[len(before) :])


def _continued(inputs: Mapping[str, Tensor], tokens: Tensor) -> dict[str, Tensor]:
    """Text inputs with further tokens at the end; what is told of each token is told of them as of the last one."""
    length, more = inputs["input_ids"].shape[1], tokens.shape[1]
    continued = {}
    for name, value in inputs.items():
        if value.ndim == 2 and value.shape[1] == length:
            value = torch.cat([value, tokens if name == "input_ids" else value[:, -1:].expand(-1, more)], 1)
        continued[name] = value
    return continued


def _as_generated(kind: str, inputs: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """The text inputs from which `generate` begins; BLIP's drops the end mark and begins with a mark of its own."""
    if kind != "blip":
        return inputs
    inputs = {name: value[:, :-1].clone() for name, value in inputs.items()}
    inputs["input_ids"][:, 0] = model.config.text_config.bos_token_id
    return inputs


def _defaults(processor: Any, name: str) -> dict[str, Any]:
    """What a processor passes on to its image or video processor, whoever calls it."""
    found = getattr(processor, name, None)
    return dict(found) if isinstance(found, Mapping) else {}


def _to_pillow(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().byte().permute(1, 2, 0).cpu().numpy())
