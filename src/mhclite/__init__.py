"""mhclite: a replication pipeline for mHC-lite (arXiv 2601.05732) and its relatives."""

__version__ = "0.1.0"
