"""Questions asked of Transformers' own server, with the embedded base model: a real one, over the network of this machine.

Needs what `transformers serve` needs beside Transformers (fastapi), which the extra `dev` installs; skipped without.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib.util import find_spec
from urllib.error import URLError
from urllib.request import urlopen

import pytest

from quasitile.errors import InputError
from quasitile.folders import read_json, read_jsonl
from quasitile.reading import ReadSettings, read
from quasitile.reading.questions.client import Client, ModelSettings
from quasitile.recipe import resolve

pytestmark = pytest.mark.skipif(
    any(find_spec(name) is None for name in ("fastapi", "uvicorn", "openai")), reason="transformers serve needs fastapi"
)
MODEL = str(resolve("embedded:base"))
SERVE = "from transformers.cli.transformers import main; main()"


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """The address of `transformers serve`, which runs until the tests of this file have."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
    command = [sys.executable, "-c", SERVE, "serve", MODEL, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        while True:
            assert process.poll() is None, "the server ended"
            try:
                urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except (URLError, TimeoutError):
                time.sleep(0.3)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.terminate()
        process.wait(30)


def settings_for(address: str, **changes: object) -> ModelSettings:
    return ModelSettings(**{"server": address, "name": MODEL, "backoff_seconds": 0.0, "max_tokens": 8, **changes})


def test_a_real_server_answers_and_is_not_asked_twice(address, tmp_path):
    client = Client(settings_for(address), tmp_path / "journal")
    answer = client.ask("Iron is", str)
    assert answer
    assert client.usage.num_requests == 1
    assert client.usage.prompt_tokens > 0
    assert 0 < client.usage.answer_tokens <= 8
    again = Client(settings_for("http://127.0.0.1:9/v1"), tmp_path / "journal")
    assert again.ask("Iron is", str) == answer
    assert (again.usage.num_requests, again.usage.num_from_journal) == (0, 1)


def test_answers_that_are_no_json_are_counted_and_the_rules_questions_stand(address, papers, tmp_path):
    settings = ReadSettings(model=settings_for(address, tries=1, parallel=2, price_in=1.0, price_out=1.0))
    read(papers / "garnets.md", tmp_path / "out", settings)
    usage = read_json(tmp_path / "out" / "summary.json")["model"]
    num_sections = len(read_jsonl(tmp_path / "out" / "sections.jsonl"))
    assert usage["num_requests"] == usage["num_failed"] == num_sections
    assert usage["errors"] == {"answer that does not parse": num_sections}
    assert usage["cost"] == pytest.approx((usage["prompt_tokens"] + usage["answer_tokens"]) / 1e6)
    assert {row["metadata"]["source"] for row in read_jsonl(tmp_path / "out" / "questions.jsonl")} == {"rules"}


def test_an_unknown_path_is_refused_in_one_line(address, tmp_path):
    client = Client(settings_for(address.removesuffix("/v1") + "/nowhere"), tmp_path / "journal")
    with pytest.raises(InputError, match="refuses") as error:
        client.ask("Iron is", str)
    assert "\n" not in str(error.value)
