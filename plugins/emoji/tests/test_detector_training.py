"""The program that trains emoji-detector: its boxes are true, it starts from the CLIP, its losses are right."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from draft_emoji import FOLDER
from draft_emoji.alignment import EmojiClip
from draft_emoji.scene_words import things
from emoji_training import clip, pictures
from emoji_training.detector import losses, model, precision, training
from emoji_training.detector.collages import OVERLAP, SIDE, Collage, Scatter
from emoji_training.loop import Budget
from emoji_training.pictures import Picture
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import box_iou
from transformers import CLIPModel, CLIPTokenizer, OwlViTForObjectDetection
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from draft_core import load_reward

STYLES = list(pictures.STYLES)
META = [
    Picture(f"{number}{style}", label, phrase, (), style, number, True)
    for label, (number, phrase, _) in pictures.read_concepts().items()
    if phrase in things()[:8] or number < 8
    for style in STYLES
]


def discs() -> np.ndarray:
    """A dark disc for each picture, of another size, in the middle of white."""
    y, x = np.mgrid[:64, :64] - 31.5
    radii = 18 + np.arange(len(META)) % 12
    return np.where((x**2 + y**2 < radii[:, None, None] ** 2)[..., None], 60, 255).repeat(3, -1).astype(np.uint8)


@pytest.fixture(scope="module")
def scatter() -> Scatter:
    return Scatter(discs(), META, range(len(META)))


def test_boxes_hold_what_was_pasted(scatter: Scatter) -> None:
    """One thing alone: its box is that of all pixels that are no canvas, to a pixel of its soft edge."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        collage = scatter.collage(generator, [1])
        other = np.abs(collage.image.astype(int) - np.median(collage.image, (0, 1))).max(-1) > 60
        rows, columns = np.nonzero(other.any(1))[0], np.nonzero(other.any(0))[0]
        found = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(collage.boxes[0], found, atol=1)


def test_things_are_all_in_view(scatter: Scatter) -> None:
    generator = torch.Generator().manual_seed(0)
    counts = set()
    for _ in range(40):
        collage = scatter.collage(generator)
        counts.add(len(collage.indices))
        boxes = torch.from_numpy(collage.boxes)
        assert float(boxes.min()) >= 0
        assert float(boxes.max()) <= SIDE
        assert float((box_iou(boxes, boxes) - torch.eye(len(boxes))).max()) < 2 * OVERLAP
    assert counts == {1, 2, 3, 4}


