"""Corpora that a study does without where they cannot be had."""

from __future__ import annotations

import os
import sys

from mhclite.data import wiki_vital
from mhclite.errors import UserError
from mhclite.study.settings import Study

# Names, separated by commas: found out once, and the same for all jobs that Snakemake starts.
LEFT_OUT = "MHCLITE_LEFT_OUT"


def available(study: Study) -> Study:
    """The study without its optional corpora that cannot be fetched; says on stderr which and why.

    Raises:
        UserError: no corpus is left, or one was fetched and is not what is meant.
    """
    known = os.environ.get(LEFT_OUT)
    left_out = [] if known is None else known.split(",")
    if known is None:
        for name, corpus in study.corpora.items():
            try:
                if corpus.optional:
                    wiki_vital.fetch()
            except wiki_vital.CannotFetch as error:
                left_out.append(name)
                print(f"corpus {name!r} is left out of the study: {error}", file=sys.stderr)
        os.environ[LEFT_OUT] = ",".join(left_out)
    corpora = {name: corpus for name, corpus in study.corpora.items() if name not in left_out}
    if not corpora:
        raise UserError(f"study {study.name!r}: no corpus is left of {', '.join(study.corpora)}")
    return study.model_copy(update={"corpora": corpora})
