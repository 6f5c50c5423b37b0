"""Templates become text: the one jinja environment of pages, cards and plugin projects, and how numbers are written."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

import jinja2

if TYPE_CHECKING:  # it brings torch, which the command line does without
    from draft_core.evaluation.collapse import Change


def template_environment(package: str, folder: str = "templates") -> jinja2.Environment:
    """The environment of the templates in a folder of a package.

    A name without a value is an error, values are escaped in HTML alone, and a line with only a tag leaves no line.
    """
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader(package, folder),
        autoescape=jinja2.select_autoescape(["html", "html.j2"]),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["plus_minus"] = plus_minus
    environment.filters["duration"] = duration
    environment.filters["word"] = shlex.quote  # of a command
    return environment


def render(template: str, **values: Any) -> str:
    """A template of the reports, filled in."""
    return template_environment("draft_core.reporting").get_template(template).render(**values)


def plus_minus(value: Change, *, sign: bool = False) -> str:
    """A mean and its standard error, both to the error's second digit: "-1.66 ± 0.05"."""
    plus = "+" if sign else ""
    if not value.error > 0:  # zero, or NaN
        return f"{value.mean:{plus}.4g}"
    digits = min(6, max(0, 1 - math.floor(math.log10(value.error))))
    return f"{value.mean:{plus}.{digits}f} ± {value.error:.{digits}f}"


def duration(seconds: float) -> str:
    """Seconds as a person says them: "2 min 35 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
