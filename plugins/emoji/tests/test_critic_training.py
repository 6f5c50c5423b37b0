"""The program that trains emoji-vlm: its questions are true, it reads them as its model does, and exports it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from draft_emoji.motion import motions
from emoji_training import captions, clip, pictures
from emoji_training.critic import clips, model, motion, training
from emoji_training.critic.clips import PAIRS, Clip, motions_of
from emoji_training.critic.collages import Album, Shown, colour_names
from emoji_training.critic.questions import HINT, KINDS, NUMBERS, Asker, Question, all_words
from emoji_training.critic.words import make_processor
from emoji_training.loop import Budget
from emoji_training.pictures import Picture
from emoji_training.scenes.composing import PAINTS
from emoji_training.video.moving import MOTIONS, THINGS, hidden
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor, LlavaProcessor

STYLES = list(pictures.STYLES)
CONCEPTS = [(label, phrase) for label, (_, phrase, _) in list(pictures.read_concepts().items())[:8]]
META = [
    Picture(f"{n}{style}", label, phrase, (), style, n, True)
    for n, (label, phrase) in enumerate(CONCEPTS)
    for style in STYLES
] + [Picture(f"other{n}", f"other {n // 3}", "", (), STYLES[n % 3], -1, True) for n in range(36)]


def discs() -> np.ndarray:
    """A disc for each picture, of a paint in turn, in the middle of white."""
    y, x = np.mgrid[:64, :64] - 31.5
    inside = (x**2 + y**2 < 24**2)[None, ..., None]
    paints = np.array([list(PAINTS.values())[i % len(PAINTS)] for i in range(len(META))])[:, None, None]
    return np.where(inside, paints, 255).astype(np.uint8)


@pytest.fixture
def asker() -> Asker:
    return Asker(Album(discs(), META, range(24)))


def is_true(text: str, things: tuple[Shown, ...]) -> bool:
    """The answer, read off the words of the question."""
    words = text.removesuffix(HINT).rstrip("?").split()
    if words[-1] in ("left", "right", "top", "bottom"):
        return things[0].place == words[-1]
    if words[-1] in ("thing", "things"):
        return NUMBERS.index(words[-2]) + 1 == len(things)
    if words[-1] == "style":
        return words[-2] == META[things[0].index].style
    return words[-1] in [t.colour or list(PAINTS)[t.index % len(PAINTS)] for t in things]


def test_every_question_is_answered_truly_and_as_often_by_yes_as_by_no(asker: Asker) -> None:
    generator = torch.Generator().manual_seed(0)
    said: dict[str, list[str]] = {kind: [] for kind in KINDS}
    for _ in range(150):
        things = asker.album.collage(generator)
        for kind in KINDS:
            for yes in (True, False):
                question = asker.ask(kind, things, yes, generator)
                if question is not None:
                    assert is_true(question.text, things) == (question.answer == "yes"), (question, things)
                    said[kind].append(question.answer)
    for kind, answers in said.items():
        assert len(answers) > 20, kind
        assert 0.4 < answers.count("yes") / len(answers) < 0.6, kind


def test_a_question_that_is_answered_falsely_would_be_noticed(asker: Asker) -> None:
    things = asker.album.collage(torch.Generator().manual_seed(1), "row")
    right = asker.ask("count", things, True, torch.Generator().manual_seed(0))
    assert right is not None
    assert is_true(right.text, things)
    assert not is_true(right.text, things[:1])


def test_colours_are_named_as_they_are_painted() -> None:
    image = np.array(list(PAINTS.values()), dtype=np.uint8)[None]
    assert colour_names(image).tolist() == [list(PAINTS)]
    assert colour_names(np.array([[[90, 90, 90], [250, 250, 250], [5, 5, 5]]], dtype=np.uint8)).tolist() == [[""] * 3]


def test_things_stand_where_they_are_said_to(asker: Asker) -> None:
    generator = torch.Generator().manual_seed(0)
    for place, half in {"left": np.s_[:, :32], "right": np.s_[:, 32:], "top": np.s_[:32], "bottom": np.s_[32:]}.items():
        image = asker.album.image([Shown(0, "red", place)], generator)
        ink = 255 - image.min(-1).astype(int)
        assert ink[half].sum() > 0.9 * ink.sum(), place


def test_all_words_are_known_and_what_is_tested_is_never_trained_on() -> None:
    tokenizer = make_processor(all_words()).tokenizer
    parts = training.split(META)
    asker = Asker(Album(discs(), META, parts["pictures seen"]))
    generator = torch.Generator().manual_seed(0)
    for _ in range(10):
        for question in training.row(asker, generator).asked:
            assert (
                tokenizer.unk_token_id not in tokenizer(f"USER: {question.text} ASSISTANT: {question.answer}").input_ids
            )
    used = set(parts["pictures seen"])
    assert not used & {*parts["pictures never seen"], *parts["things never seen"]}
    assert parts["things never seen"]
    assert {META[i].label for i in parts["things never seen"]}.isdisjoint(META[i].label for i in used)
    assert set(parts["pictures never seen"]) == set(clip.held_out_pictures(META))


@pytest.fixture
def start(tmp_path: Path) -> Path:
    """A CLIP with random weights, and the models made small."""
    tokenizer = captions.make_tokenizer(tmp_path / "words", META)
    torch.manual_seed(0)
    clip.build(tokenizer).save_pretrained(tmp_path / "clip")
    return tmp_path / "clip"


@pytest.mark.parametrize("bug", [False, True])
def test_packed_questions_are_answered_as_the_model_answers_each_alone(asker: Asker, start: Path, bug: bool) -> None:
    """With a planted bug, questions that see each other, they are not."""
    processor = make_processor(all_words())
    llava = model.build(processor, start).eval()
    things = asker.album.collage(torch.Generator().manual_seed(0), "row")
    image = asker.album.image(things, torch.Generator().manual_seed(0))
    asked = [Question("count", "Are there two things?", "yes"), Question("colour", "Is it red?", "no")]
    reader = model.Reader(processor)
    packed = model.pack(reader, [asked])
    if bug:
        packed.block.fill_(1)
    pixels = processor.image_processor(Image.fromarray(image), return_tensors="pt").pixel_values
    features = model.image_features(llava, pixels)
    found = model.packed_logits(llava, reader, features, packed, packed.wanted != -100)
    for question, logits in zip(asked, found, strict=True):
        said = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": question.text}]}]
        text = processor.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        alone = llava(**processor(images=[Image.fromarray(image)], text=[text], return_tensors="pt")).logits[0, -1]
        close = torch.allclose(alone, logits, atol=1e-5)
        assert close == (not bug or question is asked[0])


def tracked(clips: list[Clip]) -> list[bool]:
    """Whether the tracker, which is no part of the program, sees the motion of clips of a disc."""
    image = discs()[0]
    drawn = np.stack([one.draw(image) for one in clips])
    videos = torch.from_numpy(drawn).permute(0, 1, 4, 2, 3) / 255
    shown = {count: motions(videos, count) for count in (1, 2)}
    wanted = [tuple(motions_of(one.motion)) for one in clips]
    return [shown[max(1, len(asked))][number] == asked for number, asked in enumerate(wanted)]


def test_clips_move_as_they_say_and_are_asked_about_truly(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(clips, "TREMBLE", 0)
    monkeypatch.setattr(clips, "times", lambda frames, generator: [i / (frames - 1) for i in range(frames)])
    some = [clips.random_clip(META, range(24), 3, generator) for _ in range(100)]
    assert {one.motion for one in some} == {"", *MOTIONS, *PAIRS}
    assert np.mean(tracked(some)) > 0.97
    backwards = [Clip(c.index, c.motion, c.boxes[::-1]) for c in some if c.motion]
    assert not any(tracked(backwards)), "planted: what is shown in reverse is another motion"
    for one in some:
        thing, shown = META[one.index].phrase, motions_of(one.motion)
        assert thing not in THINGS or not any(hidden(THINGS.index(thing), MOTIONS.index(part)) for part in shown)
        assert all(min(box[1:]) >= 0 and max(box[1:]) + box[0] <= 64 for box in one.boxes)
        for question in clips.questions(one.motion, generator):
            asked = question.text.removesuffix(HINT).removeprefix("Is it ").rstrip("?")
            assert question.kind == "open" or (asked in shown) == (question.answer == "yes")


@pytest.mark.parametrize("bug", [False, True])
def test_the_layer_for_motion_changes_no_answer_at_first(
    asker: Asker, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bug: bool
) -> None:
    """With a planted bug, a layer that is not empty, it does; frames are read as the model's own call reads them."""
    before = make_processor(all_words())
    llava = model.build(before, start).eval()
    llava.save_pretrained(tmp_path / "before")
    before.save_pretrained(tmp_path / "before")
    if bug:
        monkeypatch.setattr(torch.Tensor, "zero_", lambda tensor: tensor)
    processor = make_processor(all_words(motion.KINDS))
    deep = motion.deeper(tmp_path / "before", processor).eval()
    monkeypatch.undo()
    images = [
        asker.album.image(asker.album.collage(torch.Generator().manual_seed(n)), torch.Generator()) for n in (0, 1, 2)
    ]
    frames = [Image.fromarray(image) for image in images]

    def answered(of: torch.nn.Module, by: LlavaProcessor, question: str, count: int) -> torch.Tensor:
        said = [{"role": "user", "content": [{"type": "image"}] * count + [{"type": "text", "text": question}]}]
        text = by.apply_chat_template(said, add_generation_prompt=True, tokenize=False)
        logits = of(**by(images=frames[:count], text=[text], return_tensors="pt")).logits[0, -1]
        return logits[by.tokenizer.convert_tokens_to_ids(["yes", "no", "red"])]

    question = "Is it red?"
    same = torch.allclose(answered(llava, before, question, 1), answered(deep, processor, question, 1), atol=1e-5)
    assert same == (not bug)
    reader = model.Reader(processor)
    packed = model.pack(reader, [[Question("motion", "Is it growing?", "yes")]])
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
    features = motion.video_features(deep, pixels, 3)
    logits = model.packed_logits(deep, reader, features, packed, packed.wanted != -100)[0]
    ids = processor.tokenizer.convert_tokens_to_ids(["yes", "no", "red"])
    torch.testing.assert_close(logits[ids], answered(deep, processor, "Is it growing?", 3), rtol=0, atol=1e-4)


