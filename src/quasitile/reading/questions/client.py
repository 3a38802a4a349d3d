"""Asking a language model, on a server or here: retries, a limit on parallel requests, a journal, a count of cost."""

from __future__ import annotations

import json
import os
import random
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from hashlib import blake2b
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import Field

from quasitile.errors import InputError
from quasitile.settings import ComputeSettings

MAX_WAIT_SECONDS = 60.0


class ModelSettings(ComputeSettings):
    """Which model writes questions beside the rules; none where both `server` and `path` are empty.

    `server` is the base address of any OpenAI-compatible server (`http://127.0.0.1:8000/v1`); its key is read from the
    environment variable `key_variable`. `path` is a local model folder, which computes on `device`. `prompts` is a
    folder with `questions.md` and `check.md` of your own. `structured` asks the server for JSON of one schema; switch
    it off for a server that refuses `response_format`. Prices are in your currency for a million tokens.
    """

    server: str = ""
    name: str = ""
    path: str = ""
    prompts: str = ""
    key_variable: str = "OPENAI_API_KEY"
    num_questions: int = Field(default=4, ge=1)
    check: bool = False
    structured: bool = True
    temperature: float = Field(default=0.0, ge=0.0)
    max_tokens: int = Field(default=1200, ge=1)
    parallel: int = Field(default=4, ge=1)
    tries: int = Field(default=5, ge=1)
    timeout_seconds: float = Field(default=120.0, gt=0)
    backoff_seconds: float = Field(default=1.0, ge=0)
    price_in: float = Field(default=0.0, ge=0)
    price_out: float = Field(default=0.0, ge=0)

    @property
    def wanted(self) -> bool:
        """Whether a model is asked at all."""
        return bool(self.server or self.path)


@dataclass
class Usage:
    """What the requests cost so far."""

    num_requests: int = 0
    num_from_journal: int = 0
    num_retries: int = 0
    num_failed: int = 0
    prompt_tokens: int = 0
    answer_tokens: int = 0
    errors: dict[str, int] = field(default_factory=dict)

    def summary(self, settings: ModelSettings) -> dict[str, Any]:
        """For `summary.json`."""
        cost = (self.prompt_tokens * settings.price_in + self.answer_tokens * settings.price_out) / 1e6
        return {**vars(self), "cost": round(cost, 6)}


# From a prompt, and the JSON schema of the answer where it has one, to the answer and the tokens of both.
Complete = Callable[[str, dict[str, Any] | None], tuple[str, int, int]]


class Client:
    """One model, asked through `ask`; answers are journalled by prompt, so that none is asked for twice."""

    def __init__(self, settings: ModelSettings, journal: Path, complete: Complete | None = None):
        self.settings, self.journal, self.usage = settings, journal, Usage()
        self.complete = complete or (server_completion(settings) if settings.server else local_completion(settings))
        self._lock, self._answers = Lock(), read_journal(journal)

    def ask(self, prompt: str, parse: Callable[[str], Any], schema: dict[str, Any] | None = None) -> Any:
        """The parsed answer to a prompt, or nothing when every try failed.

        A broken answer (`parse` raises `ValueError`) is asked for again, as is whatever passes by itself: timeouts, full
        servers, cut connections. What will not pass (a wrong key, an unknown model) ends the run.

        Raises:
            InputError: The server refuses.
        """
        key = blake2b(json.dumps([self.settings.name, self.settings.path, prompt]).encode(), digest_size=16).hexdigest()
        if key in self._answers:
            self.usage.num_from_journal += 1
            return parse(self._answers[key])
        for attempt in range(self.settings.tries):
            if attempt:
                self._wait(attempt)
            try:
                text, num_in, num_out = self.complete(prompt, schema)
                with self._lock:
                    self.usage.num_requests += 1
                    self.usage.prompt_tokens += num_in
                    self.usage.answer_tokens += num_out
                parsed = parse(text)
            except InputError:
                raise
            except ValueError as error:
                self._note("answer that does not parse" if not isinstance(error, Passing) else str(error))
                continue
            with self._lock:
                self._answers[key] = text
                write_line(self.journal, {"key": key, "answer": text})
            return parsed
        with self._lock:
            self.usage.num_failed += 1
        return None

    def _wait(self, attempt: int) -> None:
        with self._lock:
            self.usage.num_retries += 1
        longest = min(MAX_WAIT_SECONDS, self.settings.backoff_seconds * 2 ** (attempt - 1))
        time.sleep(longest * (0.5 + random.random() / 2))

    def _note(self, kind: str) -> None:
        with self._lock:
            self.usage.errors[kind] = self.usage.errors.get(kind, 0) + 1


