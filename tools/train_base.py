"""Train the small base model that the package carries, or one of another architecture with the same recipe.

    python tools/train_base.py DATA OUT --minutes 75 [--architecture llama|gpt2|qwen3]

`DATA` is a folder with `general/`, `domain/`, `qa/` and `squad/` as described in
`docs/base-model.md`. The result is an ordinary Hugging Face folder with a model card. Training
stops when the wall-clock budget or the token budget is used up, whichever comes first; the
learning rate follows the larger of the two fractions, so a slow machine still ends in a full decay.

Matrices of the decoder layers learn with Muon, everything else with AdamW. Articles
(`kind: article`) are never read, nor are the `valid` and `test` splits, nor half of the SQuAD titles.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
)

SPECIAL_TOKENS = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>"]
END, PAD, USER, ASSISTANT, THINK, END_THINK = SPECIAL_TOKENS
VOCABULARY_SIZE = 4096

# `trace` says where `reasoning_content` goes: "none" (default), "before" or "after" the answer.
CHAT_TEMPLATE = """\
{%- set place = trace | default('none') -%}
{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'user' -%}{{ '<|user|>' + message.content }}
{%- else -%}
{%- set thought = message.reasoning_content | default('', true) -%}
{{- '<|assistant|>' -}}
{%- if thought and place == 'before' -%}{{ '<|think|>' + thought + '<|/think|>' }}{%- endif -%}
{{- message.content -}}
{%- if thought and place == 'after' -%}{{ '<|think|>' + thought + '<|/think|>' }}{%- endif -%}
{{- '<|endoftext|>' -}}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|assistant|>' }}{%- endif -%}
"""


def read_jsonl(path: Path) -> list[dict]:
    """All records of a JSON-lines file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for line in lines]


def textbook_text(document: dict) -> str:
    """A sectioned document as Markdown-like running text."""
    parts = [f"# {document['title']}"]
    parts += [f"## {section['title']}\n\n{section['text']}" for section in document["sections"]]
    return "\n\n".join(parts)


def running_text(data: Path, split: str) -> tuple[list[str], list[str]]:
    """General texts, and textbook and lecture texts (never articles) of one split."""
    general = [row["text"] for row in read_jsonl(data / "general" / f"{split}.jsonl")]
    domain = [textbook_text(row) for row in read_jsonl(data / "domain" / f"{split}.jsonl") if row["kind"] != "article"]
    return general, domain


def squad_titles(data: Path) -> tuple[list[dict], list[dict]]:
    """SQuAD contexts in two halves by title: the even titles for training, the odd ones unseen."""
    rows = json.loads((data / "squad" / "squad_val.json").read_text(encoding="utf-8"))
    titles = {title: rank for rank, title in enumerate(sorted({row["title"] for row in rows}))}
    seen = [row for row in rows if titles[row["title"]] % 2 == 0]
    return seen, [row for row in rows if titles[row["title"]] % 2 == 1]


def evidence_sentence(context: str, answer: str) -> str:
    """The sentence of a context that holds the answer, or nothing."""
    place = context.find(answer)
    if place < 0:
        return ""
    start = context.rfind(". ", 0, place) + 2 if ". " in context[:place] else 0
    stop = context.find(". ", place + len(answer))
    return context[start : stop + 1 if stop >= 0 else len(context)]


def chat(question: str, answer: str, trace: str = "", place: str = "none") -> str:
    """One exchange in the chat format (the template's rendering, written out for speed)."""
    thought = f"{THINK}{trace}{END_THINK}" if trace else ""
    before, after = (thought, "") if place == "before" else ("", thought if place == "after" else "")
    return f"{USER}{question}{ASSISTANT}{before}{answer}{after}{END}"


def conversations(data: Path, rng: random.Random) -> list[str]:
    """Questions and answers of the training splits in the chat format."""
    texts = []
    for row in read_jsonl(data / "qa" / "openstax_science_glossary.jsonl"):
        if row["split"] == "train":
            texts.append(
                chat(rng.choice(["What is {}?", "Define {}.", "What does {} mean?"]).format(row["term"]), row["meaning"])
            )
            texts.append(chat(f"Which term means: {row['meaning']}?", row["term"]))
    for row in read_jsonl(data / "qa" / "openstax_science_qa.jsonl"):
        if row["split"] == "train":
            texts.append(chat(row["question"], row["answer"]))
    for row in squad_titles(data)[0]:
        for item in row["questions"] if "questions" in row else row["qas"]:
            answer = item["answer"] if "answer" in item else item["answers"][0]["text"]
            place = rng.choices(["none", "before", "after"], [0.7, 0.15, 0.15])[0]
            texts.append(
                chat(f"{row['context']}\n\n{item['question']}", answer, evidence_sentence(row["context"], answer), place)
            )
    rng.shuffle(texts)
    return texts


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with single digits, so that numbers are read digit by digit."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", pair="$A $B")
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END,
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str], end: bool) -> list[np.ndarray]:
    """Token ids of each text, with an end-of-text token where `end`."""
    tail = [tokenizer.convert_tokens_to_ids(END)] if end else []
    rows = tokenizer.backend_tokenizer.encode_batch(texts, add_special_tokens=False)
    return [np.array(row.ids + tail, dtype=np.uint16) for row in rows]


