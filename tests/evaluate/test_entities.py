import pytest

from quasitile.errors import InputError
from quasitile.evaluate.entities import Entity, Sentence, entities_of, entity_scores, read_conll, repaired

CASES = [
    ("O O", []),
    ("B-A I-A O", [("A", 0, 2)]),
    ("B-A B-A", [("A", 0, 1), ("A", 1, 2)]),
    ("B-A I-B I-B", [("A", 0, 1), ("B", 1, 3)]),
    ("O I-A I-A", [("A", 1, 3)]),
    ("I-A O I-A", [("A", 0, 1), ("A", 2, 3)]),
    ("B-A I-A B-B I-A", [("A", 0, 2), ("B", 2, 3), ("A", 3, 4)]),
    ("I-A B-A I-A", [("A", 0, 1), ("A", 1, 3)]),
    ("", []),
]


@pytest.mark.parametrize(("labels", "entities"), CASES)
def test_entities_follow_seqevals_default(labels, entities):
    assert entities_of(labels.split()) == [Entity(*entity) for entity in entities]


@pytest.mark.parametrize("labels", [labels for labels, _ in CASES])
def test_repair_keeps_the_entities(labels):
    fixed = repaired(labels.split())
    assert entities_of(fixed) == entities_of(labels.split())
    for previous, label in zip(["O", *fixed], fixed, strict=False):
        assert not label.startswith("I-") or previous[2:] == label[2:]


def test_scores_are_strict_in_name_and_both_ends():
    expected = [["B-A", "I-A", "O", "B-B"], ["B-A", "O"]]
    predicted = [["B-A", "O", "O", "B-B"], ["B-B", "O"]]
    report = entity_scores(expected, predicted)
    assert report["precision"] == report["recall"] == report["f1"] == pytest.approx(1 / 3)
    assert report["num_entities"] == 3
    assert report["by_label"]["B"] == {"f1": pytest.approx(2 / 3), "precision": 0.5, "recall": 1, "num_entities": 1}
    assert report["by_label"]["A"]["f1"] == 0


def test_scores_without_entities_are_zero():
    assert entity_scores([["O"]], [["O"]]) == {"f1": 0, "precision": 0, "recall": 0, "num_entities": 0, "by_label": {}}


def test_conll_with_documents_comments_and_more_columns(tmp_path):
    path = tmp_path / "a.conll"
    path.write_text(
        "# document = a paper\nPt\tB-MAT\n#\tO\n\n# a note\n\nis\tO\tO\n\n# doc=other begin=3 zones=\nhere\tO\n",
        encoding="utf-8",
    )
    assert read_conll(path) == [
        Sentence("a paper", ("Pt", "#"), ("B-MAT", "O")),
        Sentence("a paper", ("is",), ("O",)),
        Sentence("other", ("here",), ("O",)),
    ]


@pytest.mark.parametrize(("text", "message"), [("Pt\tMAT\n", "1 has the label 'MAT'"), ("Pt\tO\nPt O\n", "2 is 'Pt O'")])
def test_bad_lines_are_named(tmp_path, text, message):
    path = tmp_path / "a.conll"
    path.write_text(text)
    with pytest.raises(InputError, match=message):
        read_conll(path)
    with pytest.raises(InputError, match="does not exist"):
        read_conll(tmp_path / "b.conll")
