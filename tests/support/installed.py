"""Projects that `draft new-...` wrote, found as if pip had installed them: on the path, with their entry points."""

from __future__ import annotations

from pathlib import Path

from draft_core.publishing.rewards import RewardTraits
from tests.support.thorough import some

# Every combination that a reward's project is written for, by a name that is a kind.
VARIANTS = {
    f"{takes}-{reads}{'-weights' * weights}{'-port' * port}": RewardTraits(
        takes=takes, reads=reads, weights=weights, port=port
    )
    for takes in ("image", "video")
    for reads in ("pixels", "prompt", "columns")
    for weights in (False, True)
    for port in (False, True)
    if not (port and takes == "video")
}
# Each of what a project can have, but columns, which tests/publishing/test_projects.py tries in its own process.
TRIED = some(VARIANTS, "image-prompt-weights-port", "video-pixels")


def as_installed(project: Path) -> Path:
    """Leaves beside a project's module what pip would of its entry point; returns the folder for the path."""
    source = project / "src"
    (module,) = (path.name for path in source.iterdir() if path.is_dir())
    metadata = source / f"{module}-0.1.0.dist-info"
    metadata.mkdir()
    name = module.replace("_", "-")
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0.1.0\n", encoding="utf-8")
    (metadata / "entry_points.txt").write_text(f"[draft_core.plugins]\n{name} = {module}\n", encoding="utf-8")
    return source
