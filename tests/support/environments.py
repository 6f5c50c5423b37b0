"""Python environments with small plugins, written by hand: torch and the rest are this one's, by links."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from draft_core.registry.catalog import Catalog, Distribution, Entry
from tests.support import tint_configs, tints

# Two versions of one package of which no code can use both.
PINNED = {"1.0": "def factor():\n    return 2.0\n", "2.0": "FACTOR = 3.0\n"}
MADE = {
    "old": "import pinned\n\ndef old_tint(config):\n    return Tint(pinned.factor(), config.strength)\n",
    "new": "from pinned import FACTOR\n\ndef new_tint(config):\n    return Tint(FACTOR, config.strength)\n",
}
KINDS = {"old": ("old-tint", "columned", "still", "flat", "odd"), "new": ("new-tint",)}
NAMING = """
from draft_core.plugin import hookimpl
from draft_reward_{name}.tint_configs import specs

DRAFT_API_VERSION = 2

@hookimpl
def draft_register_rewards():
    return specs(*{kinds!r}, module="draft_reward_{name}.made")
"""


def make_environment(folder: Path, name: str) -> Path:
    """The interpreter of an environment with the plugin "old" or "new", which pins version 1 or 2 of one package."""
    site = empty_environment(folder)
    version = {"old": "1.0", "new": "2.0"}[name]
    (site / "pinned.py").write_text(PINNED[version], encoding="utf-8")
    _write_metadata(site, "pinned", version)
    package = site / f"draft_reward_{name}"
    package.mkdir()
    (package / "__init__.py").write_text(NAMING.format(name=name, kinds=KINDS[name]), encoding="utf-8")
    for module in (tints, tint_configs):
        source = Path(str(module.__file__))
        (package / source.name).write_text(source.read_text(encoding="utf-8"), encoding="utf-8")
    made = f"from draft_reward_{name}.tints import *\nfrom draft_reward_{name}.tints import Tint\n{MADE[name]}"
    (package / "made.py").write_text(made, encoding="utf-8")
    _write_metadata(
        site,
        f"draft-reward-{name}",
        "1.5",
        requires=f"pinned=={version}",
        entry_point=f"[draft_core.plugins]\n{name} = draft_reward_{name}\n",
    )
    return python_of(folder)


def empty_environment(folder: Path, *, shares: bool = True) -> Path:
    """The site-packages of a new environment; it shares those of this one, or has nothing."""
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    if shares:
        _share(site)
    return site


def _share(site: Path) -> None:
    """Links to what this environment has installed, but for draft-core and its plugins."""
    for installed in [Path(path) for path in sys.path if path.endswith("site-packages")]:
        for item in installed.iterdir():
            is_ours = item.name.startswith(("draft", "_editable", "__editable")) or item.suffix == ".pth"
            if not is_ours and not (site / item.name).exists():
                (site / item.name).symlink_to(item)


def python_of(folder: Path) -> Path:
    return folder / "bin" / "python"


def in_one_process(catalog: Catalog) -> Catalog:
    """The catalog with the same rewards, which pin nothing."""
    named = tint_configs.specs(*KINDS["old"], *KINDS["new"], module="tests.support.tints")
    here = {spec.kind: Entry(spec, Distribution("tints", "1")) for spec in named}
    return Catalog(rewards={**catalog.rewards, **here}, pretrained=catalog.pretrained)


def _write_metadata(site: Path, name: str, version: str, *, requires: str | None = None, entry_point: str = "") -> None:
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
    lines += [f"Requires-Dist: {requires}"] if requires else []
    (folder / "METADATA").write_text("\n".join(lines) + "\n", encoding="utf-8")
    (folder / "entry_points.txt").write_text(entry_point, encoding="utf-8")
