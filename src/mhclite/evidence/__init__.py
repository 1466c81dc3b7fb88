"""What readers see: tables, figures, verdicts and the report."""

import os

# Before anything here imports matplotlib: a notebook's backend does not exist outside it, and the
# user's own settings are for the user's own figures.
os.environ |= {"MPLBACKEND": "Agg", "MATPLOTLIBRC": os.devnull}
