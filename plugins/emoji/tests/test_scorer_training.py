"""The programs that train the judge and the preference scorer, on random pictures of a few concepts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from emoji_training import captions, clip, drawn, export, judge, pictures, preference
from emoji_training.loop import Budget
from emoji_training.pictures import Picture
from transformers import CLIPModel, ResNetForImageClassification

pytestmark = pytest.mark.filterwarnings("ignore:.torch_dtype. is deprecated:FutureWarning")

CONCEPTS = [(label, phrase) for label, (_, phrase, _) in list(pictures.read_concepts().items())[:8]]


def described() -> list[Picture]:
    """Eight concepts in three styles, and four other emoji."""
    styles = list(pictures.STYLES)
    meta = [
        Picture(f"{n}{style}", label, phrase, ("tag",), style, n, True)
        for n, (label, phrase) in enumerate(CONCEPTS)
        for style in styles
    ]
    return meta + [Picture(f"other{n}", f"other {n}", f"an other {n}", (), styles[n % 3], -1, True) for n in range(4)]


def random_images(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*shape, 64, 64, 3), dtype=np.uint8)


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A work folder with pictures and drawings, of a world of eight concepts."""
    few = {label: found for label, found in pictures.read_concepts().items() if label in dict(CONCEPTS)}
    monkeypatch.setattr(pictures, "read_concepts", lambda: few)
    meta = described()
    wanted = drawn.plan(len(CONCEPTS))
    (tmp_path / "drawn").mkdir()
    drawn.save(tmp_path / "drawn" / "drawings.npy", random_images(len(wanted)))
    rows = json.dumps([vars(d) for d in wanted])
    (tmp_path / "drawn" / "drawings.json").write_text(rows, encoding="utf-8")
    monkeypatch.setattr(pictures, "load", lambda folder: (random_images(len(meta)), meta))
    return tmp_path


def test_every_drawing_has_a_seed_of_its_own() -> None:
    plan = drawn.plan(274)
    real = [d for i, d in enumerate(plan) if i == 0 or d != plan[i - 1]]  # those that fill a chunk are drawn again
    assert len({drawn.seed_of(d) for d in real}) == len(real)
    assert len(plan) % drawn.CHUNK == 0
    assert all(len({d.setting for d in plan[i : i + drawn.CHUNK]}) == 1 for i in range(0, len(plan), drawn.CHUNK))


def test_the_judge_is_trained_exported_and_named(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judge, "BATCH", 8)
    judge.train(work, Budget(steps=2), torch.device("cpu"))
    judged = ResNetForImageClassification.from_pretrained(work / "judge" / "model")
    assert list(judged.config.id2label.values()) == [phrase for _, phrase in CONCEPTS], "the other emoji are forgotten"
    figures = json.loads((work / "judge" / "accuracies.json").read_text(encoding="utf-8"))
    held_out = clip.held_out_pictures(described())
    assert figures["pictures never seen"][2] == len(held_out)
    assert figures["pictures seen"][2] == 24 - len(held_out)


def test_the_judge_trains_on_no_picture_that_it_is_tested_on(work: Path) -> None:
    meta = described()
    labels = judge.numbered(meta)
    assert labels.tolist()[-4:] == [8, 9, 10, 11]
    pools = judge.pools_of(labels, clip.held_out_pictures(meta))
    images = np.zeros((len(meta), 64, 64, 3), dtype=np.uint8)
    images[list(clip.held_out_pictures(meta))] = 255
    x, y = judge.batch(images, labels, pools, torch.Generator().manual_seed(0))
    assert x.shape == (judge.BATCH, 3, 64, 64)
    assert x.mean(dim=(1, 2, 3)).max() < 0.5, "the white ones are those that it is tested on"
    assert (y < 8).sum() == round(judge.FROM_CONCEPTS * judge.BATCH)


def test_both_images_of_a_pair_are_moved_alike_and_the_better_is_first(work: Path) -> None:
    meta = described()
    images = np.full((len(meta), 64, 64, 3), 200, dtype=np.uint8)
    decoded = np.full((3, len(meta), 64, 64, 3), 100, dtype=np.uint8)
    drawings, wanted = drawn.load(work)
    for i, d in enumerate(wanted):
        drawings[i] = 150 - 10 * d.setting
    pairs = preference.Pairs(images, meta, decoded, drawings, wanted)
    assert not {meta[i].label for i in pairs.seen} & {meta[i].label for i in pairs.unseen}
    assert not set(pairs.seen_rows) & set(pairs.unseen_rows)
    for key in pairs.seen_rows:
        levels = pairs.tiers(key).mean(dim=(1, 2, 3))
        assert (levels[:-1] > levels[1:]).all(), "a real picture, then drawings from good to bad"
    better, worse, texts = pairs.batch(torch.Generator().manual_seed(0))
    assert better.shape == worse.shape == (preference.PAIRS, 3, 64, 64)
    assert len(texts) == preference.PAIRS
    assert all(texts)
    row = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(1))
    moved = preference.alike(row, torch.Generator().manual_seed(2))
    same = preference.alike(row[:1].repeat(2, 1, 1, 1), torch.Generator().manual_seed(2))
    assert torch.equal(same[0], same[1])
    assert torch.equal(same[0], moved[0])


@pytest.mark.parametrize("seed", range(6))
def test_what_is_spoilt_stays_an_image(seed: int) -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    worse = preference.spoilt(image, torch.Generator().manual_seed(seed))
    assert worse.shape == image.shape
    assert worse.abs().max() <= 1 + 1e-5
    assert (worse - image).abs().mean() > 0.05


def test_the_scorers_are_trained_and_exported(work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    meta = described()
    model = tmp_path / "package" / "model"
    tokenizer = captions.make_tokenizer(model / "tokenizer", meta)
    clip.build(tokenizer).save_pretrained(tmp_path / "package" / "clip")
    (work / "preference").mkdir()
    drawn.save(work / "preference" / "decoded.npy", random_images(len(preference.NOISES), len(meta)))
    monkeypatch.setattr(preference, "PAIRS", 6)
    preference.train(work, Budget(steps=2), torch.device("cpu"), tmp_path / "package" / "clip", model)
    figures = json.loads((work / "preference" / "accuracies.json").read_text(encoding="utf-8"))
    assert figures["a picture before another thing"][1] > 0
    assert all(0 <= share <= 1 for share, _ in figures.values())

    monkeypatch.setattr(judge, "BATCH", 8)
    judge.train(work, Budget(steps=1), torch.device("cpu"))
    export.export_scorers(work, model)
    for name, architecture in (("judge", ResNetForImageClassification), ("preference", CLIPModel)):
        shipped = architecture.from_pretrained(model.with_name(name), dtype=torch.float32).state_dict()
        made = architecture.from_pretrained(work / name / "model", dtype=torch.float32).state_dict()
        for key, value in made.items():
            torch.testing.assert_close(shipped[key], value, rtol=2e-3, atol=1e-4)
