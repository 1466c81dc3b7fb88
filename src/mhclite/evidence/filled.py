"""Numbers in hand-written pages, filled from runs.csv of the published studies.

    <!-- number: STUDY MODEL WHAT [HOLDS] -->-0.10 ± 0.02<!-- /number -->

MODEL is a model size, or `corpus/model`. WHAT is `a-b`, the difference of the validation loss,
paired by seed (with two seeds both are shown, without an interval); `a`, where MODEL is `m-o`, the
same of two sizes; `a.METRIC`, a mean of a column of runs.csv (geometric where the metric's is);
`claim.ID`, the difference in claims.csv, as a factor where the claim is of logarithms; or `p.ID`,
its corrected p. An arm is `variant` or `variant:condition`. HOLDS is what the sentence says of the
number; the build fails once it is not so: `below` or `above` 0 (the whole interval), `unclear` (it
has both sides), `each` (all seeds on one side), a bound (`<0.01`) or a verdict (`supported`).
"""

from __future__ import annotations

import math
import re
from pathlib import Path

import pandas as pd

from mhclite.errors import UserError
from mhclite.evidence.metrics import METRICS
from mhclite.evidence.statistics import Interval, geometric_interval, t_interval
from mhclite.evidence.tables import rounded, significant
from mhclite.study.sections import BASE

MARK = re.compile(r"<!-- number: (.*?) -->(.*?)<!-- /number -->", re.DOTALL)
ARM = r"(\w+(?::\w+)?)"
DIFFERENCE, MEAN = re.compile(f"{ARM}-{ARM}"), re.compile(rf"{ARM}\.(\w+)")
LOSS = "validation_loss"
SIDES = ("below", "above", "unclear")


def fill(page: str, published: Path, name: str) -> str:
    """A page with its numbers as the published files have them.

    Args:
        published: folder of the published studies.
        name: of the page, for errors.

    Raises:
        UserError: a mark that is none, names what is not published, or a sentence that the number
            does not bear out.
    """

    def text(match: re.Match[str]) -> str:
        try:
            return f"<!-- number: {match[1]} -->{_number(published, match[1])}<!-- /number -->"
        except UserError as error:
            raise UserError(f"{name}, number {match[1]!r}: {error}") from None

    return MARK.sub(text, page)


def _number(published: Path, words: str) -> str:
    try:
        study, model, what, *holds = words.split()
    except ValueError:
        raise UserError("STUDY MODEL WHAT is expected") from None
    corpus, _, model = model.rpartition("/")
    of, _, claim = what.partition(".")
    is_claim = of in ("claim", "p")
    try:
        rows = pd.read_csv(published / study / ("claims.csv" if is_claim else "runs.csv"))
    except OSError as error:
        raise UserError(str(error)) from None
    model, _, other = model.partition("-")
    rows = rows[rows["model"].isin([model, other]) & (not corpus or rows["corpus"] == corpus)]
    if rows["corpus"].nunique() > 1:
        raise UserError(f"{model} is trained on several corpora: write CORPUS/{model}")
    if other and not re.fullmatch(ARM, what):
        raise UserError(f"of two sizes, {model} and {other}, an arm is expected")
    if is_claim:
        return _of_claim(rows[rows["claim"] == claim], of == "p", holds)
    runs = rows[rows["status"] == "completed"]
    if found := DIFFERENCE.fullmatch(f"{what}-{what}" if other else what):
        ours, theirs = (runs[runs["model"] == size] for size in (model, other or model))
        paired = _values(ours, found[1], LOSS) - _values(theirs, found[2], LOSS)
        seeds = paired.dropna().tolist()
        if "each" in holds and len({difference > 0 for difference in seeds}) > 1:
            raise UserError("the text says each, and seeds are on both sides of 0")
        interval, holds = t_interval(seeds), [word for word in holds if word != "each"]
        # The interval of two seeds is 13 standard errors to each side: it hides what they agree in.
        both = " and ".join(f"{seed:.3f}" for seed in seeds) if len(seeds) == 2 else None
        return _held(interval, both or rounded(interval.mean, interval.half_width), holds)
    if (found := MEAN.fullmatch(what)) and found[2] in METRICS:
        metric = METRICS[found[2]]
        mean_of = geometric_interval if metric.log or metric.geometric else t_interval
        interval = mean_of(_values(runs, found[1], found[2]).dropna().tolist())
        if interval.mean is None:
            raise UserError(f"{found[2]} was not measured")  # 0 would keep any `<` that is said
        shown = f"{significant(100 * interval.mean, 2)} %" if metric.share else None
        return _held(interval, shown or significant(interval.mean, 2), holds)
    raise UserError("it is neither a-b nor a.METRIC")


def _of_claim(claim: pd.DataFrame, is_p: bool, holds: list[str]) -> str:
    """What a claim found at one size; a bound's difference is to its threshold, and says little."""
    if claim.empty or (claim["kind"].iloc[0] == "bound" and not is_p):
        raise UserError("no claim on a difference has this id")
    row = claim.iloc[0]
    holds = [word for word in holds if word.replace("_", " ") != row["verdict"]]
    if is_p:
        return _held(Interval(1, row["p_corrected"]), significant(row["p_corrected"], 2), holds)
    mean, half = row["effect"], row["half_width"]
    interval = Interval(int(row["n"]), mean, half_width=half, low=mean - half, high=mean + half)
    text = significant(math.exp(mean), 2) if row["log"] else rounded(mean, half)
    return _held(interval, text, holds)


def _values(runs: pd.DataFrame, arm: str, metric: str) -> pd.Series[float]:
    """Values of the runs of an arm, by seed."""
    variant, _, condition = arm.partition(":")
    of = runs[(runs["variant"] == variant) & (runs["condition"] == (condition or BASE))]
    if of.empty:
        raise UserError(f"there is no completed run of {arm}")
    return of.set_index("seed")[metric]


def _held(interval: Interval, text: str, holds: list[str]) -> str:
    """The text, once what is said of the number holds."""
    low, high, mean = interval.low or 0.0, interval.high or 0.0, interval.mean or 0.0
    side = "below" if high < 0 else "above" if low > 0 else "unclear"
    for word in holds:
        if bound := re.fullmatch(r"([<>])(.+)", word):
            held = mean < float(bound[2]) if bound[1] == "<" else mean > float(bound[2])
        elif word in SIDES:
            held = side == word
        else:
            raise UserError(f"{word!r} is none of {', '.join(SIDES)}, <NUMBER, >NUMBER, a verdict")
        if not held:
            raise UserError(f"the text says {word}, and it is {text}: write the sentence anew")
    return text
