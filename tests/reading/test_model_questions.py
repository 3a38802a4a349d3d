"""Questions by a model: a real server on 127.0.0.1 that answers well or badly, a journal, and a local model."""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from quasitile.errors import InputError
from quasitile.folders import read_jsonl
from quasitile.reading import ReadSettings, read
from quasitile.reading.questions.client import Client, ModelSettings, read_journal
from quasitile.reading.questions.model import parse_answer, parse_yes

GOOD = {
    "questions": [
        {
            "question": "What does the interphase protect in a cell?",
            "phrasings": ["Which part is guarded by the interphase?"],
            "answer": "the anode",
            "evidence": "The solid electrolyte interphase (SEI) protects the anode.",
            "trace": "The first sentence names it.",
        },
        {"question": "What is made up here, please?", "answer": "nothing", "evidence": "This sentence is not in the section."},
        {
            "question": "Which number is in the text?",
            "answer": "42 eV",
            "evidence": "A garnet is a mineral that contains three",
        },
    ]
}


class Server(ThreadingHTTPServer):
    """Answers chat completions; `faults` are used up first, one a request."""

    daemon_threads = True

    def __init__(self, answer: object, faults: tuple[str, ...] = ()) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer = answer if isinstance(answer, str) else "```json\n" + json.dumps(answer) + "\n```"
        self.faults, self.prompts, self.forms = list(faults), [], []
        self.now = self.most = 0
        self.lock = threading.Lock()
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        super().__exit__(*error)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_POST(self) -> None:
        server = self.server
        assert isinstance(server, Server)
        request = json.loads(self.rfile.read(int(self.headers["content-length"])))
        with server.lock:
            server.prompts.append(request["messages"][0]["content"])
            server.forms.append(request.get("response_format"))
            server.now += 1
            server.most = max(server.most, server.now)
            fault = server.faults.pop(0) if server.faults else ""
        try:
            time.sleep(0.6 if fault == "timeout" else 0.02)
            self.reply(fault, server.answer)
        except OSError:
            pass  # the client went away
        finally:
            with server.lock:
                server.now -= 1

    def reply(self, fault: str, answer: str) -> None:
        status = int(fault) if fault.isdigit() else 200
        content = {"broken json": '{"questions": [', "wrong answer": "I cannot.", "empty": ""}.get(fault, answer)
        choices = [] if fault == "no choices" else [{"index": 0, "message": {"role": "assistant", "content": content}}]
        body = json.dumps(
            {"id": "1", "choices": choices, "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15}}
        )
        body = body if fault != "broken body" else body[:20]
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2 if fault == "cut" else None].encode())
        if fault == "cut":
            self.close_connection = True


def settings_for(server: Server, **changes: object) -> ModelSettings:
    given = {"server": server.address, "name": "m", "timeout_seconds": 0.4, "backoff_seconds": 0.01, **changes}
    return ModelSettings(**given)


@pytest.fixture(autouse=True)
def client_installed():
    pytest.importorskip("openai")


def test_questions_of_a_server_stand_beside_those_of_the_rules(papers, tmp_path):
    with Server(GOOD) as server:
        settings = ReadSettings(model=settings_for(server, price_in=1.0, price_out=2.0))
        summary = read(papers / "garnets.md", tmp_path / "out", settings)
        num_prompts = len(server.prompts)
        assert (summary["model"]["num_requests"], summary["model"]["prompt_tokens"]) == (num_prompts, 10 * num_prompts)
        assert summary["model"]["cost"] == pytest.approx(num_prompts * 20 / 1e6)
        again = read(papers / "garnets.md", tmp_path / "out", settings)
        assert len(server.prompts) == num_prompts, "answers are in the journal"
        assert again["model"]["num_from_journal"] == num_prompts
    rows = [row for row in read_jsonl(tmp_path / "out" / "questions.jsonl") if row["metadata"]["source"] == "model"]
    assert {row["messages"][0]["content"] for row in rows} == {
        "What does the interphase protect in a cell?",
        "Which part is guarded by the interphase?",
    }
    assert rows[0]["messages"][1]["reasoning_content"] == "The first sentence names it."
    assert rows[0]["metadata"]["evidence"]["text"] == GOOD["questions"][0]["evidence"]
    reasons = [
        row["metadata"]["reason"]
        for row in read_jsonl(tmp_path / "out" / "dropped.jsonl")
        if row["metadata"]["source"] == "model"
    ]
    assert {"evidence not in the section", "answer not in evidence"} <= set(reasons)
    assert summary["questions_by_source"]["rules"] > 0


FAULTS = ("timeout", "429", "500", "503", "broken json", "wrong answer", "empty", "cut", "broken body", "no choices")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_passes_is_tried_again(tmp_path, fault):
    with Server(GOOD, (fault, fault)) as server:
        client = Client(settings_for(server), tmp_path / "journal")
        assert len(client.ask("a prompt", parse_answer).questions) == 3
        assert client.usage.num_retries == 2
        assert sum(client.usage.errors.values()) == 2


