"""Prepare a small corpus in many parts with two processes.

python preparing.py SETTINGS.json FOLDER PART_BYTES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mhclite.data.prepare import prepare

if __name__ == "__main__":
    settings, folder, part_bytes = sys.argv[1:]
    chosen = json.loads(Path(settings).read_text())
    prepare(chosen, Path(folder), 2, int(part_bytes))
