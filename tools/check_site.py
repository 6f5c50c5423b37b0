"""Checks a built site: `python -m tools.check_site site`. `make docs` runs it after mkdocs, which checks the sources.

Every link and anchor leads somewhere, nothing is fetched from elsewhere, and pages fit a telephone.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {"audio", "embed", "iframe", "img", "input", "object", "script", "source", "track", "video"}
FETCHED_LINKS = {"icon", "manifest", "modulepreload", "preconnect", "preload", "stylesheet"}
EXTERNAL = re.compile(r"https://[a-z0-9-]+(\.[a-z0-9-]+)+(/\S*)?", re.I)
FROM_ELSEWHERE = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


class Read(HTMLParser):
    """What a page has: anchors, links, and what a browser fetches for it."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.anchors: set[str] = set()
        self.links: list[str] = []
        self.fetched: list[str] = []
        self.viewport = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Sorts the attributes of an element."""
        given = {name: value or "" for name, value in attrs}
        self.anchors |= {given[name] for name in ("id", "name") if given.get(name)}
        self.viewport |= tag == "meta" and given.get("name") == "viewport"
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        if tag == "link" and FETCHED_LINKS & set(given.get("rel", "").split()):
            self.fetched.append(given.get("href", ""))
        if tag in FETCHED:
            self.fetched += [given[name] for name in ("src", "data", "poster") if given.get(name)]
            self.fetched += [part.split()[0] for part in given.get("srcset", "").split(",") if part.strip()]


def problems(site: Path) -> Iterator[str]:
    """A sentence for each thing that is wrong with the site in a folder."""
    pages = {path: Read(path.read_text(encoding="utf-8")) for path in sorted(site.rglob("*.html"))}
    if not pages:
        yield f"{site} has no page"
    for path, page in pages.items():
        name = path.relative_to(site).as_posix()
        if not page.viewport:
            yield f"{name}: no viewport, so a telephone shows it as a desktop's"
        for address in page.fetched:
            if urlsplit(address).netloc:
                yield f"{name}: fetches {address}"
        for address in [*page.links, *(part for part in page.fetched if not urlsplit(part).netloc)]:
            if wrong := broken(address, path, site, pages):
                yield f"{name}: {address}: {wrong}"
    for path in sorted(site.rglob("*.css")):
        for address in FROM_ELSEWHERE.findall(path.read_text(encoding="utf-8")):
            yield f"{path.relative_to(site).as_posix()}: fetches {address}"


def broken(address: str, path: Path, site: Path, pages: dict[Path, Read]) -> str | None:
    """What is wrong with an address in a page, None if nothing is."""
    parts = urlsplit(address)
    if parts.scheme in ("data", "mailto"):
        return None
    if parts.scheme or parts.netloc:
        return None if EXTERNAL.fullmatch(address) else "not an address that begins with https://"
    target = path
    if parts.path:
        start = site if parts.path.startswith("/") else path.parent
        target = (start / unquote(parts.path).lstrip("/")).resolve()
        target = target / "index.html" if target.is_dir() else target
    if not target.is_relative_to(site) or not target.is_file():
        return "there is no such file in the site"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].anchors and not anchor.startswith("__"):
        return "there is no such anchor"
    return None


def main() -> None:
    """Prints what is wrong, and exits with 1 if anything is."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else "site").resolve()
    found = list(problems(site))
    print("\n".join(found) or f"{site.name}: {len(list(site.rglob('*.html')))} pages, every link leads somewhere")
    sys.exit(bool(found))


if __name__ == "__main__":
    main()
