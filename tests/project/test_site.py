"""The site builds without a warning, every link leads somewhere, and a browser fetches nothing from elsewhere."""

from __future__ import annotations

import functools
import http.server
import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from draft_core.recipe.yaml_text import parse_yaml
from tests.project.test_surface import MODULES, public_names
from tests.support.browser import BROWSER, Browser
from tests.support.pages import ROOT, text_of
from tools.check_site import Read, problems

MKDOCS = pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="the extra docs is not installed")
VIEWPORT = '<meta name="viewport" content="width=device-width,initial-scale=1">'

# The checks of a built site


def written(folder: Path, body: str, head: str = VIEWPORT) -> list[str]:
    (folder / "index.html").write_text(f"<html><head>{head}</head><body>{body}</body></html>", encoding="utf-8")
    (folder / "other.html").write_text(f"<html><head>{VIEWPORT}</head><h1 id='there'></h1></html>", encoding="utf-8")
    return list(problems(folder))


def test_a_sound_page_has_no_problem(tmp_path: Path) -> None:
    body = "<h1 id='a'></h1><a href='#a'>a</a><a href='other.html#there'>b</a><a href='https://example.org/x#y'>c</a>"
    assert written(tmp_path, body) == []


@pytest.mark.parametrize(
    ("body", "sentence"),
    {
        "a missing page": ("<a href='gone.html'>a</a>", "gone.html: there is no such file in the site"),
        "a page outside": ("<a href='../up.html'>a</a>", "../up.html: there is no such file in the site"),
        "a missing anchor": ("<a href='#gone'>a</a>", "#gone: there is no such anchor"),
        "an anchor of another": ("<a href='other.html#gone'>a</a>", "other.html#gone: there is no such anchor"),
        "an insecure link": ("<a href='http://example.org'>a</a>", "not an address that begins with https://"),
        "a link without a host": ("<a href='https://example'>a</a>", "not an address that begins with https://"),
        "an image of elsewhere": ("<img src='https://example.org/a.png'>", "fetches https://example.org/a.png"),
        "a script of elsewhere": ("<script src='//example.org/a.js'></script>", "fetches //example.org/a.js"),
        "a missing image": ("<img src='gone.png'>", "gone.png: there is no such file in the site"),
        "a second source": ("<img srcset='https://example.org/b.png 2x'>", "fetches https://example.org/b.png"),
    }.values(),
)
def test_what_is_wrong_with_a_page_is_found(body: str, sentence: str, tmp_path: Path) -> None:
    (found,) = written(tmp_path, body)
    assert sentence in found


def test_what_is_wrong_with_the_head_or_the_styles_is_found(tmp_path: Path) -> None:
    (tmp_path / "a.css").write_text("@font-face{src:url(https://example.org/f.woff)}", encoding="utf-8")
    style = '<link rel="stylesheet" href="https://example.org/s.css">'
    assert written(tmp_path, "", style) == [
        "index.html: no viewport, so a telephone shows it as a desktop's",
        "index.html: fetches https://example.org/s.css",
        "a.css: fetches https://example.org/f.woff",
    ]


def test_the_settings_fetch_and_report_nothing() -> None:
    settings = parse_yaml(text_of("mkdocs.yml"))
    assert settings["theme"]["font"] is False
    assert "analytics" not in settings["extra"]
    assert set(settings["validation"].values()) == {"warn"}


# The hook


@MKDOCS
def test_links_are_led_and_code_is_left_alone() -> None:
    from tools.site_pages import relinked

    page = "[a](../x.py#L1) `[b](c.md)` [d](https://e)\n\n```python\nf[0](g.md)\n```\n![h](i.png)\n"
    assert relinked(page, str.upper) == page.replace("../x.py", "../X.PY").replace("i.png", "I.PNG")


@MKDOCS
def test_a_pattern_of_the_navigation_takes_what_nothing_else_names() -> None:
    from tools.site_pages import filled

    pages = ["a/one.md", "a/two.md", "a/b/three.md", "c.md"]
    nav = [{"A": ["a/two.md", "a/*", {"B": ["a/b/*"]}]}, "c.md"]
    assert filled(nav, pages) == [{"A": ["a/two.md", "a/one.md", {"B": ["a/b/three.md"]}]}, "c.md"]


@MKDOCS
def test_parameters_that_share_a_line_get_one_each() -> None:
    from tools.site_docstrings import split

    text = "Arguments:\n    height, width: in pixels,\n        both.\n    other: is left.\n"
    assert split(text) == (
        "Arguments:\n    height: in pixels,\n        both.\n    width: in pixels,\n        both.\n    other: is left.\n"
    )


# The site itself


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built with warnings as errors."""
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@MKDOCS
def test_every_link_of_the_site_leads_somewhere(site: Path) -> None:
    assert list(problems(site)) == []
    pages = {path.relative_to(ROOT / "docs").with_suffix("") for path in (ROOT / "docs").rglob("*.md")}
    assert {page for page in pages if not (site / f"{page}.html").is_file()} == set()


@MKDOCS
@pytest.mark.parametrize("module", MODULES)
def test_every_public_name_has_a_section(module: str, site: Path) -> None:
    page = Read((site / "reference" / "api" / f"{module}.html").read_text(encoding="utf-8"))
    assert {name for name in public_names(module) if f"{module}.{name}" not in page.anchors} == set()


@MKDOCS
def test_the_search_knows_the_pages_and_the_names(site: Path) -> None:
    index = json.loads((site / "search" / "search_index.json").read_text(encoding="utf-8"))
    found = {entry["location"] for entry in index["docs"]}
    assert {"tutorial.html", "reference/api/draft_core.html#draft_core.DraftLV"} <= found


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *told: object) -> None: ...


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


SHOWN = ("index", "gallery", "plugins", "reference/recipes", "reference/api/draft_core", "notebooks/own-reward.ipynb")
FETCHED = "JSON.stringify(performance.getEntriesByType('resource').map(entry => entry.name))"


@MKDOCS
@BROWSER
@pytest.mark.parametrize("width", [1280, 390])
def test_a_browser_shows_it_at_once(width: int, address: str, tmp_path: Path) -> None:
    with Browser(tmp_path, width) as browser:
        for page in SHOWN:
            browser.open(f"{address}/{page}.html")
            browser.wait(
                lambda value: value is True, f"location.pathname == '/{page}.html' && document.readyState == 'complete'"
            )
            assert browser.value("document.documentElement.scrollWidth") <= width, f"{page} is wider than the screen"
            assert all(name.startswith(address) for name in json.loads(browser.value(FETCHED))), page
            assert browser.complaints == [], page


@MKDOCS
@BROWSER
def test_the_search_finds_a_name(address: str, tmp_path: Path) -> None:
    with Browser(tmp_path, 1280) as browser:
        browser.open(f"{address}/index.html?q=optimise_noise")
        link = "(document.querySelector('.md-search-result__link') || {}).href"
        assert browser.wait(bool, link).startswith(address)
        assert browser.complaints == []
