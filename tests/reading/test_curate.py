"""Curating in a real browser, and what stays when the server is killed."""

# ruff: noqa: E501
from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from tests.reading.browser import PROGRAM, Browser, wait_for

from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.reading import read
from quasitile.reading.curate.decisions import Conflict, Decisions, decisions_path
from quasitile.reading.curate.serve import curate


@pytest.fixture
def reading(papers, tmp_path) -> Path:
    read(papers, tmp_path / "reading")
    return tmp_path / "reading"


SERVE = """
import sys; from pathlib import Path; import uvicorn
from quasitile.reading.curate.decisions import Decisions
from quasitile.reading.curate.serve import application
config = uvicorn.Config(application(Decisions(Path(sys.argv[1])), "ada"), host="127.0.0.1", port=0, log_level="error", lifespan="off")
sock = config.bind_socket(); print(sock.getsockname()[1], flush=True); uvicorn.Server(config).run([sock])
"""


def serve(reading: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, "-c", SERVE, str(reading)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address = f"http://127.0.0.1:{process.stdout.readline().strip()}/"

    def answers() -> bool:
        try:
            return urlopen(address).status == 200
        except OSError:
            return False

    wait_for(answers, 60)
    return process, address


def stop(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def journal(reading: Path) -> list[dict]:
    path = decisions_path(reading)
    return read_jsonl(path) if path.exists() else []


def first_items(reading: Path) -> tuple[Decisions, list[str]]:
    decisions = Decisions(reading)
    return decisions, next(names for names in decisions.by_section if len(names) >= 2)


def test_decisions_are_replayed_in_another_process_and_undone(reading):
    decisions, (first, second, *_) = first_items(reading)
    decisions.decide("drop", first, "ada", 0, {})
    edited = decisions.decide("edit", second, "bob", 0, {"questions": [" New? ", ""], "answer": "yes"})
    assert (edited["questions"], edited["answer"], edited["status"], edited["who"]) == (["New?"], "yes", "kept", "bob")
    again = Decisions(reading)
    assert [again.items[name].state()["status"] for name in (first, second)] == ["dropped", "kept"]
    assert again.undo("ada")["status"] == "open"
    assert again.undo("ada") is None
    assert Decisions(reading).items[first].state()["status"] == "open"
    assert [line["action"] for line in journal(reading)] == ["drop", "edit", "undo"]


def test_two_tabs_do_not_overwrite_each_other(reading):
    decisions, (first, *_) = first_items(reading)
    decisions.decide("keep", first, "ada", 0, {})
    with pytest.raises(Conflict):
        decisions.decide("drop", first, "bob", 0, {})
    assert decisions.items[first].state()["status"] == "kept"


def test_a_line_cut_off_by_a_kill_is_removed(reading):
    decisions, (first, *_) = first_items(reading)
    decisions.decide("keep", first, "ada", 0, {})
    with decisions_path(reading).open("a") as out:
        out.write('{"seq": 2, "ti')
    again = Decisions(reading)
    again.decide("drop", first, "ada", 1, {})
    assert [line["action"] for line in journal(reading)] == ["keep", "drop"]


def test_decisions_are_put_into_effect_and_survive_reading_again(reading, papers):
    decisions, (first, second, *_) = first_items(reading)
    index = decisions.items[first].section
    gone = decisions.items[first].state()["questions"]
    decisions.decide("drop", first, "ada", 0, {})
    decisions.decide("edit", second, "ada", 0, {"questions": ["What now?"], "answer": "this"})
    text = decisions.sections[index]["text"]
    decisions.add(
        index, "ada", {"questions": ["Who added this?"], "answer": "Ada", "start": 0, "stop": len(text.split(".")[0])}
    )
    for _ in range(2):
        summary = curate(reading, apply=True)
        rows = read_jsonl(reading / "questions.jsonl")
        asked = [row["messages"][0]["content"] for row in rows]
        assert {"What now?", "Who added this?"} <= set(asked)
        assert not set(gone) & set(asked)
        assert (summary["num_kept"], summary["num_dropped"], summary["num_questions"]) == (2, 1, len(rows))
        added = next(row for row in rows if row["messages"][0]["content"] == "Who added this?")
        evidence = added["metadata"]["evidence"]
        assert text[evidence["start"] : evidence["stop"]] == evidence["text"]
        reasons = [row["metadata"]["reason"] for row in read_jsonl(reading / "dropped.jsonl")]
        assert reasons.count("dropped by ada") == len(gone)
    read(papers, reading)
    assert Decisions(reading).items[first].state()["status"] == "dropped"


@pytest.mark.parametrize(
    ("action", "content", "message"),
    [
        ("eat", {}, "is no action"),
        ("edit", {"questions": [], "answer": "x"}, "needed"),
        ("edit", {"questions": ["x"]}, "needed"),
    ],
)
def test_bad_decisions_are_refused(reading, action, content, message):
    decisions, (first, *_) = first_items(reading)
    with pytest.raises(InputError, match=message):
        decisions.decide(action, first, "ada", 0, content)
    assert journal(reading) == []


def test_a_folder_without_questions_is_named(tmp_path):
    with pytest.raises(InputError, match="does not exist"):
        curate(tmp_path)


def test_pages_of_other_sites_are_refused(reading):
    pytest.importorskip("uvicorn")
    process, address = serve(reading)
    try:
        for headers in ({"Host": "evil.example"}, {"Origin": "http://evil.example"}):
            with pytest.raises(HTTPError) as error:
                urlopen(Request(f"{address}api/sections", headers=headers))
            assert error.value.code == 403
            error.value.close()
    finally:
        stop(process)


@pytest.mark.skipif(PROGRAM is None, reason="no Chromium")
def test_an_expert_works_in_the_browser(reading, tmp_path):
    pytest.importorskip("uvicorn")
    pytest.importorskip("websockets")
    process, address = serve(reading)
    browser = Browser()
    try:
        tab = browser.tab(address)
        tab.until("document.querySelectorAll('.item').length >= 2 && document.querySelector('mark')")
        marked = tab.value("document.querySelector('mark').textContent")
        assert marked in {row["metadata"]["evidence"]["text"] for row in read_jsonl(reading / "questions.jsonl")}
        tab.click(".item .bar button", "Keep")
        tab.until("document.querySelector('.item.kept')")
        tab.key("d")
        tab.until("document.querySelector('.item.dropped')")
        tab.key("u")
        tab.until("!document.querySelector('.item.dropped')")
        tab.key("e")
        tab.until("document.activeElement.tagName === 'TEXTAREA'")
        tab.value("document.activeElement.value = ''")
        tab.type("What did the expert ask?")
        tab.value("document.querySelector('.item input').focus()")
        tab.click(".save")
        tab.until("document.body.textContent.includes('What did the expert ask?')")

        # A second tab decides on what the first one shows: the first is told, and shows it.
        other = browser.tab(address)
        other.until("document.querySelectorAll('.item').length >= 2")
        assert other.value("document.querySelector('.item.kept') !== null")
        other.key("j"), other.key("k")
        other.key("d")
        other.until("document.querySelector('.item.dropped')")
        tab.until("document.querySelector('.item.dropped')")

        # Added by mouse, with the evidence marked; then the server is killed without warning.
        tab.value(
            "(()=>{const t=document.createTreeWalker(document.getElementById('text'),4).nextNode(),r=document.createRange();"
            "r.setStart(t,0);r.setEnd(t,Math.min(5,t.length));getSelection().removeAllRanges();getSelection().addRange(r)})()"
        )
        tab.key("a")
        tab.until("document.activeElement.tagName === 'TEXTAREA'")
        tab.type("Added by hand?")
        tab.value("document.querySelector('#form input').focus()")
        tab.type("yes")
        tab.click("#form .save")
        tab.until("document.querySelector('.item.on p').textContent === 'Added by hand?'")
        tab.screenshot(Path(os.environ.get("QUASITILE_SCREENSHOT") or tmp_path / "page.png"))
        os.kill(process.pid, signal.SIGKILL)
        tab.key("y")
        tab.until("document.getElementById('note').textContent.includes('not saved')")
        actions = [line["action"] for line in journal(reading)]
        assert actions == ["keep", "drop", "undo", "edit", "drop", "add"]
        assert {line["who"] for line in journal(reading)} == {"ada"}
        assert any("Added by hand?" in item.state()["questions"] for item in Decisions(reading).items.values())
        tab.close(), other.close()
    finally:
        browser.close()
        stop(process)


def test_ten_thousand_questions_answer_at_once(tmp_path):
    sections = [
        {"document": "d", "section": n, "title": f"S{n}", "type": "other", "text": "Iron rusts.", "split": "train"}
        for n in range(2500)
    ]
    questions = [
        {
            "messages": [{"role": "user", "content": f"Q {n}?"}, {"role": "assistant", "content": "A"}],
            "metadata": {
                "document": "d", "section": n // 4, "fact": f"d/{n}", "kind": "cloze", "source": "rules",
                "evidence": {"text": "Iron rusts.", "start": 0, "stop": 11},
            },
        }
        for n in range(10_000)
    ]  # fmt: skip
    for name, rows in (("sections", sections), ("questions", questions)):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    decisions = Decisions(tmp_path)
    started = time.perf_counter()
    page = decisions.overview(2400, 100)
    assert (len(page["rows"]), page["num_items"]) == (100, 10_000)
    assert len(decisions.section(2499)["items"]) == 4
    assert time.perf_counter() - started < 2
    decisions_path(tmp_path).unlink(missing_ok=True)
