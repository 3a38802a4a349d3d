"""A journal knows what is done, whatever happened to it."""

from quasitile.compress.journal import FILE, Journal


def test_it_remembers_and_checks(tmp_path):
    journal = Journal(tmp_path / "work", {"a": 1})
    journal.path("files/x").write_text("content")
    journal.done("one", "files/x", value=[1, 2.5])
    journal.done("two")
    again = Journal(tmp_path / "work", {"a": 1})
    assert again.recall("one") == journal.recall("one")
    assert again.recall("one")["value"] == [1, 2.5]
    assert again.recall("two") is not None
    assert again.recall("three") is None
    journal.path("files/x").write_text("damaged")
    assert again.recall("one") is None
    assert again.recall("one", check=False) is not None
    journal.path("files/x").unlink()
    assert again.recall("one") is None


def test_a_line_that_was_cut_off_is_not_done(tmp_path):
    journal = Journal(tmp_path / "work", 1)
    journal.done("one")
    journal.done("two")
    path = tmp_path / "work" / FILE
    whole = path.read_bytes()
    for missing in (1, 2, 10):
        path.write_bytes(whole[:-missing])
        again = Journal(tmp_path / "work", 1)
        assert again.recall("one") is not None
        assert again.recall("two") is None
        again.done("two")
        assert path.read_bytes() == whole


def test_other_work_begins_anew(tmp_path):
    journal = Journal(tmp_path / "work", {"size": 1})
    journal.path("x").write_text("x")
    journal.done("one", "x")
    again = Journal(tmp_path / "work", {"size": 2})
    assert again.recall("one") is None
    assert not again.path("x").exists()
