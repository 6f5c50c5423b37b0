"""A hook of mkdocs: what the site has beside docs/, so that the pages stay what a code host shows.

A link out of docs/ brings its target along: a page of the repository as a page, any other text file as a page with its
code, a folder as an index. Headings get the anchors of a code host, and the API reference has a section for each name
in docs/reference/public-surface.md, from its docstring. `make docs` runs it.
"""

from __future__ import annotations

import importlib
import json
import os
import posixpath
import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page
from pymdownx.slugs import slugify

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DOCS = "docs"
BESIDE = "repository"  # the folder of the site for what lies outside docs/
SURFACE = "reference/public-surface.md"
API = "reference/api"
IMAGES = {".gif", ".jpg", ".png", ".svg", ".webp"}
# A block of code is taken first, so that what looks like a link in it stays as it is.
LINK = re.compile(r"(?P<code>^ *(?P<fence>`{3,}).*?^ *(?P=fence)$|`[^`\n]+`)|\]\((?P<target>[^)#\s]+)", re.M | re.S)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Takes the anchors of a code host, links for editing if pyproject.toml has an address, versions under mike."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = slugify(case="lower")
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    address = {name.lower(): url for name, url in project.get("urls", {}).items()}.get("repository")
    if address:
        # not `repo_url`: with it every page would ask a server for the repository's stars
        config.edit_uri_template = f"{address}/edit/main/{DOCS}/{{path}}"
        config.theme["features"].append("content.action.edit")
    if "MIKE_DOCS_VERSION" in os.environ:
        config.extra["version"] = {"provider": "mike"}
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Adds what pages link to, the indexes of folders, and the API reference; fills the patterns of the navigation."""
    for file in [file for file in files if file.src_uri.endswith(".ipynb")]:
        files.append(added(f"{DOCS}/{file.src_uri}", f"{file.src_uri}.md", config))
    waiting = [file.src_uri for file in files.documentation_pages()]
    for uri in entries(config.nav):  # such as the README, which no page may link to
        if uri.startswith(f"{BESIDE}/") and uri.endswith(".md"):
            files.append(added(path_of(uri), uri, config))
            waiting.append(uri)
    while waiting:
        source = waiting.pop()
        file = files.get_file_from_path(source)
        text = file.content_string if file else ""
        for target in links(text, path_of(source)):
            uri = uri_of(target)
            if (ROOT / target).exists() and files.get_file_from_path(uri) is None:
                files.append(added(target, uri, config))
                waiting += [uri] if target.endswith(".md") or (ROOT / target).is_dir() else []
    surface = (ROOT / DOCS / SURFACE).read_text(encoding="utf-8")
    for module, text in reference(surface):
        files.append(File.generated(config, f"{API}/{module}.md", content=text))
    config.nav = filled(config.nav or [], [file.src_uri for file in files.documentation_pages()])
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Leads every link to where its target is on the site; names of the public surface lead to their sections."""
    path, folder = path_of(page.file.src_uri), posixpath.dirname(page.file.src_uri)

    def led(target: str) -> str:
        uri = uri_of(posixpath.normpath(posixpath.join(posixpath.dirname(path), target)))
        return posixpath.relpath(uri, folder or ".") if files.get_file_from_path(uri) else target

    if page.file.src_uri == SURFACE:
        markdown = linked(markdown)
    return relinked(markdown, led)


def path_of(uri: str) -> str:
    """The path in the repository of what is at `uri` of the site's sources."""
    for end in ("/index.md", ".md"):
        whole = uri.removesuffix(end)
        if uri.startswith(f"{BESIDE}/") and whole != uri and (ROOT / whole.removeprefix(f"{BESIDE}/")).exists():
            return whole.removeprefix(f"{BESIDE}/") + ("/" if end == "/index.md" else "")
    return (
        uri.removeprefix(f"{BESIDE}/")
        if uri.startswith(f"{BESIDE}/")
        else f"{DOCS}/{uri}".replace(".ipynb.md", ".ipynb")
    )


def uri_of(path: str) -> str:
    """Where a path of the repository is among the site's sources."""
    inside = path.startswith(f"{DOCS}/") and not path.endswith((".toml", ".py", ".yaml"))
    uri = path.removeprefix(f"{DOCS}/") if inside else f"{BESIDE}/{path}"
    if (ROOT / path).is_dir():
        return f"{uri}/index.md"
    return uri if Path(path).suffix in {".md", *IMAGES} else f"{uri}.md"


def relinked(markdown: str, led: Callable[[str], str]) -> str:
    """The page with `led` of the target of each of its relative links."""

    def replaced(found: re.Match[str]) -> str:
        target = found["target"]
        return found[0] if found["code"] or "://" in target else f"]({led(target)}"

    return LINK.sub(replaced, markdown)


