"""Numbers in hand-written pages."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from mhclite.errors import UserError
from mhclite.evidence.filled import MARK, fill
from mhclite.evidence.front import front_figure
from mhclite.evidence.publish import FRONT, drawn

ROOT = Path(__file__).parents[3]

# Seeds differ by more than arms do, and one run of each kind is none that counts.
RUNS = """corpus,model,variant,condition,seed,status,validation_loss,clipped_share,gain_forward_peak
a,d3,residual,base,0,completed,3.00,,
a,d3,residual,base,1,completed,3.50,,
a,d3,residual,base,2,completed,3.20,,
a,d3,hc,base,0,completed,2.90,,10
a,d3,hc,base,1,completed,3.38,,1000
a,d3,hc,base,2,completed,3.12,,
a,d3,hc,base,3,diverged,9.00,,
a,d3,residual,wide,0,completed,2.95,,
a,d3,residual,wide,1,completed,3.30,,
a,d3,residual,wide,2,completed,3.20,,
a,d6,hc,base,0,completed,1.00,,10
b,d6,hc,base,0,completed,2.00,0.125,
b,d6,hc,base,1,completed,4.00,0.375,
b,d9,hc,base,0,completed,1.75,0.125,
b,d9,hc,base,1,completed,4.02,0.375,
"""
CLAIMS = """claim,corpus,model,kind,log,verdict,n,effect,half_width,p_corrected
equal,a,d3,difference,False,practically equal,5,0.001,0.002,1.0
faster,a,d3,throughput,True,supported,9,-0.6931,0.1,0.0164
"""


@pytest.fixture
def published(tmp_path: Path) -> Path:
    (tmp_path / "small").mkdir()
    (tmp_path / "small/runs.csv").write_text(RUNS)
    (tmp_path / "small/claims.csv").write_text(CLAIMS)
    return tmp_path


def filled(published: Path, words: str) -> str:
    page = f"Before <!-- number: {words} -->0<!-- /number --> after."
    text = fill(page, published, "page.md")
    assert fill(text, published, "page.md") == text
    assert text.startswith("Before <!-- number:")
    assert text.endswith("<!-- /number --> after.")
    return text.split("-->")[1].split("<!--")[0]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("small d3 hc-residual below each", "-0.100 ± 0.050"),  # -0.10, -0.12, -0.08
        ("small d3 hc-residual:wide unclear", "-0.02 ± 0.21"),
        ("small d3 hc.gain_forward_peak >50", "100"),  # geometric
        ("small d3 residual.validation_loss <3.3 >3", "3.2"),
        ("small b/d6 hc.validation_loss >2", "3.0"),
        ("small b/d6 hc.clipped_share <0.3", "25 %"),
        ("small b/d9-d6 hc unclear", "-0.250 and 0.020"),
        ("small d3 claim.equal unclear practically_equal", "0.0010 ± 0.0020"),
        ("small d3 p.faster <0.05", "0.016"),
    ],
)
def test_numbers_are_those_of_the_runs(published: Path, words: str, expected: str) -> None:
    assert filled(published, words) == expected


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        ("small d3 hc-residual above", "says above"),
        ("small d3 hc-residual:wide each", "both sides"),
        ("small a/d6 hc-hc below", "says below"),  # one run: there is no interval
        ("small d6 hc-hc", "CORPUS/d6"),
        ("small b/d6 hc.clipped_share >0.3", "says >0.3"),
        ("small d3 hc.clipped_share <0.3", "clipped_share was not measured"),
        ("small b/d9-d6 hc each", "both sides"),
        ("small b/d9-d6 hc-hc", "an arm is expected"),
        ("small d3 claim.equal supported", "'supported' is none of"),
        ("small d3 hc+residual", "neither"),
        ("small d3 mhc-residual", "no completed run of mhc"),
        ("large d3 hc-residual", "No such file"),
        ("small d3", "STUDY MODEL WHAT"),
    ],
)
def test_what_the_runs_do_not_bear_out_is_one_line(
    published: Path, words: str, problem: str
) -> None:
    with pytest.raises(UserError, match=problem) as error:
        filled(published, words)
    assert "page.md" in str(error.value)
    assert "\n" not in str(error.value)


def test_every_page_bears_out_its_sentences() -> None:
    """Each number is that of the published runs, and so is README's figure."""
    published, filled = ROOT / "results/published", 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))):
        text = page.read_text(encoding="utf-8")
        assert fill(text, published, page.name) == text, f"{page} is stale"
        filled += len(MARK.findall(text))
    assert filled > 0
    assert drawn(partial(front_figure, published)) == (ROOT / FRONT).read_text(encoding="utf-8")
