"""An earlier run is put aside while another begins in its folder, and comes back unless the new one gets going.

Every step is a renaming inside the folder, so that a kill at any moment loses nothing: `bring_back` goes on from there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from pathlib import Path

MOVING = ".replacing"  # holds a part of the earlier run; the rest still lies beside it
ASIDE = ".replaced"  # holds all of it; what lies beside it is of the new run
GONE = ".replaced.partial"  # is being deleted


def put_aside(folder: Path, *, staying: Iterable[str]) -> None:
    """Moves what lies in the folder out of the way, but for the files of these names."""
    moving = folder / MOVING
    moving.mkdir()
    for item in list(folder.iterdir()):
        if item.name not in (MOVING, *staying):
            item.rename(moving / item.name)
    moving.rename(folder / ASIDE)


def bring_back(folder: Path, *, staying: Iterable[str]) -> None:
    """Puts the earlier run where it was and deletes what the new one made; does nothing where none is aside."""
    shutil.rmtree(folder / GONE, ignore_errors=True)
    aside, moving = folder / ASIDE, folder / MOVING
    if aside.is_dir():
        for item in list(folder.iterdir()):
            if item.name not in (ASIDE, *staying):
                _delete(item)
        aside.rename(moving)
    if moving.is_dir():
        for item in list(moving.iterdir()):
            item.rename(folder / item.name)
        moving.rmdir()


def let_go(folder: Path) -> None:
    """Deletes the earlier run."""
    if (folder / ASIDE).is_dir():
        (folder / ASIDE).rename(folder / GONE)  # from here on it does not come back
        shutil.rmtree(folder / GONE, ignore_errors=True)


def _delete(item: Path) -> None:
    if item.is_dir() and not item.is_symlink():
        shutil.rmtree(item)
    else:
        item.unlink()
