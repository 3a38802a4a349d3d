"""A conversation: what the model is shown, what comes back, and the commands."""

import pytest
import torch
from tests.runtime.models import stored_folder

from quasitile import InputError, chat, load_model
from quasitile.runtime.chat import Conversation


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer):
    return stored_folder("llama", tokenizer, tmp_path_factory.mktemp("stored"))


@pytest.fixture
def conversation(folder):
    return Conversation(*load_model(folder))


def test_an_answer_comes_in_pieces_and_is_what_generate_gives(conversation):
    conversation.command("/system be short")
    pieces = list(conversation.answer("the band gap", max_new_tokens=8, do_sample=False))
    assert [message["role"] for message in conversation.messages] == ["user", "assistant"]
    assert conversation.messages[1]["content"] == "".join(pieces)
    text = "<|system|>be short<|user|>the band gap<|assistant|>"
    tokens = conversation.tokenizer(text, return_tensors="pt").input_ids
    expected = conversation.model.generate(tokens, max_new_tokens=8, do_sample=False)[0, tokens.shape[1] :]
    assert "".join(pieces) == conversation.tokenizer.decode(expected, skip_special_tokens=True)
    assert conversation.num_tokens == len(expected)
    assert conversation.seconds > 0


def test_the_conversation_is_remembered_until_it_is_reset(conversation):
    list(conversation.answer("one", max_new_tokens=2))
    list(conversation.answer("two", max_new_tokens=2))
    assert "one" in conversation.tokenizer.decode(conversation.messages and conversation.prompt()[0])
    assert len(conversation.messages) == 4
    assert conversation.command("/reset") == "forgotten"
    assert not conversation.messages
    assert "/exit leaves" in conversation.command("/what")


def test_leaving_an_answer_stops_it(conversation):
    pieces = conversation.answer("the film", max_new_tokens=200, do_sample=False, eos_token_id=-1)
    next(pieces)
    pieces.close()
    assert 0 < conversation.num_tokens < 200
    assert conversation.messages[-1]["role"] == "assistant"


def test_a_conversation_that_is_too_long_is_refused_and_forgotten(conversation):
    with pytest.raises(InputError, match=r"the model reads 256; use /reset"):
        list(conversation.answer("the band gap of silicon " * 100))
    assert not conversation.messages


def test_what_goes_wrong_while_generating_comes_back(conversation):
    with pytest.raises(ValueError, match="temperature"):
        list(conversation.answer("one", max_new_tokens=2, do_sample=True, temperature=-1.0))
    assert not conversation.messages


def test_a_session_in_the_terminal(folder, capsys):
    lines = iter(["/system be short", "", "the band gap", "/reset", "/exit"])
    torch.manual_seed(0)
    chat(folder, max_tokens=4, temperature=0, read=lambda _: next(lines))
    said = capsys.readouterr().out
    assert "in memory, dense" in said
    assert "the system message is set" in said
    assert "[4 tokens, first after " in said
    assert "forgotten" in said
