"""xendpy: a xend-compatible relocation daemon, and the tools around it."""

__version__ = "0.1.0"
