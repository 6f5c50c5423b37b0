"""What a reward lacks to be published: read from its spec and from its package's metadata, without loading it."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator, Mapping
from email.message import Message
from importlib import metadata
from typing import Any, cast

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import InvalidVersion, Version

from draft_core.publishing.findings import Finding
from draft_core.publishing.published_files import missing_files, offers_published
from draft_core.registry.catalog import Entry
from draft_core.registry.names import PUBLISHED
from draft_core.registry.specs import RewardSpec

CORE = "draft-core"
OPEN = ("none yet", "todo", "tbd", "unknown", "?", "")  # a licence that nobody has chosen
EVERYTHING = "(-inf, inf)"  # what a spec's score range is where it says nothing
DEFINED = re.compile(r"(?m)^\[[^\]]+\]:\s*(\S+)")
LINKED = re.compile(r"\]\(\s*<?([^)\s>]+)")
FENCED = re.compile(r"(?ms)^(`{3,}).*?^\1")


def missing_for_release(entry: Entry[RewardSpec], package: Message | None = None) -> list[Finding]:
    """What the reward of a catalog's entry lacks to be published, the required things first.

    Arguments:
        entry: the reward, with the distribution that offers it.
        package: that distribution's core metadata; None takes the installed one's.
    """
    package = package if package is not None else _installed(entry.distribution.name)
    found = [*_of_spec(entry.spec), *_of_weights(entry.spec), *_of_fields(entry.spec), *missing_files(entry.spec)]
    owner = PUBLISHED.get(entry.spec.kind, entry.distribution.name)
    if owner != entry.distribution.name:
        found.append(Finding(f"the kind {entry.spec.kind!r} is that of {owner}", "choose another kind"))
    if package is None:
        found.append(Finding("it is in no installed package", "install it: pip install -e ."))
    else:
        found += [*_of_package(package), *_of_readme(entry.spec.kind, package)]
    return sorted(found, key=lambda finding: not finding.required)


def _installed(distribution: str) -> Message | None:
    try:
        return cast(Message, metadata.metadata(distribution))
    except metadata.PackageNotFoundError:
        return None


def _of_spec(spec: RewardSpec) -> Iterator[Finding]:
    if _is_open(spec.code_license):
        yield Finding("the spec names no licence of the code", "choose one, and say it as code_license")
    if "\n" in spec.summary or not spec.summary.strip():
        yield Finding("the summary is not one line", "say in one line what is scored")
    for name in ("factory", "reference"):
        module = (getattr(spec, name) or "").partition(":")[0]
        if module and importlib.util.find_spec(module) is None:
            yield Finding(f"the module of its {name}, {module}, is not there", "mend the spec, or pack the file")
    if spec.reference is None and spec.takes == "image" and spec.differentiable:
        yield Finding(
            "it names no reference", "if it is a port, name the scorer that it is a port of, and a tolerance", False
        )
    if spec.score_range == EVERYTHING:
        yield Finding("the spec says no range of scores", "say it as score_range if there is one", False)


def _of_weights(spec: RewardSpec) -> Iterator[Finding]:
    """What is to be known of weights: a licence, a size, and a small instance without them."""
    downloads = spec.download_mb > 0 or offers_published(spec)
    if spec.weights_license is None and downloads:
        yield Finding("the spec names no licence of the weights", "say it as weights_license")
    elif spec.weights_license is not None and _is_open(spec.weights_license):
        yield Finding("the licence of the weights is not known", "say it as weights_license")
    elif spec.weights_license is not None and spec.weights_license.lower().startswith("not declared"):
        yield Finding("the weights were published without a licence", "ask whoever published them", False)
    if downloads and not spec.download_mb:
        yield Finding("the spec does not say how much is downloaded", "say it as download_mb")
    if downloads and not spec.small:
        yield Finding(
            "there is no small instance, so that its checks download the weights",
            "give the spec `small`, fields of an instance with seeded weights",
            False,
        )


def _of_fields(spec: RewardSpec) -> Iterator[Finding]:
    """The fields of the config that have no description, nested ones included."""
    schema = spec.config.model_json_schema()
    for name, described in _fields(schema):
        if "const" not in described and not described.get("description"):  # one value alone explains itself
            yield Finding(f"the field {name!r} has no description", "give it one: Field(..., description=...)")


def _fields(schema: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    yield from schema.get("properties", {}).items()
    for nested, described in schema.get("$defs", {}).items():
        yield from ((f"{nested}.{name}", field) for name, field in described.get("properties", {}).items())


def _of_package(package: Message) -> Iterator[Finding]:
    classifiers = package.get_all("Classifier") or []
    said = package.get("License-Expression") or package.get("License") or ""
    if not said.strip() and not any(line.startswith("License ::") for line in classifiers):
        yield Finding("the package names no licence", 'write `license = "..."` into pyproject.toml')
    if any(line.startswith("Private ::") for line in classifiers):
        yield Finding("the package is marked as private", "take the classifier `Private :: ...` out of pyproject.toml")
    if not package.get_all("License-File"):
        yield Finding("the package has no file LICENSE", "put the licence's text beside pyproject.toml")
    yield from _of_version(package["Version"])
    if not package.get("Summary"):
        yield Finding("the package has no description", "write `description = ...` into pyproject.toml")
    if not package.get("Requires-Python"):
        yield Finding("the package does not say which Pythons it takes", "write `requires-python`", False)
    if not package.get("Home-page") and not package.get_all("Project-URL"):
        yield Finding("the package names no homepage", "write [project.urls] with `Homepage = ...`", False)
    of_core = [
        need
        for need in map(Requirement, package.get_all("Requires-Dist") or [])
        if canonicalize_name(need.name) == CORE
    ]
    if not any(clause.operator in (">=", "==", "~=") for need in of_core for clause in need.specifier):
        yield Finding(f"it requires no lowest version of {CORE}", f"depend on {CORE}>= the one you tested with")


def _of_version(version: str) -> Iterator[Finding]:
    try:
        parsed = Version(version)
    except InvalidVersion:
        yield Finding(f"the version {version!r} is none", "write one like 0.1.0")
        return
    if parsed.local:
        yield Finding(f"an index takes no local version {version}", "leave out what follows the +")
    elif parsed.is_prerelease or parsed.is_devrelease:
        yield Finding(f"{version} is a pre-release", "pip installs it with --pre alone", False)


def _of_readme(kind: str, package: Message) -> Iterator[Finding]:
    text = package.get("Description") or str(package.get_payload() or "")
    if not text.strip():
        yield Finding("the package has no README", 'write `readme = "README.md"` into pyproject.toml')
        return
    if not re.search(rf"(?<![\w-]){re.escape(kind)}(?![\w-])", text):
        yield Finding(f"the README does not name {kind!r}", "say how a recipe names it, and what its score means")
    prose = FENCED.sub("", text)
    for target in [*LINKED.findall(prose), *DEFINED.findall(prose)]:
        if not target.startswith(("https://", "http://", "mailto:", "#")):
            yield Finding(
                f"the README links to {target}, which its package's page cannot follow", "write the whole address"
            )
            return


def _is_open(license: str) -> bool:
    return license.strip().lower() in OPEN
