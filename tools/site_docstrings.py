"""An extension of griffe, which reads docstrings for the site: texts of settings, and parameters that share one."""

from __future__ import annotations

import ast
import re
from typing import Any

import griffe

# Called with a default and a text: (place of the default among the arguments, that of the text; None: by keyword only).
DESCRIBED: dict[str, tuple[int, int | None]] = {"Field": (0, None), "setting": (1, 0)}
# `height, width: text`, whose text may go on in lines that are indented further.
SHARED = re.compile(r"^( +)(\*{0,2}\w+(?:, \*{0,2}\w+)+): (.*(?:\n\1 +\S.*)*)\n?", re.M)


class Docstrings(griffe.Extension):  # type: ignore[misc]  # mypy does not follow it
    """Gives a setting the text that its field has, each of `height, width: text` a line, and a class its signature."""

    def on_instance(self, *, obj: griffe.Object, **rest: Any) -> None:
        """Splits the lines that explain several parameters in one."""
        if obj.docstring:
            obj.docstring.value = split(obj.docstring.value)

    def on_class_members(self, *, cls: griffe.Class, **rest: Any) -> None:
        """Shows how a class without `__init__` is called by its `__new__`."""
        if "__new__" in cls.members and "__init__" not in cls.members:
            cls.members["__init__"] = cls.members["__new__"]

    def on_attribute_instance(self, *, attr: griffe.Attribute, **rest: Any) -> None:
        """Takes text and default out of the call that makes the field."""
        call = attr.value
        if attr.docstring or not isinstance(call, griffe.ExprCall) or str(call.function) not in DESCRIBED:
            return
        default, text = DESCRIBED[str(call.function)]
        plain = [part for part in call.arguments if not isinstance(part, griffe.ExprKeyword)]
        named = {part.name: part.value for part in call.arguments if isinstance(part, griffe.ExprKeyword)}
        description = named.pop("description", None) if text is None else plain[text]
        if description is None:
            return
        bounds = ", ".join(f"`{name}={value}`" for name, value in named.items())
        sentence = ast.literal_eval(str(description))
        attr.docstring = griffe.Docstring(f"{sentence} ({bounds})" if bounds else sentence, parent=attr)
        attr.value = plain[default] if len(plain) > default else None


def split(text: str) -> str:
    """The docstring with a line for each parameter of `height, width: text`."""

    def lines(found: re.Match[str]) -> str:
        return "".join(f"{found[1]}{name}: {found[3]}\n" for name in found[2].split(", "))

    return SHARED.sub(lines, text)
