"""One self-contained HTML page about a run, made from its JSON files."""

from quasitile.report.page import report

__all__ = ["report"]
