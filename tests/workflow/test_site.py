"""`make site`: links, and in a real browser phones, pictures and search."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from checkout import ROOT

from mhclite.evidence.publish import rebuild

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
PARTS = ("mkdocs.yml", "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "CITATION.cff", "LICENSE")
STUDY = "two_corpora"


def build(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build"],
        cwd=folder,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "true"},
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the site is made of, with the report of one study."""
    folder = tmp_path_factory.mktemp("project")
    for name in (*PARTS, "docs", "workflow", "src/mhclite/data/embedded/PROVENANCE.md"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copy2)(ROOT / name, folder / name)
    (folder / "results").mkdir()
    shutil.copytree(ROOT / "results/published", folder / "results/published")
    rebuild(folder / "results/published" / STUDY, folder / f"results/{STUDY}-rebuilt")
    return folder


@pytest.fixture(scope="module")
def site(project: Path) -> Path:
    done = build(project)
    assert done.returncode == 0, done.stdout + done.stderr
    return project / "site"


class Links(HTMLParser):
    """Targets and anchors of a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.anchors: set[str] = set()
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.anchors |= {value for value in (values.get("id"), values.get("name")) if value}
        target = values.get("href") or values.get("src")
        if target and tag != "link":
            self.targets.append(target)


def test_every_link_leads_somewhere(site: Path) -> None:
    pages = {path: Links(path) for path in site.rglob("*.html") if path.name != "404.html"}
    assert site / f"reports/{STUDY}/report.html" in pages
    followed = 0
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme:
                continue
            at = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            assert at.is_file(), f"{page.name}: {target}"
            if parts.fragment and at in pages:
                assert unquote(parts.fragment) in pages[at].anchors, f"{page.name}: {target}"
            followed += 1
    assert followed > 500


def test_broken_links_fail_the_build(project: Path, tmp_path: Path) -> None:
    broken, links = tmp_path / "project", ("no-such-page.md", "../src/mhclite/cli.py")
    shutil.copytree(project, broken, ignore=shutil.ignore_patterns("site", "*-rebuilt"))
    with (broken / "docs/glossary.md").open("a") as page:
        page.write("".join(f"\n[a]({link})\n" for link in links))
    done = build(broken)
    assert done.returncode != 0
    said = done.stdout + done.stderr
    assert all(link.removeprefix("../") in said for link in links), said


# Measures pages in frames of a phone's width, and searches.
PROBE = """<!doctype html><body><script>
const pages = PAGES, wait = ms => new Promise(done => setTimeout(done, ms));
async function frame(url, width) {
  const it = document.createElement('iframe');
  it.width = width; it.height = 800; it.src = url;
  document.body.append(it);
  await new Promise(done => it.onload = done);
  return it;
}
(async () => {
  const found = {};
  for (const url of pages) {
    const it = await frame(url, 400), page = it.contentDocument;
    await wait(300);
    found[url] = {
      width: page.documentElement.scrollWidth,
      pictures: [...page.images].filter(image => image.complete && !image.naturalWidth).length,
    };
    it.remove();
  }
  const it = await frame('/index.html?q=Sinkhorn', 1280);
  for (let tries = 0; tries < 200; tries++) {
    found.hits = it.contentDocument.querySelectorAll('.md-search-result__item').length;
    if (found.hits) break;
    await wait(100);
  }
  await fetch('/found', {method: 'POST', body: JSON.stringify(found)});
})();
</script>"""


class Handler(SimpleHTTPRequestHandler):
    found: Queue[Any] = Queue()

    def do_POST(self) -> None:
        self.found.put(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(204)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def address(site: Path) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_in_a_browser(site: Path, address: str, tmp_path: Path) -> None:
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.skip(f"none of {', '.join(BROWSERS)} is installed")
    pages = [f"/{path.relative_to(site)}" for path in sorted(site.rglob("*.html"))]
    (site / "probe.html").write_text(PROBE.replace("PAGES", json.dumps(pages)))
    options = ("--headless=new", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}")
    process = subprocess.Popen(
        [browser, *options, "--remote-debugging-port=0", f"{address}/probe.html"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        found = Handler.found.get(timeout=180)
    finally:
        process.terminate()
        process.wait()
        (site / "probe.html").unlink()
    assert found.pop("hits") > 0, "the search finds nothing"
    # A table that has a page to itself may be as wide as it is.
    wide = {page for page, at in found.items() if at["width"] > 400}
    assert {page for page in wide if "/tables/" not in page} == set()
    assert {page for page, at in found.items() if at["pictures"]} == set()
    assert len(found) == len(pages)