def pieces(documents: list[np.ndarray], size: int = 4096) -> list[np.ndarray]:
    """Cut long documents, so that neighbouring windows come from many of them."""
    return [document[start : start + size] for document in documents for start in range(0, len(document), size)]


class Batches:
    """Windows cut one after another from shuffled documents, without repeats inside an epoch."""

    def __init__(self, documents: list[np.ndarray], rng: np.random.Generator) -> None:
        self.documents, self.rng = documents, rng
        self.epochs, self.place = 0, 0
        self.stream = self.shuffled()

    def shuffled(self) -> np.ndarray:
        """All documents, one after another, in a new order."""
        return np.concatenate([self.documents[i] for i in self.rng.permutation(len(self.documents))])

    def next(self, length: int) -> np.ndarray:
        """`length` tokens and the one after them."""
        if self.place + length + 1 > len(self.stream):
            self.stream, self.place, self.epochs = self.shuffled(), 0, self.epochs + 1
        window = self.stream[self.place : self.place + length + 1]
        self.place += length
        return window


@torch.no_grad()
def score(model: PreTrainedModel, documents: list[np.ndarray], characters: int, length: int, limit: int) -> dict:
    """Nats a token, perplexity and bits a character of running text in windows of `length`."""
    stream = np.concatenate(documents)
    share = min(1.0, limit / len(stream))
    stream = torch.from_numpy(stream[: int(share * len(stream))].astype(np.int64))
    total, count = 0.0, 0
    for start in range(0, len(stream) - 1, length):
        window = stream[start : start + length + 1][None]
        if window.shape[1] < 2:
            continue
        logits = model(window[:, :-1]).logits.float()
        total += torch.nn.functional.cross_entropy(logits[0], window[0, 1:], reduction="sum").item()
        count += window.shape[1] - 1
    tokens_per_character = sum(map(len, documents)) / characters
    return {
        "nats_per_token": total / count,
        "perplexity": math.exp(total / count),
        "bits_per_character": total / count / math.log(2) * tokens_per_character,
        "characters_per_token": 1 / tokens_per_character,
        "num_tokens": count,
    }


