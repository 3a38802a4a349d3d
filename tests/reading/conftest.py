"""Small papers written out in the tests."""

from __future__ import annotations

from pathlib import Path

import pytest

from quasitile.progress import set_quiet

MARKDOWN = """---
title: Lithium garnets
licence: CC BY 4.0
---

# Lithium garnets

## Introduction

The solid electrolyte interphase (SEI) protects the anode. A garnet is a mineral that contains three cations on
different sites. The ionic conductivity of Li7La3Zr2O12 is 3.1 × 10^-4 S cm^-1 at 25 °C.

## Synthesis

The pellets were sintered at 1100 °C for 12 h in air. The garnet consists of lithium oxide and lanthanum oxide.

The density of LiCoO2 is higher than that of LiFePO4. The capacity loss is attributed to the growth of lithium dendrites.

## References

1. Somebody, somewhere.
"""

TEXT = """Oxide thermoelectrics

Introduction

A thermoelectric material is a solid that converts heat into electricity. The Seebeck coefficient of NaCo2O4 is 100 μV K^-1.

Methods

The powders were calcined at 900 °C for 24 h. The mixture was heated in argon.

References

[1] Nobody.
"""


@pytest.fixture(autouse=True)
def quiet():
    """No progress on the screen."""
    set_quiet(True)
    yield
    set_quiet(False)


@pytest.fixture
def papers(tmp_path: Path) -> Path:
    """A folder with two good papers."""
    folder = tmp_path / "papers"
    folder.mkdir()
    (folder / "garnets.md").write_text(MARKDOWN, encoding="utf-8")
    (folder / "oxides.txt").write_text(TEXT, encoding="utf-8")
    return folder
