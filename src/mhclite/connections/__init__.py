"""The residual variants: one file each. `registry.py` says what is known of them without torch."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mhclite.connections.base import Connection


def connection_class(variant: str) -> type[Connection]:
    """The class of a variant: `connections/<variant>.py` defines it as `ConnectionClass`.

    Only that file is imported, and the registry is not: editing one variant, or adding one, trains
    no other again.
    """
    return importlib.import_module(f"mhclite.connections.{variant}").ConnectionClass
