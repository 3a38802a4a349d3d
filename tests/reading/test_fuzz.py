"""A small seeded sample of the fuzzed documents of `benchmarks/fuzz_documents.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

spec = importlib.util.spec_from_file_location("fuzz_documents", Path(__file__).parents[2] / "benchmarks" / "fuzz_documents.py")
assert spec is not None
assert spec.loader is not None
fuzz_documents = importlib.util.module_from_spec(spec)
spec.loader.exec_module(fuzz_documents)


@pytest.mark.parametrize("suffix", list(fuzz_documents.SEEDS))
def test_fuzzed_documents_are_read_or_refused_in_one_line(suffix):
    assert fuzz_documents.fuzz(12, 7, [suffix]) == []
