"""The site of `make docs`: its links and anchors lead somewhere, and a browser loads nothing from other hosts."""

from __future__ import annotations

import os
import subprocess
import sys
from html.parser import HTMLParser
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_docs import ROOT

if any(find_spec(name) is None for name in ("mkdocs", "material", "mkdocstrings_handlers")):
    pytest.skip("mkdocs is not installed (the extra docs)", allow_module_level=True)

pytestmark = pytest.mark.slow
LOADED = {
    "script": "src",
    "img": "src",
    "iframe": "src",
    "source": "src",
    "video": "src",
    "audio": "src",
    "link": "href",
}
"""What a browser loads by itself, and by which attribute."""


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built strictly: a link or an anchor that leads nowhere fails."""
    out = tmp_path_factory.mktemp("site")
    env = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    call = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(out)]
    built = subprocess.run(call, cwd=ROOT, env=env, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return out


class Loaded(HTMLParser):
    """Addresses that a page makes a browser load. Links to click on, and the page's own address, are none."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag in LOADED and values.get("rel") not in ("canonical", "prev", "next"):
            self.found.append(values.get(LOADED[tag]) or "")


def test_nothing_is_loaded_from_other_hosts(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        found = Loaded(page).found
        assert found and not [address for address in found if "//" in address], page
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        assert "@import" not in text and "url(http" not in text and "url(//" not in text, style


def test_the_reference_has_all_that_packages_export(site: Path) -> None:
    pages = [page for page in (ROOT / "docs" / "reference").glob("*.md") if page.stem not in ("commands", "settings")]
    assert len(pages) > 8
    for page in pages:
        name = "tagmask" if page.stem == "tagmask" else f"tagmask.{page.stem}"
        html = (site / "reference" / f"{page.stem}.html").read_text(encoding="utf-8")
        for exported in import_module(name).__all__:
            assert f'.{exported}" class="doc doc-heading"' in html, f"{name}.{exported}"


def test_commands_and_settings_are_there(site: Path) -> None:
    commands = (site / "reference" / "commands.html").read_text(encoding="utf-8")
    assert "<code>tagmask run</code>" in commands and "--dry-run" in commands
    settings = (site / "reference" / "settings.html").read_text(encoding="utf-8")
    assert "method.weight_scd" in settings and "stages.cams.high" in settings and "views.local.size" in settings
