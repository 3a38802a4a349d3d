"""Tiny random models and byte-level tokenizers, built offline."""

from __future__ import annotations

import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quasitile import progress

SPECIAL = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>"]
TEMPLATE = "{% for m in messages %}<|user|>{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"


def build_tokenizer(template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token a byte, and the special tokens of the base model."""
    vocabulary = {token: place for place, token in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=SPECIAL[0], eos_token=SPECIAL[0], pad_token=SPECIAL[1], chat_template=template
    )


def build_model(seed: int = 0, layers: int = 3, spread: float = 0.4) -> LlamaForCausalLM:
    """A random Llama with hidden width 32; the larger the spread, the more a token depends on those before it."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=262, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=0, eos_token_id=0, pad_token_id=1,
        initializer_range=spread,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def make_model():
    return build_model


@pytest.fixture(scope="session")
def tokenizer():
    return build_tokenizer()


@pytest.fixture(scope="session")
def plain_tokenizer():
    return build_tokenizer(template=None)


@pytest.fixture(scope="session")
def model():
    return build_model()


@pytest.fixture(scope="session")
def other_model():
    return build_model(seed=1)


@pytest.fixture(autouse=True)
def _quiet():
    progress.set_quiet(True)
    yield
    progress.set_quiet(False)


def question(text, answer, *, kind="property", split="train", document="paper", section=0, order=0, accepted=()):
    """A question record with only what this package reads."""
    return {
        "messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}],
        "metadata": {
            "id": f"{document}/{section}/{order}", "document": document, "section": section, "kind": kind, "split": split,
            "accepted": [answer, *accepted], "evidence": {"text": f"It is {answer}.", "start": 0, "stop": 5},
        },
    }  # fmt: skip


@pytest.fixture(scope="session")
def make_question():
    return question
