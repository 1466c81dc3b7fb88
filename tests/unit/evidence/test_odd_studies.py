"""Studies unlike the published ones: nothing breaks, and no sentence names what is not there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from builder import build_results, make_study, resolved_of
from matplotlib.text import Text

import mhclite.evidence.topics  # noqa: F401  registers all exhibits
from mhclite.connections.registry import VARIANTS
from mhclite.evidence.exhibits import FIGURES, TABLES, shown
from mhclite.evidence.findings import findings_of
from mhclite.evidence.pages import FIGURE, current, losses_block
from mhclite.evidence.published import publish
from mhclite.evidence.report import page
from mhclite.evidence.report_found import found
from mhclite.evidence.report_limits import limits
from mhclite.evidence.report_methods import methods
from mhclite.evidence.report_scale import GLOSSARY, settings
from mhclite.evidence.results import Results, load_results
from mhclite.evidence.style import style
from mhclite.files import write_json, write_text
from mhclite.records import to_json

pytestmark = pytest.mark.slow

ONE_LAYER = {"models": {"d1": 1}}
STUDIES: dict[str, dict[str, Any]] = {
    "the plain residual alone": {"variants": ("residual",), "seeds": (0, 1)},
    "iterations without mHC, 90 %": {
        "variants": ("residual", "mhc_v4", "ohc"),
        "seeds": (0, 1),
        "statistics": {"confidence": 0.9},
    },
    "a norm of its own": {
        **ONE_LAYER,
        "variants": ("residual", "identity", "mhc_lite"),
        "seeds": (0, 1),
        "connections": {"final_norm": "head"},
    },
    "rates searched, one condition at one depth": {
        "models": {"d1": 1, "d2": 2},
        "variants": ("residual", "kromhc"),
        "seeds": (0,),
        "critical_rate": {"factors": [2, 8], "halvings": 1, "below_unigram": 0.1},
        "conditions": {
            "aged": {
                "title": "faster, 5 $",
                "variants": ["kromhc"],
                "models": ["d1"],
                "connections": {"mixing_rate_factor": 3},
            }
        },
    },
}
MANY = "seeds|layers|runs|steps|models|sizes|corpora|claims|times|variants|windows|verdicts|streams"
ONE_OF_MANY = re.compile(rf"(?<![\d.,])1 (?:[a-z-]+ )?(?:{MANY})\b")


@pytest.fixture(scope="module", params=STUDIES)
def odd(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Results:
    study = make_study(**STUDIES[request.param])
    folder = build_results(tmp_path_factory.mktemp("odd"), study, diverged=())
    write_json(folder / "resolved.json", to_json(resolved_of(study, folder.parent)))
    return load_results(folder)


@pytest.fixture(scope="module")
def texts(odd: Results) -> list[tuple[str, str]]:
    """Place and text; and files for the figures, of which the report is made."""
    return list(said(odd))


def said(results: Results) -> Iterator[tuple[str, str]]:
    """All that is said of a study, but the statements of claims, which name what they lack."""
    for corpus in results.corpora:
        findings = [one for one in findings_of(results) if one.corpus == corpus]
        yield from found(results, findings, corpus)
        yield from limits(results, findings, corpus)
    yield from methods(results)
    yield from GLOSSARY
    yield from ((row.name, row.meaning) for row in settings(results))
    for exhibit, write in shown(TABLES, results.settings):
        table = write(results)
        yield exhibit.name, table.notes
        yield exhibit.name, exhibit.caption_for(results)
        yield exhibit.name, " | ".join(table.display.columns)
    for exhibit, draw in shown(FIGURES, results.settings):
        yield exhibit.name, exhibit.caption_for(results)
        with style():
            figure = draw(results)
            figure.draw_without_rendering()
            write_text(results.folder / "figures" / f"{exhibit.name}.svg", "<svg/>")
        yield exhibit.name, " | ".join(text.get_text() for text in figure.findobj(Text))


def named(text: str) -> set[str]:
    """The variants that a text names."""
    names = set()
    for variant, about in sorted(VARIANTS.items(), key=lambda one: -len(one[1].label)):
        label = rf"(?<![\w-]){re.escape(about.label)}(?![\w-])"
        if re.search(label, text):
            names.add(variant)
        text = re.sub(label, "", text)  # mHC (V4) is not mHC
    return names


def test_no_sentence_names_what_the_study_lacks(odd: Results, texts: list[tuple[str, str]]) -> None:
    compared = {"results", "validation_loss", "loss_vs_depth", "token_efficiency", "depth"}
    for place, text in texts:
        assert named(text) <= {*odd.variants}, (place, text)
        if place in compared and "residual" not in odd.variants:
            assert not re.search("plain residual(?!.* not in this study)|no completed", text), text
        if odd.confidence != 0.95:
            assert not re.search("95 % (?:Student|t |Poisson|interval)", text), (place, text)
        assert "p value of 0.05" not in text, (place, text)
        assert not ONE_OF_MANY.search(text), (place, text)


def test_pages_and_report_are_made_of_any_study(
    odd: Results, texts: list[tuple[str, str]], tmp_path: Path
) -> None:
    """As `publish` does; a study of one depth has no figure over depth."""
    report = page(odd, [write(odd) for _, write in shown(TABLES, odd.settings)])
    assert all(odd.label(variant) in report for variant in odd.variants)
    publish(odd.folder, tmp_path / "published" / "synthetic")
    (tmp_path / "README.md").write_text(
        "<!-- found:synthetic --><!-- /found --><!-- losses:synthetic --><!-- /losses -->"
    )
    pages = current(tmp_path, tmp_path / "published")
    figure = tmp_path / f"docs/images/synthetic-{FIGURE}.svg"
    assert (figure in pages) == (len(odd.models) > 1)
    assert (figure.name in pages[tmp_path / "README.md"]) == (len(odd.models) > 1)
    assert not ONE_OF_MANY.search(losses_block(odd))
