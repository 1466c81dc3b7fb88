"""Where torch.compile and Triton keep what they compile.

Standard library alone: the workflow and bundles read it too.
"""

from __future__ import annotations

import shlex
from pathlib import Path

FOLDER = "compiled"


def environment(folder: Path) -> dict[str, str]:
    """What jobs find in their environment, so that each takes what another has compiled before.

    Nothing where the path holds a blank or a quote: torch gives it to the C++ compiler as it is.

    Args:
        folder: of a study or a bundle; both compilers write their files so that several processes
            may do it at once.
    """
    compiled = folder.resolve() / FOLDER
    if shlex.quote(str(compiled)) != str(compiled):
        return {}
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
    }
