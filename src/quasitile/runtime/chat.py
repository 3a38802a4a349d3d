"""Talk to a model in the terminal."""

from __future__ import annotations

import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Thread
from typing import Any

import torch
from jinja2 import TemplateError
from transformers import StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer

from quasitile.errors import InputError
from quasitile.progress import human_bytes
from quasitile.runtime.device import device_of
from quasitile.runtime.execution import resident_bytes
from quasitile.runtime.load import load_model, weight_bytes

HELP = "/system TEXT sets the system message, /reset forgets the conversation, /exit leaves; Ctrl-C stops an answer"


class _Stop(StoppingCriteria):
    """Ends an answer between two tokens."""

    def __init__(self) -> None:
        self.asked = Event()
        self.num_tokens = 0
        self.first_at = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        self.num_tokens += 1
        if self.num_tokens == 1:
            self.first_at = time.monotonic()
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)


@dataclass
class Conversation:
    """What has been said, and a model that answers.

    Attributes:
        model: In evaluation mode.
        tokenizer: With a chat template; without one the model continues what was said last.
        system: The system message, or nothing.
        messages: OpenAI messages without the system message.
        num_tokens: Of the last answer.
        seconds: Of the last answer, after its first token.
        first_seconds: Until its first token.
    """

    model: Any
    tokenizer: Any
    system: str = ""
    messages: list[dict[str, str]] = field(default_factory=list)
    num_tokens: int = 0
    seconds: float = 0.0
    first_seconds: float = 0.0

    def prompt(self) -> torch.Tensor:
        """The tokens (1, T) that the model reads.

        Raises:
            InputError: The template refuses the conversation.
        """
        if not self.tokenizer.chat_template:
            return self.tokenizer(self.messages[-1]["content"], return_tensors="pt").input_ids
        system = [{"role": "system", "content": self.system}] if self.system else []
        try:
            return self.tokenizer.apply_chat_template(
                [*system, *self.messages], add_generation_prompt=True, return_dict=True, return_tensors="pt"
            )["input_ids"]
        except TemplateError as error:
            raise InputError(f"the model's chat template refuses the conversation ({error}); try without /system") from error

    def answer(self, text: str, **options: Any) -> Iterator[str]:
        """Say something, and give the answer piece by piece; leaving the iterator ends it.

        Raises:
            InputError: The conversation is longer than the model reads.
        """
        self.messages.append({"role": "user", "content": text})
        said: list[str] = []
        stop, failed = _Stop(), []
        try:
            tokens = self.prompt().to(self.model.device)
            room = getattr(self.model.config.get_text_config(), "max_position_embeddings", None) or 1 << 30
            if tokens.shape[1] >= room:
                raise InputError(f"the conversation has {tokens.shape[1]} tokens and the model reads {room}; use /reset")
            options["max_new_tokens"] = min(options.get("max_new_tokens", 512), room - tokens.shape[1])
            streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
            started = time.monotonic()

            def generate() -> None:
                try:
                    self.model.generate(
                        tokens,
                        attention_mask=torch.ones_like(tokens),
                        streamer=streamer,
                        stopping_criteria=StoppingCriteriaList([stop]),
                        **options,
                    )
                except Exception as error:  # handed to the thread that waits
                    failed.append(error)
                    streamer.end()

            thread = Thread(target=generate, daemon=True)
            thread.start()
            try:
                for piece in streamer:
                    said.append(piece)
                    yield piece
            finally:
                stop.asked.set()
                thread.join()
                first_at = stop.first_at or time.monotonic()
                self.num_tokens, self.first_seconds = stop.num_tokens, first_at - started
                self.seconds = time.monotonic() - first_at
            if failed:
                raise failed[0]
        finally:
            if any(said):
                self.messages.append({"role": "assistant", "content": "".join(said)})
            else:
                self.messages.pop()

    def command(self, line: str) -> str:
        """Carry out a line that begins with a slash; what to tell."""
        word, _, rest = line.partition(" ")
        if word == "/system":
            self.system = rest.strip()
            return "the system message is set" if self.system else "no system message"
        if word == "/reset":
            self.messages.clear()
            return "forgotten"
        return HELP


def chat(
    model: str | Path,
    *,
    system: str = "",
    dtype: torch.dtype = torch.float32,
    execution: str = "auto",
    cache_bytes: int = 0,
    max_tokens: int = 512,
    temperature: float | None = None,
    seed: int = 0,
    device: str = "auto",
    read: Callable[[str], str] = input,
) -> None:
    """Talk to a model in the terminal until the input ends.

    Args:
        model: A folder or hub name, compressed or not.
        system: The system message.
        dtype: Of the arithmetic.
        execution: See `quasitile.runtime.execution.Execution`.
        cache_bytes: See there.
        max_tokens: Of an answer.
        temperature: 0 for the likeliest token always; nothing for what the model's generation settings say.
        seed: Of random choices.
        device: See `quasitile.runtime.device_of`.
        read: Gives the next line, shown a prompt.

    Raises:
        InputError: The model cannot be loaded.
    """
    loaded, tokenizer = load_model(model, dtype, execution=execution, cache_bytes=cache_bytes, device=device_of(device))
    if not loaded.can_generate():
        raise InputError(f"{model} does not generate text; give a causal language model")
    torch.manual_seed(seed)
    conversation = Conversation(loaded, tokenizer, system)
    options: dict[str, Any] = {"max_new_tokens": max_tokens}
    if temperature is not None:
        options |= {"do_sample": temperature > 0} | ({"temperature": temperature} if temperature > 0 else {})
    print(size_line(model, loaded))
    print(HELP if tokenizer.chat_template else f"no chat template: the model continues your text. {HELP}")
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        while True:
            try:
                line = read("> " if sys.stdin.isatty() else "").strip()
            except (EOFError, KeyboardInterrupt):
                print()
                return
            if line in ("/exit", "/quit"):
                return
            if line.startswith("/"):
                print(conversation.command(line))
            elif line:
                _speak(conversation, line, options)
    finally:
        signal.signal(signal.SIGINT, handler)


def _speak(conversation: Conversation, line: str, options: dict[str, Any]) -> None:
    """Print an answer while it comes, and how fast it came."""
    pieces = conversation.answer(line, **options)
    try:
        for piece in pieces:
            print(piece, end="", flush=True)
    except InputError as error:
        print(f"{error}")
        return
    except KeyboardInterrupt:
        pieces.close()  # pyright: ignore[reportAttributeAccessIssue]
    after = max(1, conversation.num_tokens - 1)
    rate = after / conversation.seconds if conversation.seconds > 0 else 0.0
    print(f"\n[{conversation.num_tokens} tokens, first after {conversation.first_seconds:.2f} s, then {rate:.1f} a second]")


def size_line(name: str | Path, model: Any) -> str:
    """What the model takes."""
    stored = f"{human_bytes(weight_bytes(name))} stored, " if Path(name).is_dir() else ""
    matrices = {type(module).__name__ for module in model.modules()}
    executions = sorted({module.execution for module in model.modules() if hasattr(module, "execution")})
    how = ", ".join(executions) if "TiledMatrix" in matrices else "dense, not compressed"
    return f"{name}: {stored}{human_bytes(resident_bytes(model))} in memory, {how}"
