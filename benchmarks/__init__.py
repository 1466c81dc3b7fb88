"""Benchmarks of this checkout, of no use to a study and not part of the package.

`python -m benchmarks NAME`, in the root of the checkout; docs/performance.md, docs/gpu.md.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
# No installation is needed, and what is measured is the code beside this file.
sys.path.insert(0, str(ROOT / "src"))
