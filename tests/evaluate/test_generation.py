import pytest
import torch

from quasitile.errors import InputError
from quasitile.evaluate.generation import Answer, fitted_prompt, generate_answers, greedy_tokens, prompt, split_trace

PROMPTS = ["a", "What is the band gap of silicon?", "Which?", "x y z " * 8, "μ"]


@torch.no_grad()
def naive_greedy(model, tokenizer, text, max_new_tokens):
    """One prompt, one token at a time, no cache."""
    tokens = tokenizer.encode(text)
    length = len(tokens)
    while len(tokens) < length + max_new_tokens:
        best = model(torch.tensor([tokens])).logits[0, -1].argmax().item()
        if best == tokenizer.eos_token_id:
            break
        tokens.append(best)
    return tokens[length:]


@pytest.mark.parametrize("batch_size", [2, 32])
def test_a_batch_gives_what_each_prompt_gives_alone(model, tokenizer, batch_size):
    rows = greedy_tokens(model, tokenizer, PROMPTS, max_new_tokens=6, batch_size=batch_size)
    assert rows == [naive_greedy(model, tokenizer, text, 6) for text in PROMPTS]


def test_generation_stops_at_the_end_of_text(make_model, tokenizer):
    model = make_model(seed=2)
    free = greedy_tokens(model, tokenizer, PROMPTS, max_new_tokens=9)
    tokenizer_end, tokenizer.eos_token = tokenizer.eos_token, tokenizer.convert_ids_to_tokens(free[1][3])
    try:
        stopped = greedy_tokens(model, tokenizer, PROMPTS, max_new_tokens=9)
    finally:
        tokenizer.eos_token = tokenizer_end
    assert stopped[1] == free[1][: free[1].index(free[1][3])]


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("1.5 eV", Answer("1.5 eV", "")),
        ("<|think|>so it is<|/think|>1.5 eV", Answer("1.5 eV", "so it is")),
        ("1.5 eV<|think|>because <|/think|>", Answer("1.5 eV", "because")),
        ("<|think|>never closed", Answer("", "never closed")),
        ("<think>other spelling</think> x", Answer("x", "other spelling")),
        ("two\nlines", Answer("two\nlines", "")),
    ],
)
def test_the_trace_is_separated_from_the_answer(tokenizer, text, answer):
    assert split_trace(tokenizer, text) == answer


def test_prompts_with_and_without_a_chat_template(tokenizer, plain_tokenizer):
    assert prompt(tokenizer, "Why?", "It rains.") == "<|user|>It rains.\n\nWhy?<|assistant|>"
    assert prompt(tokenizer, "Why?") == "<|user|>Why?<|assistant|>"
    assert prompt(plain_tokenizer, "Why?", "It rains.") == "It rains.\n\nQuestion: Why?\nAnswer:"
    assert split_trace(plain_tokenizer, " yes\nQuestion: more").text == "yes"


@pytest.mark.parametrize("max_tokens", [40, 41, 42, 43, 90, 10_000])
def test_a_long_context_loses_its_beginning_and_the_question_nothing(tokenizer, max_tokens):
    context = "".join(chr(97 + place % 26) + "μ" for place in range(200))
    text, was_cut = fitted_prompt(tokenizer, "What is the gap?", context, max_tokens)
    kept = text.removeprefix("<|user|>").removesuffix("\n\nWhat is the gap?<|assistant|>")
    assert context.endswith(kept)
    assert was_cut == (kept != context)
    assert max_tokens - 3 <= len(tokenizer.encode(text)) <= max_tokens or not was_cut


def test_what_does_not_fit_is_an_error(model, tokenizer):
    with pytest.raises(InputError, match="shorten the question"):
        fitted_prompt(tokenizer, "Why? " * 20, "context", 50)
    with pytest.raises(ValueError, match="outside"):
        generate_answers(model, tokenizer, ["x" * 250], max_new_tokens=24)