def test_it_is_trained_resumed_and_exported(tmp_path: Path, start: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "load", lambda folder: (discs(), META))
    monkeypatch.setattr(training, "IMAGES", 4)
    monkeypatch.setattr(training, "DESCRIPTIONS", 4)
    monkeypatch.setattr(training, "TESTED", 4)
    monkeypatch.setattr(motion, "IMAGES", 2)
    monkeypatch.setattr(motion, "CLIPS", 2)
    monkeypatch.setattr(motion, "PLACE_CLIPS", 16)
    monkeypatch.setattr(motion, "PLACE_STEPS", 2)
    every, some = motion.tested, {"pairs never seen": 6}
    monkeypatch.setattr(motion, "tested", lambda meta: {n: v[: some.get(n, 2)] for n, v in every(meta).items()})
    training.train(tmp_path, Budget(steps=2), torch.device("cpu"), start)
    training.train(tmp_path, Budget(steps=4), torch.device("cpu"), start)
    steps = [torch.load(tmp_path / "vlm" / f"{name}.pt", weights_only=True)["step"] for name in ("words", "checkpoint")]
    assert steps == [2, 2], "half of the budget each"
    figures = json.loads((tmp_path / "vlm" / "accuracies.json").read_text(encoding="utf-8"))
    assert set(figures["pictures never seen"]) == set(KINDS)
    for steps in (1, 2):
        motion.train(tmp_path, Budget(steps=steps), torch.device("cpu"))
    folder = tmp_path / "vlm-motion"
    assert torch.load(folder / "checkpoint.pt", weights_only=True)["step"] == 2
    figures = json.loads((folder / "accuracies.json").read_text(encoding="utf-8"))
    assert {"motion", "still"} < set(figures["pairs never seen"]) <= {"motion", "still", *MOTIONS}
    for of_kind in figures.values():
        of_kind.update(colour=0.9, count=0.84, motion=0.85)
    (folder / "accuracies.json").write_text(json.dumps(figures), encoding="utf-8")
    training.export(tmp_path, tmp_path / "package" / "model", "vlm-motion")
    folder, source = tmp_path / "package" / "vlm-motion", tmp_path / "vlm-motion" / "model"
    words, before = (AutoProcessor.from_pretrained(path).tokenizer.get_vocab() for path in (folder, source))
    assert set(words) == set(make_processor(all_words(["colour", "motion"])).tokenizer.get_vocab())
    assert "red" in words
    assert "left" in words
    assert "many" not in words
    shipped, made = (
        AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32) for path in (folder, source)
    )
    rows = made.get_input_embeddings().weight
    for word, number in words.items():
        row = shipped.get_input_embeddings().weight[number]
        torch.testing.assert_close(row, rows[before[word]], rtol=2e-3, atol=1e-4)
