"""What an unknown name may have meant."""

from __future__ import annotations

from pathlib import Path

import pytest

from draft_core.errors import RecipeError
from draft_core.recipe.resolve import locate_pretrained
from draft_core.registry.catalog import RESTRICTION, BrokenPlugin, Catalog, Distribution, Entry, load_catalog
from draft_core.registry.names import PUBLISHED, nearest
from tests.support.tiny import BRIGHTNESS, REDNESS

HERE = Distribution("somebodys", "1")
CATALOG = Catalog(rewards={"diversity": Entry(BRIGHTNESS, HERE), "redness": Entry(REDNESS, HERE)})

KINDS = ["adversarial", "aesthetic", "clipscore", "diversity", "emoji-clip", "hpsv2", "jpeg", "jpeg-size", "pickscore"]


@pytest.mark.parametrize(
    ("name", "near"),
    [
        *(("jpg", "jpeg"), ("aesthetics", "aesthetic"), ("hps", "hpsv2"), ("clip", "clipscore"), ("pick", "pickscore")),
        *(("jpegsize", "jpeg-size"), ("emojiclip", "emoji-clip"), ("jpeg-size-and-more", "jpeg-size")),
        *(("diversarial", "adversarial"), ("blur", None), ("sharpness", None), ("", None), ("brightness", None)),
    ],
)
def test_a_near_name_is_a_slip_of_the_pen_or_a_beginning(name: str, near: str | None) -> None:
    assert nearest(name, KINDS) == near


def test_another_kind_is_not_near() -> None:
    assert nearest("adversarial", ["diversity", "redness"]) is None


def said(name: str, catalog: Catalog = CATALOG) -> str:
    return str(catalog.unknown("reward", name, catalog.rewards))


def test_a_published_kind_is_to_be_installed() -> None:
    assert said("adversarial") == (
        "unknown reward 'adversarial'; pip install draft-reward-adversarial (known: diversity, redness)."
    )
    assert "; did you mean 'adversarial'? pip install draft-reward-adversarial (known" in said("adverserial")
    assert said("adversarial", Catalog()).endswith("; pip install draft-reward-adversarial (none is installed).")


def test_a_published_kind_that_a_restriction_hides_is_to_be_named_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RESTRICTION, "somebodys")
    assert "pip install draft-reward-jpeg, and name it in DRAFT_PLUGINS (" in said("jpeg")


def test_what_is_installed_is_not_to_be_installed() -> None:
    """Where the plugin is broken, its reason is said."""
    broken = BrokenPlugin("jpeg = jpeg", Distribution("draft-reward-jpeg", "1"), "ImportError: no numpy")
    text = said("jpeg", Catalog(rewards=CATALOG.rewards, broken=(broken,)))
    assert "pip install" not in text
    assert "broken plugins: draft-reward-jpeg 1 (ImportError: no numpy)" in text


def test_a_published_model_is_to_be_installed() -> None:
    with pytest.raises(RecipeError, match=r"unknown model 'emoji'; pip install draft-emoji \(none is installed\)"):
        locate_pretrained("emoji", Catalog())


def test_the_table_is_what_the_plugins_of_this_repository_offer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RESTRICTION, raising=False)
    catalog = load_catalog()
    published = set(PUBLISHED.values())
    if missing := published - catalog.versions().keys():
        pytest.skip(f"{' and '.join(sorted(missing))} not installed")
    named = {**catalog.rewards, **catalog.pretrained, **catalog.critics, **catalog.detectors}
    offered = {name: entry.distribution.name for name, entry in named.items()}
    offered |= {name: entry.distribution.name for entry in catalog.pretrained.values() for name in entry.spec.prompts}
    assert {name: offered_by for name, offered_by in offered.items() if offered_by in published} == PUBLISHED
    folders = {folder.name for folder in (Path(__file__).parents[2] / "plugins").iterdir() if folder.is_dir()}
    assert {name.removeprefix("draft-").removeprefix("reward-") for name in published} == folders - {"template"}
