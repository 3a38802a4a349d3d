"""Words, figures and chosen questions, one claim each."""

from __future__ import annotations

from itertools import pairwise

import pytest

from quasitile.report import figures, formats, questions, wording
from quasitile.report.load import load_run
from quasitile.report.measures import GROUPS, measure_row
from quasitile.report.page import learning


@pytest.mark.parametrize(
    ("look", "value", "text"),
    [
        (formats.SHARE, 0.4, "40.0 %"),
        (formats.SHARE, 0, "0.0 %"),
        (formats.SHARE, None, formats.DASH),
        (formats.NATS, float("inf"), formats.DASH),
        (formats.NATS, -0.00001, "0.000"),
        (formats.NATS, -0.5, f"{formats.MINUS}0.500"),
        (formats.SIZE, 3_476_000, "3.48 MB"),
        (formats.COUNT, 1234567, "1,234,567"),
        (formats.duration, 250, "4 min 10 s"),
        (formats.duration, 7500, "2 h 5 min"),
    ],
)
def test_numbers_carry_their_unit_and_missing_is_a_dash(look, value, text):
    assert look(value) == text


def test_differences_that_cannot_be_seen_are_not_marked():
    loss = GROUPS["General English"][0]
    models = {name: {"general": {"nats_per_token": value}} for name, value in (("original", 3.2081), ("adapted", 3.2079))}
    row = measure_row(loss, models)
    assert row is not None
    assert [(cell.best, cell.verdict) for cell in row.cells] == [(False, ""), (False, "")]


@pytest.mark.parametrize(("good", "verb"), [(True, "rose by 0.043"), (False, "rose by 0.620")])
def test_headline_says_so_when_general_loss_rose(make_run, tmp_path, good, verb):
    text = " ".join(wording.headline(load_run(make_run(tmp_path / "run", good=good))))
    assert verb in text
    assert "worse than the original" in text
    assert ("no gain" in text) is not good
    assert text.count("Before reading it was") == 1


def test_headline_says_so_when_nothing_became_smaller(full_run, edit):
    edit(full_run / "summary.json", lambda summary: summary["size"].update(original_bytes=3_000_000))
    assert "did not become smaller" in " ".join(wording.headline(load_run(full_run)))


@pytest.mark.parametrize(
    ("before", "after", "count", "sign"),
    [(0.0, 0.05, 120, 1), (0.03, 0.04, 48, 0), (0.6, 0.2, 60, -1), (0, 0, 9, 0), (0, 1, 9, 1)],
)
def test_learned_needs_more_than_two_standard_errors(before, after, count, sign):
    assert wording.learned(before, after, count) == sign


def test_every_tile_is_drawn_once_in_exactly_one_colour(picture):
    drawn = figures.tiling_picture(picture)
    assert drawn is not None
    num_tiles = len(picture["tiles"])
    assert sum(band.num_tiles for band in drawn.bands) == str(drawn.svg).count("Z") == num_tiles
    assert len(drawn.bands) <= figures.NUM_COLOURS


def test_equal_ranks_are_coloured_by_bits():
    tiles = [[0, 16, 16 * k, 16 * k + 16, 4, 100 + 10 * k] for k in range(9)]
    drawn = figures.tiling_picture({"name": "w", "shape": [16, 144], "tiles": tiles})
    assert drawn is not None
    assert drawn.measure == "Bits per weight"


def test_too_many_tiles_are_cropped_and_said_so():
    tiles = [[16 * i, 16 * i + 16, 16 * j, 16 * j + 16, (i * j) % 5, 60] for i in range(256) for j in range(256)]
    drawn = figures.tiling_picture({"name": "w", "shape": [4096, 4096], "tiles": tiles})
    assert drawn is not None
    assert 0 < sum(band.num_tiles for band in drawn.bands) <= figures.MAX_TILES
    assert "Drawn: the upper left" in drawn.caption


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (3.2, 3.21), (-2, 5), (0, 0), (7, 7), (1e-9, 3e-9), (0, 1e9), (5, 5.0000001)]
)
def test_ticks_enclose_their_range_in_equal_steps(low, high):
    found = figures.ticks(low, high)
    assert 2 <= len(found) <= 9
    assert found[0] <= low + 1e-12
    assert found[-1] >= high - 1e-12
    steps = [b - a for a, b in pairwise(found)]
    assert max(steps) == pytest.approx(min(steps), rel=1e-3)


def test_long_series_are_thinned_to_their_means():
    points = [(float(k), float(k % 2)) for k in range(5000)]
    thin = figures.thinned(points)
    assert len(thin) == figures.MAX_POINTS
    assert {y for _, y in thin} == {0.5}


def test_evidence_is_marked_where_it_stands():
    text = "First <b>. The gap is 1.55 eV. Last.\n\nNext paragraph."
    start = text.index("The gap")
    evidence = {"text": "The gap is 1.55 eV.", "start": start, "stop": start + 19}
    assert questions.highlighted(text, evidence) == "First &lt;b&gt;. <mark>The gap is 1.55 eV.</mark> Last."
    assert questions.highlighted(text, {**evidence, "start": 0}) == "<mark>The gap is 1.55 eV.</mark>"


def test_at_most_two_hundred_questions_of_every_split_are_chosen(make_run, tmp_path):
    run = load_run(make_run(tmp_path / "run", num_documents=8, sections=6))
    groups, total = questions.choose(run)
    counts = {rows[0].split: len(rows) for _, rows in groups}
    assert total == 384
    assert sum(counts.values()) == questions.MAX_QUESTIONS
    assert counts == {"test": 48, "phrasing": 76, "train": 76}
    assert list(counts) == ["train", "phrasing", "test"]  # what it was taught comes first


def test_blocks_are_drawn_only_where_some_of_them_learn(full_run):
    run = load_run(full_run)
    some = learning(run)
    for row in run.lines["adapted/metrics.jsonl"]:
        row["num_blocks_trained"] = row["num_blocks"]
    every = learning(run)
    assert (some["all_blocks"], every["all_blocks"]) == (False, True)
    assert len(some["figures"]) == len(every["figures"]) + 1


def test_outcome_compares_the_model_before_and_after_reading():
    right, wrong = questions.Given("closed", "a", "right", ""), questions.Given("closed", "b", "wrong", "")

    def outcome(before, after):
        return questions.Asked("i", "s", "q", "a", "w", questions.Markup(""), {"aligned": [before], "adapted": [after]}).outcome

    assert [outcome(*pair) for pair in [(wrong, right), (right, right), (right, wrong), (wrong, wrong)]] == [
        "learned",
        "kept",
        "lost",
        "never",
    ]
