"""Where torch.compile and Triton keep what they compile.

Standard library alone: the workflow and bundles read it too.
"""

from __future__ import annotations

from pathlib import Path

FOLDER = "compiled"


def environment(folder: Path) -> dict[str, str]:
    """What jobs find in their environment, so that each takes what another has compiled before.

    Args:
        folder: of a study or a bundle; both compilers write their files so that several processes
            may do it at once.
    """
    compiled = folder.resolve() / FOLDER
    return {
        "TORCHINDUCTOR_CACHE_DIR": str(compiled),
        "TRITON_CACHE_DIR": str(compiled / "triton"),
    }
