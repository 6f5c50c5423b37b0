"""Takes the machine out of a text: paths, names of the user and the machine, and tokens become placeholders."""

from __future__ import annotations

import getpass
import ntpath
import os
import platform
import posixpath
import re
import sysconfig
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PATH, USER, MACHINE, SECRET = "<path>", "<user>", "<machine>", "<secret>"
SHORTEST_NAME = 3  # letters of a name that is taken out; shorter ones are parts of words
SHORTEST_SECRET = 8
EVERYBODYS = {"root", "user", "admin", "administrator", "runner", "ubuntu", "localhost", "localdomain"}
SECRET_NAMES = re.compile(r"token|secret|passw|api_?key|credential", re.IGNORECASE)

_LETTER = r"[^\s\"'`<>|*?,;()\[\]{}]"  # of a path that is not quoted
_START = r"(?:[A-Za-z]:[\\/]|\\\\(?=\w)|~[\w.-]*[\\/]|/(?![\s/]))"  # of an absolute path, or of one from a home folder
_QUOTED = re.compile(rf"""(["'`])({_START}.*?)\1""")
_BARE = rf"(?<![\w./\\~<>-]){_START}{_LETTER}*"  # not within a word, a relative path, an address or a fraction
_FILE_ADDRESS = re.compile(rf"file://{_LETTER}*")
_PASSWORD = re.compile(r"(?<=://)[^\s/@]+@")
_TOKEN = re.compile(r"\b(?:hf|ghp|gho|ghs|github_pat|sk|pypi)[_-][A-Za-z0-9_-]{16,}")
_PACKAGES = re.compile(r".*[\\/](?:site|dist)-packages[\\/]")


@dataclass(frozen=True)
class Machine:
    """What a text may say of the machine and its user.

    Arguments:
        names: of the user, each with its placeholder, and of the machine.
        secrets: values of environment variables that are passwords or tokens.
        sources: folder -> placeholder, of code whose files may be named below it.
        folders: absolute paths, taken out also where they hold blanks.
    """

    names: Mapping[str, str] = field(default_factory=dict)
    secrets: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    folders: tuple[str, ...] = ()

    def text(self, text: str) -> str:
        """The text without what tells of the machine; a file of an installed package keeps its place in the package."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, SECRET)
        text = _PASSWORD.sub(f"{SECRET}@", _TOKEN.sub(SECRET, text))
        text = _QUOTED.sub(lambda found: f"{found[1]}{self._place(found[2])}{found[1]}", text)
        bare = "|".join([*(f"{re.escape(folder)}{_LETTER}*" for folder in self.folders), _BARE])
        text = re.sub(bare, lambda found: self._place(found[0]), _FILE_ADDRESS.sub(PATH, text))
        for name, placeholder in self.names.items():
            text = re.sub(rf"(?<!\w){re.escape(name)}(?!\w)", placeholder, text, flags=re.IGNORECASE)
        return text

    def value(self, value: Any) -> Any:
        """The same of all strings in a value made of lists and dictionaries; one that is a path goes whole."""
        if isinstance(value, str):
            return self._place(value) if _is_path(value) else self.text(value)
        if isinstance(value, dict):
            return {self.value(key): self.value(item) for key, item in value.items()}
        return [self.value(item) for item in value] if isinstance(value, list) else value

    def _place(self, path: str) -> str:
        """A path's placeholder, and where it lies in an installed package."""
        end = re.search(r"[.:]*$", path)
        rest = end[0] if end and end[0] != path else ""
        bare = path.removesuffix(rest) if rest else path
        for folder, placeholder in sorted(self.sources.items(), key=lambda item: -len(item[0])):
            if bare.startswith((f"{folder}/", f"{folder}\\")):
                return placeholder + bare[len(folder) :].replace("\\", "/") + rest
        if _PACKAGES.match(bare):
            return "<packages>/" + _PACKAGES.sub("", bare).replace("\\", "/") + rest
        return PATH + rest


def this_machine(packages: Iterable[Path] = (), folders: Iterable[Path] = ()) -> Machine:
    """What is known of this machine and its user.

    Arguments:
        packages: folders of packages, which may lie outside of Python's own folders.
        folders: further ones that no text may name.
    """
    sources = {str(folder.absolute()): f"<packages>/{folder.name}" for folder in packages}
    paths = sysconfig.get_paths()
    sources |= {paths["purelib"]: "<packages>", paths["platlib"]: "<packages>", paths["stdlib"]: "<python>"}
    secrets = [value for name, value in os.environ.items() if SECRET_NAMES.search(name)]
    return Machine(
        names={
            **{name: USER for name in _user_names() if _tells(name)},
            **{name: MACHINE for name in (platform.node(), platform.node().partition(".")[0]) if _tells(name)},
        },
        secrets=tuple(secret for secret in secrets if len(secret) >= SHORTEST_SECRET),
        sources=sources,
        folders=tuple(str(folder) for folder in (*(folder.absolute() for folder in folders), Path.cwd(), *_homes())),
    )


def _user_names() -> set[str]:
    names = {home.name for home in _homes()}
    with suppress(ImportError, KeyError, OSError):  # Windows without the variable, a container without the account
        names.add(getpass.getuser())
    return names


def _homes() -> list[Path]:
    try:
        return [Path.home()]
    except (RuntimeError, KeyError):  # an account without one
        return []


def _tells(name: str) -> bool:
    return len(name) >= SHORTEST_NAME and name.lower() not in EVERYBODYS


def _is_path(text: str) -> bool:
    """Whether a whole value is an absolute path of any system, or one from a home folder."""
    is_one_line = "\n" not in text
    is_windows = ntpath.isabs(text) and bool(ntpath.splitdrive(text)[0])
    return is_one_line and (posixpath.isabs(text) or is_windows or bool(re.match(r"~[\w.-]*([\\/]|$)", text)))
