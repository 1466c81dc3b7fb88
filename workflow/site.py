"""Hooks of MkDocs (mkdocs.yml): the site also has what lies outside of docs/.

Pages that are read in the repository link to one another as files of the repository. A link to a
file that the site does not have fails the build, as any other broken link.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[1]
PUBLISHED = ROOT / "results/published"
# Path in the repository -> path in the site, where they differ.
MOVED = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "CITATION.cff": "CITATION.cff",
    "LICENSE": "LICENSE",
    "results/published/README.md": "published.md",
    "src/mhclite/data/embedded/PROVENANCE.md": "provenance.md",
}
LINK = re.compile(r"(!?\[[^]]*\]\()([^)#\s]+)(#[^)]*)?\)")


def reports() -> dict[str, Path]:
    """Published study -> the folder in which `make site`, or `make figures`, has rebuilt it."""
    names = sorted(path.parent.name for path in PUBLISHED.glob("*/study.parquet"))
    folders = {name: ROOT / f"results/{name}-rebuilt" for name in names}
    return {name: at for name, at in folders.items() if (at / "report.html").is_file()}


def reports_page() -> str:
    """The page that leads to the reports and to the published tables."""
    lines = [
        "# Reports",
        "",
        "Each is one study on one page. [Findings](findings/index.md) says what each asked.",
        "",
        "| study | report | every run | every claim |",
        "|---|---|---|---|",
    ]
    for name in reports():
        kept = (f"[{file}](reports/{name}/{file})" for file in ("runs.csv", "claims.csv"))
        lines.append(f"| `{name}` | [report](reports/{name}/report.html) | {' | '.join(kept)} |")
    return "\n".join(lines) + "\n"


def on_files(files: Files, config: Any) -> Files:
    """Add the pages outside of docs/, and each study's report with its tables."""
    added = {site: ROOT / source for source, site in MOVED.items()}
    for name, folder in reports().items():
        for part in ("report.html", "tables/*", "figures/*"):  # what the report links
            for file in (f for f in folder.glob(part) if f.suffix != ".md"):
                added[f"reports/{name}/{file.relative_to(folder)}"] = file
        for table in (PUBLISHED / name).glob("*.csv"):
            added[f"reports/{name}/{table.name}"] = table
    for site, source in added.items():
        files.append(File.generated(config, site, abs_src_path=str(source)))
    files.append(File.generated(config, "reports.md", content=reports_page()))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Links between files of the repository become links between pages of the site."""
    if page.file.src_uri == "reports.md":
        return markdown
    sources = {site: source for source, site in MOVED.items()}
    here = sources.get(page.file.src_uri, f"docs/{page.file.src_uri}")

    def moved(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if "://" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        site = MOVED.get(path, path.removeprefix("docs/"))
        start = posixpath.dirname(page.file.src_uri) or "."
        return f"{text}{posixpath.relpath(site, start)}{anchor})"

    return LINK.sub(moved, markdown)