def links(markdown: str, path: str) -> Iterator[str]:
    """The paths in the repository that the page at `path` links to."""
    for found in LINK.finditer(markdown):
        target = found["target"]
        if target and "://" not in target:
            yield posixpath.normpath(posixpath.join(posixpath.dirname(path), target))


def added(path: str, uri: str, config: MkDocsConfig) -> File:
    """The file of the site for a path of the repository: a page, an image, the index of a folder, a page with code."""
    source = ROOT / path
    if source.is_dir():
        readme = source / "README.md"
        if readme.exists():
            return File.generated(config, uri, content=f"# {path}\n\n[README.md](README.md)\n")
        return File.generated(config, uri, content=index(source))
    if source.suffix == ".md" or source.suffix in IMAGES:
        return File.generated(config, uri, abs_src_path=os.fspath(source))
    if source.suffix == ".ipynb":
        return File.generated(
            config, uri, content=notebook(json.loads(source.read_text(encoding="utf-8")), source.name)
        )
    language = {".py": "python", ".yml": "yaml", ".sh": "sh"}.get(source.suffix, source.suffix.removeprefix("."))
    code = source.read_text(encoding="utf-8")
    return File.generated(config, uri, content=f"# {source.name}\n\n`{path}`\n\n````{language}\n{code}````\n")


def notebook(book: dict[str, Any], name: str) -> str:
    """The cells of a notebook as a page, with a link to the file itself under its title."""
    cells = ["".join(cell["source"]) for cell in book["cells"]]
    pages = [
        f"```python\n{text}\n```" if cell["cell_type"] == "code" else text
        for cell, text in zip(book["cells"], cells, strict=True)
    ]
    title, _, rest = "\n\n".join(pages).partition("\n")
    return f'{title}\n\n<a href="{name}" download>{name}</a>, to run it yourself\n{rest}\n'


def index(folder: Path) -> str:
    """A page that lists the pages of a folder by their titles."""
    titles = {page.name: page.read_text(encoding="utf-8").partition("\n")[0] for page in sorted(folder.glob("*.md"))}
    rows = [f"- [{title.removeprefix('# ')}]({name})" for name, title in titles.items()]
    return f"# {folder.name.replace('-', ' ').capitalize()}\n\n" + "\n".join(rows) + "\n"


def reference(surface: str) -> Iterator[tuple[str, str]]:
    """Each public module with the page of its names, in the order of the page that lists them."""
    for part in re.split(r"(?m)^## `(?=draft_core)", surface)[1:]:
        module, _, text = part.partition("`\n")
        about = text.partition("\n- `")[0].strip()
        yield module, f"# {module}\n\n{about}\n\n" + "\n".join(sections(module, text))


def sections(module: str, text: str) -> Iterator[str]:
    """The section of each name that the page lists for a module."""
    for name, line in re.findall(r"(?m)^- `(\w+)`: (.+)$", text):
        home = getattr(getattr(importlib.import_module(module), name), "__module__", "draft_core")
        if home.startswith(("draft_core", "builtins")):
            yield f"::: {module}.{name}\n"
        else:  # another library's, which has pages of its own
            yield f"## {name} {{#{module}.{name}}}\n\n{line[0].upper()}{line[1:]}\n"


def linked(surface: str) -> str:
    """The list of public names, each with a link to its section."""
    module = ""
    lines = []
    for line in surface.splitlines():
        module = line[4:-1] if line.startswith("## `draft_core") else module
        lines.append(re.sub(r"^- `(\w+)`:", rf"- [`\1`][{module}.\1]:", line) if module else line)
    return "\n".join(lines) + "\n"


def filled(nav: list[Any], pages: list[str]) -> list[Any]:
    """The navigation, where a pattern such as `decisions/*` stands for the pages of that folder that nothing names."""
    named = set(entries(nav))
    patterns = [name for name in named if name.endswith("*")]
    taken = {page: max((len(name) for name in patterns if page.startswith(name[:-1])), default=0) for page in pages}

    def fill(item: Any) -> list[Any]:
        if isinstance(item, dict):
            return [{title: fill(part) if isinstance(part, list) else part} for title, part in item.items()]
        if isinstance(item, list):
            return [entry for part in item for entry in fill(part)]
        if not item.endswith("*"):
            return [item]
        under = [page for page in pages if page.startswith(item[:-1]) and taken[page] == len(item)]
        return sorted((page for page in under if page not in named), key=lambda page: page.removesuffix(".md"))

    return fill(nav)


def entries(nav: Any) -> Iterator[str]:
    """The pages and patterns that a navigation names."""
    if isinstance(nav, str):
        yield nav
    else:
        for item in nav.values() if isinstance(nav, dict) else nav or ():
            yield from entries(item)