class Passing(ValueError):
    """A fault that may be gone at the next try."""


def server_completion(settings: ModelSettings) -> Complete:
    """Completion by the official client.

    Raises:
        InputError: The client is not installed.
    """
    if find_spec("openai") is None:
        raise InputError("read.model.server needs the openai client; install quasitile[openai]")
    import openai

    key = os.environ.get(settings.key_variable) or "none"
    client = openai.OpenAI(base_url=settings.server, api_key=key, timeout=settings.timeout_seconds, max_retries=0)

    def complete(prompt: str, schema: dict[str, Any] | None) -> tuple[str, int, int]:
        form: Any = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
        try:
            answer = client.chat.completions.create(
                model=settings.name or "default",
                messages=[{"role": "user", "content": prompt}],
                temperature=settings.temperature,
                max_tokens=settings.max_tokens,
                response_format=form if schema and settings.structured else openai.omit,
            )
            choice = answer.choices[0]
            text = choice.message.content or ""
        except (
            openai.AuthenticationError,
            openai.PermissionDeniedError,
            openai.NotFoundError,
            openai.BadRequestError,
        ) as error:
            reason = " ".join(str(error).split())[:200]
            structured = ", or set read.model.structured=false" if "response_format" in reason else ""
            raise InputError(
                f"{settings.server} refuses: {reason}; check read.model.name and ${settings.key_variable}{structured}"
            ) from error
        except (openai.OpenAIError, ValueError, TypeError, IndexError, AttributeError) as error:
            raise Passing(type(error).__name__) from error
        usage = answer.usage
        return text, usage.prompt_tokens if usage else 0, usage.completion_tokens if usage else 0

    weakref.finalize(complete, client.close)  # or its connections would stay open until the collector runs
    return complete


def local_completion(settings: ModelSettings) -> Complete:
    """The same with a model of this machine: one request at a time, the most likely tokens."""
    from quasitile.runtime import device_of, load_model

    model, tokenizer = load_model(settings.path, device=device_of(settings.device))
    lock = Lock()

    def complete(prompt: str, schema: dict[str, Any] | None) -> tuple[str, int, int]:
        messages = [{"role": "user", "content": prompt}]
        if tokenizer.chat_template:
            tokens = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        else:
            tokens = tokenizer(prompt, return_tensors="pt")
        size = tokens["input_ids"].shape[1]
        room = getattr(model.config, "max_position_embeddings", None) or size + settings.max_tokens
        if size >= room:
            raise Passing("prompt longer than the context")
        with lock:
            given = {name: tokens[name].to(model.device) for name in ("input_ids", "attention_mask")}
            out = model.generate(**given, max_new_tokens=min(settings.max_tokens, room - size), do_sample=False)
        answer = tokenizer.decode(out[0][size:], skip_special_tokens=True)
        return answer, size, out.shape[1] - size

    return complete


def read_journal(path: Path) -> dict[str, str]:
    """Answers by key; a last line that a kill cut off is removed."""
    if not path.exists():
        return {}
    data = path.read_bytes()
    whole = data[: data.rfind(b"\n") + 1]
    if len(whole) < len(data):
        with path.open("r+b") as out:
            out.truncate(len(whole))
    return {row["key"]: row["answer"] for row in map(json.loads, whole.decode().splitlines())}


def write_line(path: Path, row: dict[str, Any]) -> None:
    """Append one line, whole or not at all."""
    handle = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(handle, (json.dumps(row, ensure_ascii=False) + "\n").encode())
    finally:
        os.close(handle)
