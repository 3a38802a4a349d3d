"""An expert goes through questions in the browser; every decision is kept."""

from quasitile.reading.curate.serve import apply_decisions, curate

__all__ = ["apply_decisions", "curate"]
