"""The public surface is what its page lists, and every name of it says what it takes, gives and raises."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "reference" / "public-surface.md"
MODULES = (
    "draft_core",
    "draft_core.plugin",
    "draft_core.rewards",
    "draft_core.rewards.images",
    "draft_core.rewards.weights",
    "draft_core.testing",
    "draft_core.errors",
)


def public_names(module: str) -> set[str]:
    """The module's `__all__`, or what it defines under a name without an underscore."""
    loaded = importlib.import_module(module)
    if hasattr(loaded, "__all__"):
        return set(loaded.__all__)
    assert loaded.__file__ is not None
    names: set[str] = set()
    for node in ast.parse(Path(loaded.__file__).read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        elif isinstance(node, ast.Assign):
            names.update(target.id for target in node.targets if isinstance(target, ast.Name))
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            names.add(node.target.id)
    return {name for name in names if not name.startswith("_")}


def listed_names(page: str) -> dict[str, dict[str, str]]:
    """Module -> name -> what the page says it is, from a heading for each module and a bullet for each name."""
    listed = {}
    for part in re.split(r"(?m)^#+ `(?=draft_core)", page)[1:]:
        module, _, text = part.partition("`")
        listed[module] = dict(re.findall(r"(?m)^- `(\w+)`: (.+)$", text))
    return listed


def test_the_page_lists_every_public_module() -> None:
    assert tuple(listed_names(PAGE.read_text(encoding="utf-8"))) == MODULES


@pytest.mark.parametrize("module", MODULES)
def test_the_page_lists_exactly_the_public_names(module: str) -> None:
    assert set(listed_names(PAGE.read_text(encoding="utf-8")).get(module, {})) == public_names(module)


def objects() -> dict[str, tuple[Any, str]]:
    """Dotted name -> every public function, class, and public method of such a class, with what its parents say."""
    found: dict[str, tuple[Any, str]] = {}
    for module in MODULES:
        for name in sorted(public_names(module)):
            value = getattr(importlib.import_module(module), name)
            if getattr(value, "__module__", "").startswith("draft_core") and callable(value):
                found[f"{module}.{name}"] = value, ""
                if inspect.isclass(value):
                    parts = {method: (part, inherited(value, method)) for method, part in methods(value)}
                    found.update({f"{module}.{name}.{method}": part for method, part in parts.items()})
    return found


def methods(cls: type) -> Iterator[tuple[str, Any]]:
    """The public methods and properties that the class, or one of its parents in draft_core, defines."""
    seen = set()
    for parent in cls.__mro__:
        for name, value in vars(parent).items() if parent.__module__.startswith("draft_core") else ():
            value = getattr(value, "__func__", value)
            if name in seen or name.startswith("_") or not (inspect.isfunction(value) or isinstance(value, property)):
                continue
            seen.add(name)
            yield name, value


def inherited(cls: type, method: str) -> str:
    """What the parents' docstrings say of a method that a class defines anew."""
    return "\n".join(getattr(parent, method).__doc__ or "" for parent in cls.__mro__[1:] if hasattr(parent, method))


def parameters(value: Any) -> set[str]:
    """What has to be explained: a function's parameters, a dataclass's fields, a config's fields that have no text."""
    if isinstance(value, property):
        return set()
    if inspect.isclass(value):
        if issubclass(value, BaseModel):
            return {name for name, field in value.model_fields.items() if not field.description} - {"kind"}
        if dataclasses.is_dataclass(value):
            return {
                field.name
                for field in dataclasses.fields(value)
                if field.init and not field.metadata.get("description")
            }
        if "__init__" not in vars(value):
            return set()
        value = vars(value)["__init__"]
    return {name for name in inspect.signature(value).parameters if name not in {"self", "cls", "args", "kwargs"}}


def raised(value: Any) -> set[str]:
    """The errors of draft_core that the function's own body raises by name."""
    if not inspect.isfunction(value):
        return set()
    tree = ast.parse(textwrap.dedent(inspect.getsource(value)))
    calls = [node.exc for node in ast.walk(tree) if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)]
    return {call.func.id for call in calls if isinstance(call.func, ast.Name)} & public_names("draft_core.errors")


def problems(value: Any, inherited: str = "") -> list[str]:
    """What the docstring lacks, and those of its parents."""
    doc = value.__doc__ or ""
    if inspect.isclass(value) and dataclasses.is_dataclass(value) and doc.startswith(f"{value.__name__}("):
        doc = ""  # the one that dataclasses make
    if not doc.strip():
        return ["a docstring"]
    explained = set(re.findall(r"`\*{0,2}(\w+)", doc + inherited))
    for names in re.findall(r"(?m)^\s+([\w*, ]+): \S", f"{doc}\n{inherited}"):
        explained.update(re.findall(r"\w+", names))
    return [*sorted(parameters(value) - explained), *(["Raises"] if raised(value) and "Raises:" not in doc else [])]


@pytest.mark.parametrize("name", objects())
def test_every_public_name_says_what_it_takes_and_raises(name: str) -> None:
    assert problems(*objects()[name]) == []


def test_a_docstring_that_lacks_something_is_found() -> None:
    from draft_core.errors import RecipeError

    def bare(images: int) -> int:
        return images

    def silent(images: int, filter: str) -> int:
        """The images.

        Arguments:
            images: some.
        """
        raise RecipeError("it fails", where="here", next="stop")

    def sound(images: int, filter: str) -> int:
        """The images, filtered by `filter`.

        Arguments:
            images: some.

        Raises:
            RecipeError: always.
        """
        raise RecipeError("it fails", where="here", next="stop")

    @dataclasses.dataclass
    class Plain:
        images: int

    assert problems(bare) == ["a docstring"]
    assert problems(silent) == ["filter", "Raises"]
    assert problems(sound) == []
    assert problems(Plain) == ["a docstring"]


def test_the_page_is_read_by_headings_and_bullets() -> None:
    page = "# Surface\n\n## `draft_core`\n\n- `build`: a trainer\n\n## `draft_core.errors`\n\n- `DraftError`: all\n"
    assert listed_names(page) == {"draft_core": {"build": "a trainer"}, "draft_core.errors": {"DraftError": "all"}}