# All have width 256, 4 heads of 64 and tied embeddings.
SHARED = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1, "tie_word_embeddings": True, "max_position_embeddings": 1024}
GROUPED = SHARED | {
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "rms_norm_eps": 1e-6,
}
ARCHITECTURES = {
    "llama": (LlamaConfig, GROUPED, "grouped queries (2 key-value heads), feed-forward 704"),
    "qwen3": (Qwen3Config, GROUPED, "grouped queries (2 key-value heads) with norms, feed-forward 704"),
    "gpt2": (
        GPT2Config,
        SHARED | {"n_embd": 256, "n_head": 4, "n_inner": 896} | {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "learned positions, biases, layer norms, feed-forward 896 with GELU",
    ),
}


def build_model(architecture: str, vocabulary_size: int, num_layers: int) -> PreTrainedModel:
    """A fresh model; of about 7 M parameters with 8 layers."""
    config, values, _ = ARCHITECTURES[architecture]
    return AutoModelForCausalLM.from_config(config(vocab_size=vocabulary_size, num_hidden_layers=num_layers, **values))


def learning_rate_factor(fraction: float) -> float:
    """Warm up over 1 %, hold to 50 %, then fall linearly to 2 %."""
    if fraction < 0.01:
        return 0.05 + 0.95 * fraction / 0.01
    return 1.0 if fraction < 0.5 else 0.02 + 0.98 * (1 - fraction) / 0.5


def train(model: PreTrainedModel, sources: list[tuple[Batches, float]], args: argparse.Namespace, log: Path) -> list[dict]:
    """The training loop; one line of `log` every `args.log_every` steps."""
    decoder, head = model.base_model, model.get_output_embeddings()
    layers = next(module for module in decoder.children() if isinstance(module, torch.nn.ModuleList))
    matrices = [p for p in layers.parameters() if p.ndim == 2]
    others = [p for p in model.parameters() if p.ndim != 2 or all(p is not q for q in matrices)]
    optimizers = [
        torch.optim.Muon(matrices, lr=args.muon_lr, weight_decay=0.02, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=args.adam_lr, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]
    base_rates = [args.muon_lr, args.adam_lr]
    choose = np.random.default_rng(args.seed + 1)

    def loss_of(tokens: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            hidden = decoder(tokens[:, :-1]).last_hidden_state
            logits = hidden.reshape(-1, hidden.shape[-1]) @ head.weight.T
        return torch.nn.functional.cross_entropy(logits.float(), tokens[:, 1:].reshape(-1))

    compiled = torch.compile(loss_of, dynamic=False) if args.compile else loss_of
    started, tokens_seen, step, average, curve = time.monotonic(), 0, 0, None, []
    while True:
        seconds = time.monotonic() - started
        fraction = max(seconds / (60 * args.minutes), tokens_seen / args.tokens)
        if fraction >= 1:
            break
        length = args.length if fraction < 0.7 else args.long_length
        weights = [weight * (2.5 if index and fraction > 0.6 else 1) for index, (_, weight) in enumerate(sources)]
        picks = choose.choice(len(sources), size=args.step_tokens // length, p=np.array(weights) / sum(weights))
        batch = torch.from_numpy(np.stack([sources[i][0].next(length) for i in picks]).astype(np.int64))
        loss = compiled(batch)
        if not torch.isfinite(loss):
            raise RuntimeError(f"step {step}: the loss is {loss.item()}; lower --muon-lr")
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer, rate in zip(optimizers, base_rates, strict=True):
            for group in optimizer.param_groups:
                group["lr"] = rate * learning_rate_factor(fraction)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens_seen += batch.shape[0] * (batch.shape[1] - 1)
        average = loss.item() if average is None else 0.95 * average + 0.05 * loss.item()
        step += 1
        if step % args.log_every == 0:
            row = {"step": step, "tokens": tokens_seen, "loss_nats": round(average, 4), "seconds": round(seconds)}
            curve.append(row)
            with log.open("a") as out:
                out.write(json.dumps(row) + "\n")
            print(row, f"{tokens_seen / max(seconds, 1):.0f} tokens/s", flush=True)
        if step % args.save_every == 0:
            model.save_pretrained(log.parent / "checkpoint")
    return curve


def model_card(report: dict) -> str:
    """The README of the checkpoint."""
    rows = "\n".join(
        f"| {name} | {s['perplexity']:.2f} | {s['nats_per_token']:.3f} | {s['bits_per_character']:.3f} | {s['num_tokens']} |"
        for name, s in report["scores"].items()
    )
    step = max(1, len(report["curve"]) // 12)
    curve = "\n".join(
        f"| {row['tokens'] / 1e6:.2f} M | {row['loss_nats']:.3f} | {row['seconds'] / 60:.0f} |"
        for row in report["curve"][::step]
    )
    characters = report["scores"]["general/test"]["characters_per_token"]
    return f"""---
license: cc-by-sa-4.0
language: en
library_name: transformers
---

# quasitile base model

A {report["architecture"]}-shaped decoder of {report["num_parameters"] / 1e6:.2f} M parameters ({report["num_layers"]} layers, width 256, 4 heads of 64,
{ARCHITECTURES[report["architecture"]][2]}, tied embeddings, 4,096-token byte-level BPE with single digits), stored in bf16. It exists so
that every stage of quasitile can be run and measured without a network. It is a research toy: it writes fluent English and
knows little.

## Training

`python tools/train_base.py DATA OUT --architecture {report["architecture"]} --minutes {report["minutes"]:g} --seed {report["seed"]}`: {report["tokens"] / 1e6:.1f} M
tokens ({report["epochs"]:.1f} passes over the text) in {report["seconds"] / 60:.0f} minutes on {report["hardware"]}; Muon for
the decoder's matrices, AdamW for the rest, bf16 autocast, windows of {report["lengths"][0]}, later {report["lengths"][1]} tokens.

| text | licence | characters |
| --- | --- | --- |
| textbooks (OpenStax, general and science), public-domain novels and speeches, TinyStories | CC BY 4.0, public domain, CDLA-Sharing-1.0 | {report["general_characters"] / 1e6:.1f} M |
| textbook and lecture rows on materials and physical science (OpenStax, topocondmat.org, DFT book) | CC BY 4.0, CC BY-SA 4.0, GFDL | {report["domain_characters"] / 1e6:.1f} M |
| questions and answers in the chat format (OpenStax glossaries and exercises, half of the SQuAD 1.1 development titles) | CC BY 4.0, CC BY-SA 4.0 | {report["chat_characters"] / 1e6:.1f} M |

No research article was read, nor any validation or test split, nor the other half of the SQuAD titles.

## Held-out figures ({characters:.2f} characters a token on general/test)

| text | perplexity a token | nats a token | bits a character | tokens scored |
| --- | --- | --- | --- | --- |
{rows}

## Learning curve (smoothed training loss)

| tokens | nats a token | minutes |
| --- | --- | --- |
{curve}

## Format

`<|user|>question<|assistant|>answer<|endoftext|>`; a reasoning trace stands between `<|think|>` and `<|/think|>`, before or
after the answer. Plain text is separated by `<|endoftext|>`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--architecture", choices=ARCHITECTURES, default="llama")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokenizer", type=Path, help="a folder with one; without it, one is trained on the text")
    parser.add_argument("--minutes", type=float, default=75)
    parser.add_argument("--tokens", type=float, default=60e6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--step-tokens", type=int, default=8192)
    parser.add_argument("--length", type=int, default=256, help="window of the first 70 %% of training")
    parser.add_argument("--long-length", type=int, default=512, help="window of the rest, and of the scores")
    parser.add_argument("--muon-lr", type=float, default=6e-3)
    parser.add_argument("--adam-lr", type=float, default=4e-3)
    parser.add_argument("--log-every", type=int, default=20)
    parser.add_argument("--save-every", type=int, default=400)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    args = parser.parse_args()

    torch.manual_seed(args.seed)
    args.out.mkdir(parents=True, exist_ok=True)
    general, domain = running_text(args.data, "train")
    chats = conversations(args.data, random.Random(args.seed))
    texts = general[::2] + domain + chats[::4]
    tokenizer = AutoTokenizer.from_pretrained(args.tokenizer) if args.tokenizer else train_tokenizer(texts)
    tokenizer.save_pretrained(args.out)

    rng = np.random.default_rng(args.seed)
    running = Batches(pieces(encode(tokenizer, general + domain, end=True)), rng)
    talking = Batches(encode(tokenizer, chats, end=False), rng)
    num_running, num_chat = (sum(map(len, s.documents)) for s in (running, talking))
    print(f"{num_running / 1e6:.2f} M tokens of text, {num_chat / 1e6:.2f} M of chat", flush=True)

    model = build_model(args.architecture, len(tokenizer), args.layers)
    model.set_attn_implementation("eager")  # twice as fast as the fused kernel here: its backward is slow on a CPU
    log = args.out / "training.jsonl"
    log.unlink(missing_ok=True)
    curve = train(model, [(running, 0.96), (talking, 0.04)], args, log)

    model = model.to(torch.bfloat16).eval()
    model.save_pretrained(args.out)
    model.float()
    scores = {}
    for name, texts in {
        "general/test": [row["text"] for row in read_jsonl(args.data / "general" / "test.jsonl")],
        "general/valid": [row["text"] for row in read_jsonl(args.data / "general" / "valid.jsonl")],
        "domain/test articles": [
            textbook_text(r) for r in read_jsonl(args.data / "domain" / "test.jsonl") if r["kind"] == "article"
        ],
    }.items():
        scores[name] = score(model, encode(tokenizer, texts, end=True), sum(map(len, texts)), args.long_length, 102_400)
    report = {
        "scores": scores,
        "curve": curve,
        "architecture": args.architecture,
        "num_layers": args.layers,
        "seed": args.seed,
        "minutes": args.minutes,
        "seconds": curve[-1]["seconds"],
        "tokens": curve[-1]["tokens"],
        "lengths": [args.length, args.long_length],
        "epochs": 0.94 * curve[-1]["tokens"] / num_running,
        "hardware": f"{torch.get_num_threads()} CPU cores",
        "num_parameters": sum(p.numel() for p in model.parameters()),
        "general_characters": sum(map(len, general)),
        "domain_characters": sum(map(len, domain)),
        "chat_characters": sum(map(len, chats)),
    }
    (args.out / "training.json").write_text(json.dumps(report, indent=1))
    (args.out / "README.md").write_text(model_card(report), encoding="utf-8")
    print(json.dumps(scores, indent=1))


if __name__ == "__main__":
    main()
