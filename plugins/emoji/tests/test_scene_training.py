"""The programs that make scenes, and train the model of scenes and its scorers, on a world of eight things."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from draft_emoji.scene_words import COLOURS, Asked, SceneWords, dyeable, phrase, things
from emoji_training import captions, clip, export, judge, pictures, unet, vae
from emoji_training.loop import Budget
from emoji_training.pictures import Picture
from emoji_training.scenes import composing, denoiser, matcher, prompts
from emoji_training.scenes import judge as scene_judge
from emoji_training.scenes.composing import Composer, Thing
from transformers import CLIPModel, CLIPTextModel, ResNetForImageClassification

pytestmark = pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")

CPU = torch.device("cpu")
THINGS = things()[:8]
SQUARE = (slice(16, 48), slice(16, 48))


def described() -> list[Picture]:
    """Eight things in three styles."""
    numbers = {words: n for n, words, _ in pictures.read_concepts().values()}
    return [
        Picture(f"{thing}{style}", thing, thing, ("tag",), style, numbers[thing], True)
        for thing in THINGS
        for style in pictures.STYLES
    ]


def squares() -> np.ndarray:
    """For each picture a square on white, of a level of its own."""
    images = np.full((len(described()), 64, 64, 3), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        image[SQUARE] = 60 + 5 * i
    return images


@pytest.fixture
def composer() -> Composer:
    return Composer(squares(), described())


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(pictures, "load", lambda folder: (squares(), described()))
    monkeypatch.setattr(composing, "things", lambda: THINGS)
    for module in (scene_judge, prompts):
        monkeypatch.setattr(module, "things", lambda: THINGS)
    return tmp_path


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_first_thing_stands_left_and_both_are_whole(composer: Composer) -> None:
    left, right = 0, 23
    for seed in range(20):
        image = composer.image((Thing(left), Thing(right)), seeded(seed))
        assert image.shape == (64, 64, 3)
        for columns, index in ((slice(0, 32), left), (slice(32, 64), right)):
            level = 60 + 5 * index
            shown = np.abs(image[:, columns, 0].astype(int) - level) < 8
            low, high = (side // 2 - 3 for side in composing.SIDES)  # half a picture's side is its square's
            assert low**2 < shown.sum() < (high + 5) ** 2


def test_a_single_thing_fills_the_image(composer: Composer) -> None:
    assert np.array_equal(composer.image((Thing(3),), seeded()), squares()[3])


@pytest.mark.parametrize("colour", COLOURS)
def test_a_dyed_thing_has_the_colour_and_the_background_stays_white(composer: Composer, colour: str) -> None:
    image = composer.dyed(Thing(5, colour))
    wanted = np.array(composing.PAINTS[colour], dtype=float)
    shown = image[SQUARE].reshape(-1, 3).mean(0)
    cosine = (shown @ wanted) / np.linalg.norm(shown) / np.linalg.norm(wanted)
    assert cosine > 0.99
    assert image[:16].min() == 255
    darker, lighter = (composer.dyed(Thing(i, colour))[SQUARE].mean() for i in (0, 20))
    assert darker < lighter


def test_white_inside_a_thing_is_dyed_and_white_around_it_is_not(composer: Composer) -> None:
    composer.images[2, 28:36, 28:36] = 255
    image = composer.dyed(Thing(2, "blue"))
    assert image[32, 32, 0] < 200
    assert image[2, 2].tolist() == [255, 255, 255]


def test_scenes_are_of_the_things_share_a_style_and_leave_pairs_out(composer: Composer) -> None:
    generator = seeded()
    scenes = [composer.scene(generator) for _ in range(600)]
    pairs = [s.things for s in scenes if len(s.things) == 2]
    assert 0.5 < len(pairs) / len(scenes) < 0.7
    for left, right in pairs:
        a, b = composer.meta[left.index], composer.meta[right.index]
        assert a.style == b.style
        assert a.concept != b.concept
        assert not composing.hidden(a.concept, b.concept)
    unseen = [composer.scene(generator, pair=1.0, unseen=True).things for _ in range(20)]
    numbers = [[composer.meta[t.index].concept for t in things] for things in unseen if len(things) == 2]
    assert len(numbers) > 10
    assert all(composing.hidden(*pair) for pair in numbers)


def test_captions_say_what_is_there(composer: Composer) -> None:
    assert composer.words((Thing(0, "blue"), Thing(3))) == "a blue dog face and a cat face"
    drawn = [composer.caption((Thing(0), Thing(3)), seeded(i)) for i in range(400)]
    assert 0.05 < drawn.count("") / 400 < 0.16
    style = composer.meta[0].style
    assert set(drawn) == {"", "a dog face and a cat face", f"{style} style, a dog face and a cat face"}


@pytest.mark.parametrize(
    ("words", "colour", "found"),
    [("an owl", "blue", "a blue owl"), ("a fox", "orange", "an orange fox"), ("grapes", "red", "red grapes")],
)
def test_a_colour_stands_between_article_and_thing(words: str, colour: str, found: str) -> None:
    assert phrase(words, colour) == found
    assert phrase(words) == words
    assert SceneWords([words, "a bow and arrow"]).read(f"3d style, {found} and a bow and arrow") == (
        Asked(words, colour),
        Asked("a bow and arrow"),
    )


def test_a_thing_named_by_its_colour_is_not_dyed() -> None:
    assert not dyeable("a red apple")
    assert SceneWords(["a red apple", "a fox"]).read("a blue red apple and a fox") is None


@pytest.mark.parametrize("seed", range(8))
def test_nearly_the_same_scene_has_other_words(composer: Composer, seed: int) -> None:
    generator = seeded(seed)
    for _ in range(40):
        scene = composer.scene(generator)
        other = matcher.nearly(composer, scene, generator)
        assert sorted(map(vars_of, other)) != sorted(map(vars_of, scene.things))
        concepts = [composer.meta[t.index].concept for t in other]
        assert len(set(concepts)) == len(concepts)


def vars_of(thing: Thing) -> tuple[int, str]:
    return thing.index, thing.colour


def test_colours_are_swapped_only_where_that_makes_a_difference(composer: Composer) -> None:
    assert matcher.swappable(composer, [Thing(0, "red"), Thing(3)])
    assert not matcher.swappable(composer, [Thing(0, "red"), Thing(3, "red")])


def test_the_judge_sees_each_half_with_its_thing(composer: Composer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scene_judge, "things", lambda: THINGS)
    x, shown, colours = scene_judge.halves(composer, 6, seeded())
    assert x.shape == (12, 3, 64, 64)
    scenes = [composer.scene(generator, pair=1.0) for generator in [seeded()] for _ in range(6)]
    wanted = [THINGS.index(composer.meta[t.index].phrase) for s in scenes for t in s.things]
    assert shown.tolist() == wanted
    assert colours.tolist() == [COLOURS.index(t.colour) if t.colour else -1 for s in scenes for t in s.things]


def test_the_lists_are_of_their_things_and_the_held_out_pairs_were_never_composed(tmp_path: Path) -> None:
    folder = Path(prompts.__file__).parents[3] / "src" / "draft_emoji" / "prompts"
    for name in ("emoji-train.txt", "emoji-heldout.txt"):
        (tmp_path / name).write_bytes((folder / name).read_bytes())
    prompts.write(tmp_path)
    words = SceneWords(things())
    numbers = {found: n for n, found, _ in pictures.read_concepts().values()}
    named: dict[str, set[str]] = {}
    for name, count in prompts.COUNTS.items():
        assert (tmp_path / f"scenes-{name}.txt").read_bytes() == (folder / f"scenes-{name}.txt").read_bytes()
        lines = (tmp_path / f"scenes-{name}.txt").read_text().splitlines()
        assert len(lines) == count
        asked = [words.read(line) for line in lines]
        for pair in asked:
            assert pair is not None
            assert composing.hidden(*(numbers[one.thing] for one in pair)) == (name == "heldout")
        named[name] = {one.thing for pair in asked if pair for one in pair}
    assert len(named["heldout"]) == 19, "one of the twenty has no such partner among them"
    assert not named["train"] & named["heldout"]


def test_the_stages_train_and_export_what_the_package_ships(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = work / "package" / "model"
    tokenizer = captions.make_tokenizer(work / "words", described())
    start = clip.build(tokenizer)
    start.save_pretrained(model.with_name("clip"))
    judge.build(8).save_pretrained(model.with_name("judge"))
    pipeline = StableDiffusionPipeline(
        vae=vae.build(),
        text_encoder=CLIPTextModel(start.config.text_config),
        tokenizer=tokenizer,
        unet=unet.build(),
        scheduler=unet.noise_schedule(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    export.write(pipeline, work / "words", model)

    monkeypatch.setattr(denoiser, "POOL", 64)
    monkeypatch.setattr(matcher, "TESTED", 30)
    for module in (denoiser, matcher, scene_judge):
        monkeypatch.setattr(module, "BATCH", 18 if module is matcher else 4)
    denoiser.train(work, Budget(steps=2), CPU, model)
    matcher.train(work, Budget(steps=2), CPU, model.with_name("clip"), model)
    scene_judge.train(work, Budget(steps=2), CPU, model.with_name("judge"))
    export.export_scenes(work, model)

    shipped = StableDiffusionPipeline.from_pretrained(model.with_name("scenes-model"), torch_dtype=torch.float32)
    before = StableDiffusionPipeline.from_pretrained(model, torch_dtype=torch.float32)
    assert not torch.equal(shipped.unet.conv_in.weight, before.unet.conv_in.weight)
    assert torch.equal(shipped.vae.quant_conv.weight, before.vae.quant_conv.weight)
    names = ResNetForImageClassification.from_pretrained(model.with_name("scene-judge")).config.id2label
    assert list(names.values()) == [*THINGS, *COLOURS]
    CLIPModel.from_pretrained(model.with_name("scene-clip"))
    for stage in ("scenes-matcher", "scenes-judge"):
        assert json.loads((work / stage / "accuracies.json").read_text(encoding="utf-8"))
