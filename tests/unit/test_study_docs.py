"""The parameter table is in step with the model, and every key is read by something."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from mhclite.study.docs import parameter_table, settings_classes

ROOT = Path(__file__).parents[2]
KEYS = [(where, key) for where, settings in settings_classes() for key in settings.model_fields]


def test_the_parameter_table_is_current() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == parameter_table(), (
        "run `python -m mhclite.study.docs docs/configuration.md`"
    )


@pytest.mark.parametrize(("where", "key"), KEYS)
def test_every_key_is_read(where: str, key: str) -> None:
    """Somewhere in the code or the workflow stands the key itself, beyond its definition."""
    readers = [*(ROOT / "workflow").rglob("*.smk")]
    own = [ROOT / "src/mhclite/study" / name for name in ("settings.py", "sections.py")]
    readers += [path for path in (ROOT / "src").rglob("*.py") if path not in own]
    text = "\n".join(path.read_text() for path in readers)
    read = re.search(rf"\[\"{key}\"\]|\['{key}'\]|\.{key}\b|\"{key}\"|\b{key}=", text)
    definitions = "\n".join(path.read_text() for path in own)
    read_by_study = re.search(rf"(self|change|condition)\.(\w+\.)?{key}\b", definitions)
    assert read or read_by_study, f"{where}.{key} is read nowhere"