def test_pictures_come_from_pools_by_shares_and_varied_ones_keep_their_boxes() -> None:
    """Shares of 1 and 3 make three things of four; turned, squeezed and recoloured discs are held by their boxes."""
    varied = Scatter(discs(), META, [0], [], [1, 2], shares=(1, 5, 3), varied=True)
    assert varied.choices == [0, 1, 2]
    generator = torch.Generator().manual_seed(0)
    collages = [varied.collage(generator, [4]) for _ in range(60)]
    indices = [i for c in collages for i in c.indices]
    assert sum(i > 0 for i in indices) / len(indices) == pytest.approx(0.75, abs=0.08)
    ratios = []
    for collage in collages:
        for x1, y1, x2, y2 in collage.boxes.astype(int):
            ratios.append((x2 - x1) / (y2 - y1))
            assert collage.image[(y1 + y2) // 2, (x1 + x2) // 2].max() < 250  # the canvas is lighter in one channel
    assert min(ratios) < 0.95 < 1.05 < max(ratios)


def test_the_detector_starts_from_the_clip() -> None:
    """Its text tower says the same, and its first layer sees the same, though its pixels are prepared otherwise."""
    detector = model.build(FOLDER / "clip")
    matcher = CLIPModel.from_pretrained(FOLDER / "clip", dtype=torch.float32)
    reward = load_reward("emoji-clip")
    assert isinstance(reward, EmojiClip)
    states = model.text_states(detector, model.make_tokenizer(FOLDER / "model" / "tokenizer"), ["a fox", "two hearts"])
    texts = F.normalize(detector.owlvit.text_projection(states), dim=1)
    torch.testing.assert_close(texts[:, :128], reward.text_features(["a fox", "two hearts"], torch.device("cpu")))
    assert not texts[:, 128:].any()
    images = torch.rand(2, 3, model.INPUT, model.INPUT, generator=torch.Generator().manual_seed(0))
    mean, std = (torch.tensor(values)[:, None, None] for values in (model.MEAN, model.STD))
    wanted = matcher.vision_model.embeddings(2 * images - 1, interpolate_pos_encoding=True)
    found = detector.owlvit.vision_model.embeddings((images - mean) / std)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    with pytest.raises(AssertionError):  # another preparation would be noticed
        torch.testing.assert_close(detector.owlvit.vision_model.embeddings(2 * images - 1), wanted, atol=0.1, rtol=0.1)


def test_the_reward_sees_collages_as_the_program_does() -> None:
    """Enlarged alike, on images of 8 bits; the reward takes the size from the folder of weights."""
    module = OwlViTForObjectDetection.from_pretrained(FOLDER / "detector", dtype=torch.float32).eval()
    images = torch.from_numpy(discs()[:2]).permute(0, 3, 1, 2) / 255
    words = ["a fox", "a rose"]
    states = model.text_states(module, model.make_tokenizer(FOLDER / "model" / "tokenizer"), words)
    reward = load_reward("detection", present=words, weights="emoji-detector")
    with torch.no_grad():
        wanted = model.predict(module, 2 * images - 1, states).logits
        torch.testing.assert_close(reward.logits(images, ["", ""]), wanted, atol=1e-4, rtol=1e-4)
    assert wanted.shape[1] == (model.INPUT // module.config.vision_config.patch_size) ** 2


def test_training_is_nearly_as_exact_as_measuring_and_its_attention_is_exact() -> None:
    """Attention as torch has it in float32, which bfloat16 is not; a tower in bfloat16 is off by little."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, 2, 4, 9, 8, generator=generator)
    part, wanted = torch.nn.Identity(), F.scaled_dot_product_attention(query, key, value).transpose(1, 2)
    with torch.autocast("cpu", torch.bfloat16):
        named = {"attention_mask": None, "is_causal": False}
        exact, rough = (f(part, query, key, value, **named)[0] for f in (model.attend, sdpa_attention_forward))
    torch.testing.assert_close(exact, wanted)
    assert rough.dtype == torch.bfloat16
    detector = model.build(FOLDER / "clip")
    tokenizer = model.make_tokenizer(FOLDER / "model" / "tokenizer")
    states = model.text_states(detector, tokenizer, ["a fox", "a rose"])
    pixels = torch.from_numpy(discs()[:2]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        slow = model.predict(detector, pixels, states)
        detector.set_attn_implementation(model.EXACT)
        fast = model.predict(detector, pixels, states, fast=True)
    torch.testing.assert_close(model.text_states(detector, tokenizer, ["a fox", "a rose"]), states)  # causal as before
    assert fast.logits.dtype == torch.float32
    torch.testing.assert_close(fast.logits, slow.logits, atol=0.15, rtol=0)
    torch.testing.assert_close(fast.embeds, slow.embeds, atol=0.02, rtol=0)


def found(names: Tensor, places: Tensor, taught: Tensor, rows: Tensor) -> model.Found:
    """A detector's perfect answer: the given boxes name the things, every patch of a thing knows its place and look."""
    owner = losses.owners([places], 16)[0].clamp(min=0)
    logits = torch.full((1, 16, 3), -20.0)
    # Other patches tell the name too, by what they deny least; only those that answer say yes.
    logits[0, torch.arange(16), names[owner]] = -9.0
    logits[0, rows, names] = 9.0
    return model.Found(logits, places[owner][None], taught[owner][None])


def test_losses_are_least_where_all_is_right() -> None:
    names, places = torch.tensor([2, 0]), torch.tensor([[0.25, 0.3, 0.4, 0.5], [0.85, 0.85, 0.3, 0.3]])
    taught, rows = torch.eye(2), torch.tensor([4, 15])

    def loss(answer: model.Found) -> float:
        return float(losses.detection_loss(answer, [names], [places], [taught]))

    right = found(names, places, taught, rows)
    assert losses.match(right.logits[0], names, places).tolist() == rows.tolist()
    assert loss(right) < 1e-3
    wrong = {
        "another name": found(names.flip(0), places, taught, rows),
        "another place": replace(right, boxes=right.boxes * 0.8),
        "another patch answers": found(names, places, taught, torch.tensor([5, 12])),
        "two patches answer": replace(right, logits=right.logits.where(right.logits < 0, right.logits.amax(1, True))),
        "looks like the other": found(names, places, taught.flip(0), rows),
    }
    wrong["two patches answer"].logits[0, 5, 2] = 9
    for what, answer in wrong.items():
        assert loss(answer) > loss(right) + 0.05, what


def test_the_choice_of_a_box_is_by_name_and_within_its_image() -> None:
    """By hand: the first image's boxes are all as likely, only a twin's left out; the second image's has a lead."""
    logits = torch.zeros(2, 4, 3)
    logits[0, :, 2], logits[1, 1, 0] = 9, 3  # the first is of a name that nothing has
    names, answer = torch.tensor([0, 0, 1, 0]), (torch.tensor([0, 0, 0, 1]), torch.tensor([2, 3, 0, 1]))
    wanted = 2 * math.log(3) + math.log(4) + math.log(math.exp(3) + 3) - 3
    assert float(losses.which_loss(logits, names, answer)) == pytest.approx(wanted)


def test_the_patch_in_the_middle_answers_and_the_surer_of_two_as_near() -> None:
    names = torch.tensor([1])
    logits = torch.full((16, 2), -5.0)
    logits[0] = 5  # sure, but far away
    assert losses.match(logits, names, torch.tensor([[0.6, 0.65, 0.3, 0.3]])).tolist() == [10]
    logits[9] = 5  # as near as patch 10 to a middle on the line between them
    assert losses.match(logits, names, torch.tensor([[0.5, 0.65, 0.3, 0.3]])).tolist() == [9]
    two = torch.tensor([[0.625, 0.625, 0.4, 0.4], [0.64, 0.64, 0.2, 0.2]])
    assert len(set(losses.match(logits, torch.tensor([1, 0]), two).tolist())) == 2


def test_patches_belong_to_what_lies_on_top() -> None:
    """Two things in the first image, the second over the first; numbers go on in the second image."""
    first = torch.tensor([[0.5, 0.5, 1.0, 1.0], [0.25, 0.25, 0.5, 0.5]])
    owner = losses.owners([first, torch.tensor([[0.75, 0.75, 0.5, 0.5]])], 16)
    assert owner[0].reshape(4, 4).tolist() == [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert owner[1].reshape(4, 4).tolist() == [[-1] * 4, [-1] * 4, [-1, -1, 2, 2], [-1, -1, 2, 2]]


def test_precision_is_one_for_the_truth_and_less_for_less(scatter: Scatter, monkeypatch: pytest.MonkeyPatch) -> None:
    """A detector that is told the answers scores 1; with boxes of half the size, or another's names, it does not."""
    made: list[Collage] = []
    collage = scatter.collage
    monkeypatch.setattr(scatter, "collage", lambda generator: made.append(collage(generator)) or made[-1])

    def measured(shrink: float = 1.0, off: int = 0) -> float:
        def told(_: object, pixels: Tensor, states: Tensor) -> model.Found:
            logits, boxes = torch.full((len(pixels), 4, len(states)), -9.0), torch.full((len(pixels), 4, 4), 0.01)
            for number, shown in enumerate(made[-len(pixels) :]):
                for k, (index, place) in enumerate(zip(shown.indices, training.places(shown), strict=True)):
                    logits[number, k, (META[index].concept + off) % len(states)] = 9
                    boxes[number, k] = place * torch.tensor([1, 1, shrink, shrink])
            return model.Found(logits, boxes, logits)

        monkeypatch.setattr(precision, "predict", told)
        return precision.ap50(None, torch.zeros(274, 8), scatter, count=25, seed=0)  # type: ignore[arg-type]

    assert measured() == pytest.approx(1)
    assert measured(shrink=0.5) < 0.1
    assert measured(off=3) < 0.3


def test_it_trains_resumes_and_exports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = tmp_path / "data"
    data.mkdir()
    np.save(data / "pictures.npy", discs())
    (data / "pictures.json").write_text(json.dumps([vars(p) for p in META]), encoding="utf-8")
    monkeypatch.setattr(training, "measure", lambda *_: {"seen": 0.5})
    monkeypatch.setattr(training, "BATCH", 4)
    target = tmp_path / "package" / "model"
    for name in ("clip", "model"):
        (tmp_path / "package").mkdir(exist_ok=True)
        (tmp_path / "package" / name).symlink_to(FOLDER / name)
    for steps in (1, 2):
        training.train(tmp_path, Budget(steps=steps), torch.device("cpu"), target, start=FOLDER / "detector")
    state = torch.load(tmp_path / "detector" / "checkpoint.pt", weights_only=True)
    assert state["step"] == 2
    started = OwlViTForObjectDetection.from_pretrained(FOLDER / "detector", dtype=torch.float32).state_dict()
    started |= {k: v for k, v in model.build(FOLDER / "clip").state_dict().items() if k.startswith("owlvit.text")}
    for name in ("box_head.dense0.weight", "owlvit.text_projection.weight"):  # two steps of 7e-4 at most; frozen
        atol = 0.0 if "text" in name else 3e-3
        torch.testing.assert_close(state["module"][name], started[name], atol=atol, rtol=0)
    training.export(tmp_path, target)
    shipped = tmp_path / "package" / "detector"
    made = OwlViTForObjectDetection.from_pretrained(shipped, dtype=torch.float32)
    trained = OwlViTForObjectDetection.from_pretrained(tmp_path / "detector" / "model", dtype=torch.float32)
    for name, tensor in trained.state_dict().items():
        torch.testing.assert_close(made.state_dict()[name], tensor.half().float(), rtol=0, atol=0)
    assert model.EXACT not in (shipped / "config.json").read_text(encoding="utf-8")  # others do not know it
    assert CLIPTokenizer.from_pretrained(shipped).pad_token_id == 0
    assert load_reward("detection", present=["a fox"], weights=str(shipped)) is not None


def test_it_measures_each_set_of_pictures_by_each_set_of_collages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The figures are told apart by set and count, and those of images never seen come from such images alone."""
    pools, asked = training.split(META), []

    def told(_: object, states: Tensor, scatter: Scatter, count: int, seed: int) -> float:
        asked.append((frozenset(scatter.choices), count, seed))
        return float(len(asked))

    monkeypatch.setattr(training, "ap50", told)
    tokenizer = model.make_tokenizer(FOLDER / "model" / "tokenizer")
    figures = training.measure(model.build(FOLDER / "clip"), tokenizer, discs(), META)
    assert list(figures.values()) == [float(n) for n in range(1, 9)]
    assert [(count, seed) for _, count, seed in asked] == 4 * list(precision.SEEDS.items())
    for (shown, _, _), name in zip(asked, figures, strict=True):
        hidden = {*pools["pictures never seen"], *pools["other things, never seen"]}
        assert shown <= hidden if "never" in name else not shown & hidden, name


def test_held_out_pictures_are_those_of_the_clip() -> None:
    pools = training.split(META)
    held_out = set(clip.held_out_pictures(META))
    assert {*pools["pictures never seen"], *pools["other things, never seen"]} == held_out
    assert not held_out & {*pools["pictures seen"], *pools["other things"]}
    assert sum(map(len, pools.values())) == len(META)
