"""Writes docs/plugins.md, the directory of rewards: `python -m tools.plugin_directory`.

Facts of the plugins of this repository come from their specs and their READMEs, those of others from docs/plugins.toml.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from draft_core import load_catalog
from draft_core.registry.catalog import Catalog, Entry
from draft_core.registry.specs import RewardSpec

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PAGE, OTHERS = ROOT / "docs" / "plugins.md", ROOT / "docs" / "plugins.toml"
SHOWN_LIBRARIES = ("torch", "torchvision", "transformers", "timm", "open-clip-torch")  # of the versions checked with

HEAD = """# Directory of rewards

Rewards that a recipe can name once their distribution is installed. This page is written by
`python -m tools.plugin_directory`; a test holds it up to date.

*Gradient* says whether methods that need one can train on it; *download* is what the first use fetches; *tolerance* is
the largest difference from the published scorer that the author calls equal, in standard deviations between images, and
*checked with* the versions with which that was measured. `draft rewards show KIND` says more of an installed one, and
`draft rewards compare KIND` measures the tolerance on your machine.
"""

LISTED = """
## Be listed

Anybody's plugin is listed that is published under a licence, passes `draft rewards check`, and says what its licences
and downloads are. A port should name its reference ([how](write-a-reward.md#4-if-it-is-a-port-name-the-reference)).

1. [Publish it](how-to/publish-a-plugin.md).
2. Print its entry with it installed: `python -m tools.plugin_directory --entry KIND`.
3. Add that to [plugins.toml](plugins.toml), run `python -m tools.plugin_directory`, and open a pull request; or paste
   the entry into an issue of the form *New reward*.

An entry that can no longer be installed with the current draft-core is removed. Being listed is no review of the code:
a plugin runs with your rights ([SECURITY.md](../SECURITY.md#what-does-not-count)).
"""


@dataclass(frozen=True)
class Listed:
    """One reward as the directory lists it; the fields are those of `RewardSpec`, and three more.

    Arguments:
        distribution: that offers it.
        checked_with: versions with which its author compared or checked it, a sentence's part; empty if unknown.
        example: whether it only shows how an entry is written, and is not published.
        page: its README, relative to docs/, of a plugin of this repository.
    """

    kind: str
    distribution: str
    summary: str
    differentiable: bool
    needs_prompt: bool
    code_license: str
    weights_license: str | None = None
    download_mb: float = 0.0
    tolerance: float | None = None
    checked_with: str = ""
    example: bool = False
    page: str = ""


def main(words: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--entry", metavar="KIND", help="print the entry of an installed reward instead")
    given = parser.parse_args(words)
    catalog = load_catalog()
    if given.entry:
        print(toml_entry(listed(catalog.reward(given.entry))))
        return
    PAGE.write_text(page(catalog), encoding="utf-8")
    print(f"wrote {PAGE}")


def page(catalog: Catalog) -> str:
    """The directory as Markdown."""
    own, others = own_rewards(catalog), read_others()
    return "".join(
        [
            HEAD,
            "\n## In this repository\n\n",
            table(own),
            "\n## By others\n\n",
            table(others) if others else "None yet.\n",
            LISTED,
        ]
    )


def own_rewards(catalog: Catalog) -> list[Listed]:
    """The rewards of the plugins of this repository, without the template, which scores nothing of use."""
    folders = {
        tomllib.loads(path.read_text(encoding="utf-8"))["project"]["name"]: path.parent
        for path in ROOT.glob("plugins/*/pyproject.toml")
    }
    folders.pop("draft-reward-template")
    entries = [entry for entry in catalog.rewards.values() if entry.distribution.name in folders]
    found = [listed(entry, folders[entry.distribution.name]) for entry in entries]
    return sorted(found, key=lambda reward: (reward.distribution, reward.kind))


def listed(entry: Entry[RewardSpec], folder: Path | None = None) -> Listed:
    """What the directory says of an installed reward; `folder` is that of its project in this repository."""
    same = {field.name: getattr(entry.spec, field.name) for field in fields(Listed) if hasattr(entry.spec, field.name)}
    readme = (folder / "README.md").read_text(encoding="utf-8") if folder else ""
    return Listed(
        **same,
        distribution=entry.distribution.name,
        checked_with=measured_with(readme, entry.spec.kind),
        page=f"../plugins/{folder.name}/README.md" if folder else "",
    )


def measured_with(readme: str, kind: str) -> str:
    """The versions in the first table of a README that compares this reward with its reference; empty without one."""
    for block in re.findall(r"<!-- reference.*?-->(.*?)<!-- /reference", readme, flags=re.DOTALL):
        if f"`{kind}`" in block and (found := re.search(r"Measured with (.+)\.$", block, flags=re.MULTILINE)):
            versions = dict(part.rsplit(" ", 1) for part in found[1].split(", "))
            return ", ".join(f"{name} {versions[name]}" for name in SHOWN_LIBRARIES if name in versions)
    return ""


def read_others() -> list[Listed]:
    """The entries of docs/plugins.toml; a field that is unknown or missing is a TypeError."""
    entries = tomllib.loads(OTHERS.read_text(encoding="utf-8")).get("reward", [])
    return sorted((Listed(**entry) for entry in entries), key=lambda reward: (reward.distribution, reward.kind))


def toml_entry(reward: Listed) -> str:
    """An entry of docs/plugins.toml; strings and numbers of TOML are written as those of JSON."""
    values = {field.name: getattr(reward, field.name) for field in fields(Listed) if field.name != "page"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in values.items() if value not in (None, "")]
    return "\n".join(["[[reward]]", *(line for line in lines if line != "example = false")])


def table(rewards: Iterable[Listed]) -> str:
    """A row for each reward."""
    heads = (
        "reward",
        "scores",
        "from",
        "gradient",
        "licence of code",
        "of weights",
        "download",
        "tolerance",
        "checked with",
    )
    rows = [heads, ("---",) * len(heads), *map(row, rewards)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in rows)


def row(reward: Listed) -> tuple[str, ...]:
    """The cells of a reward."""
    cells: tuple[Any, ...] = (
        f"`{reward.kind}`" + (" (an example, not published)" if reward.example else ""),
        reward.summary + ("; reads the prompt" if reward.needs_prompt else ""),
        f"[{reward.distribution}]({reward.page})" if reward.page else reward.distribution,
        "yes" if reward.differentiable else "no",
        reward.code_license,
        reward.weights_license or "none",
        f"{reward.download_mb:g} MB" if reward.download_mb else "none",
        "no reference" if reward.tolerance is None else f"{reward.tolerance:g}",
        reward.checked_with or "-",
    )
    return tuple(str(cell).replace("|", "\\|") for cell in cells)


if __name__ == "__main__":
    main()