def test_a_server_that_never_answers_well_costs_its_sections_questions_only(papers, tmp_path):
    with Server("nonsense") as server:
        settings = ReadSettings(model=settings_for(server, tries=2))
        summary = read(papers / "garnets.md", tmp_path / "out", settings)
    assert summary["model"]["num_failed"] > 0
    assert summary["questions_by_source"].keys() == {"rules"}


@pytest.mark.parametrize("status", ["401", "403", "404", "400"])
def test_a_refusal_ends_the_run_in_one_line(tmp_path, status):
    with Server(GOOD, (status,)) as server:
        client = Client(settings_for(server), tmp_path / "journal")
        with pytest.raises(InputError, match="refuses") as error:
            client.ask("a prompt", parse_answer)
        assert "\n" not in str(error.value)
        assert len(server.prompts) == 1


@pytest.mark.parametrize("structured", [True, False])
def test_the_server_is_asked_for_json_of_the_form_that_is_parsed(papers, tmp_path, structured):
    with Server(GOOD) as server:
        settings = ReadSettings(model=settings_for(server, structured=structured))
        read(papers / "garnets.md", tmp_path / "out", settings)
        schemas = [form["json_schema"]["schema"] for form in server.forms if form]
    assert [set(schema["properties"]) for schema in schemas] == [{"questions"}] * (len(server.forms) if structured else 0)


def test_parallel_requests_are_limited(papers, tmp_path):
    text = "# T\n\n" + "".join(
        f"## S{n}\n\n" + f"Iron number {n} is a metal that rusts in the rain. " * 8 + "\n\n" for n in range(12)
    )
    (tmp_path / "many.md").write_text(text)
    with Server(GOOD) as server:
        settings = ReadSettings(model=settings_for(server, parallel=3))
        read(tmp_path / "many.md", tmp_path / "out", settings)
        assert 1 <= server.most <= 3


def test_a_killed_run_does_not_ask_again(tmp_path):
    calls = []

    def complete(prompt: str, schema: dict | None) -> tuple[str, int, int]:
        calls.append(prompt)
        return json.dumps(GOOD), 1, 1

    path, settings = tmp_path / "journal", ModelSettings(path="x")
    Client(settings, path, complete).ask("one", parse_answer)
    with path.open("a") as out:
        out.write('{"key": "cut o')
    assert len(read_journal(path)) == 1
    client = Client(settings, path, complete)
    client.ask("one", parse_answer)
    client.ask("two", parse_answer)
    assert calls == ["one", "two"]
    assert len(read_journal(path)) == 2


def test_a_model_may_check_the_answers(papers, tmp_path):
    def complete(prompt: str, schema: dict | None) -> tuple[str, int, int]:
        return ("No." if prompt.startswith("Evidence") else json.dumps(GOOD)), 1, 1

    from quasitile.reading.documents import Section
    from quasitile.reading.questions.model import Writer

    writer = Writer(Client(ModelSettings(path="x", check=True), tmp_path / "journal", complete))
    section = Section("Introduction", 1, "introduction", GOOD["questions"][0]["evidence"])
    assert [candidate.evidence.text for candidate in writer.ask(section, "T")] == ["", "", ""]


def test_prompts_can_be_edited(tmp_path):
    from quasitile.reading.questions.model import Writer

    client = Client(ModelSettings(path="x", prompts=str(tmp_path)), tmp_path / "journal", lambda prompt, schema: ("", 0, 0))
    with pytest.raises(InputError, match="does not exist"):
        Writer(client)
    (tmp_path / "questions.md").write_text("On {subject}")
    with pytest.raises(InputError, match="'subject' is no field"):
        Writer(client)
    (tmp_path / "questions.md").write_text("{text}")
    (tmp_path / "check.md").write_text("{answer}")
    assert Writer(client).prompt == "{text}"


@pytest.mark.parametrize(("text", "said"), [("Yes.", True), (" no, because", False)])
def test_yes_and_no(text, said):
    assert parse_yes(text) is said


@pytest.mark.parametrize("text", ["", "maybe", "{}", '{"questions": [{"question": 1}]}', "{" * 5000])
def test_answers_of_another_form_are_refused(text):
    with pytest.raises(ValueError, match=r"no JSON|form|Expecting"):
        parse_answer(text)


def test_a_local_model_answers(tmp_path):
    from quasitile.recipe import resolve

    client = Client(ModelSettings(path=str(resolve("embedded:base")), max_tokens=8), tmp_path / "journal")
    assert isinstance(client.ask("Iron is", str), str)
    assert client.usage.answer_tokens > 0


def test_connections_are_closed_with_the_client(tmp_path, monkeypatch):
    closed = []
    openai = pytest.importorskip("openai")
    monkeypatch.setattr(openai.OpenAI, "close", lambda self: closed.append(self))
    client = Client(ModelSettings(server="http://127.0.0.1:9/v1", name="x"), tmp_path / "journal")
    assert not closed
    del client
    assert len(closed) == 1
