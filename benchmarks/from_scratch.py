"""What as many bytes hold without compression: small dense models trained from scratch on the text that alignment reads.

    python benchmarks/from_scratch.py --text TRAIN.jsonl --general TEST.jsonl [--bits 0.5 0.28] [--train-tokens 1e6]

Llama-shaped models in bf16 with tied embeddings and the original's tokenizer, as wide as the bytes allow (`--bits` are
stored bits an original weight; the original decides how many bytes that is). They learn to predict the text
(`next token`) or the original's predictions (`distilled`), AdamW, at every rate of `--rates`; the best on held-out text is
scored like a compressed model. `--original` also lets the original itself read on: what next-token prediction on this
text is worth where nothing was lost. Writes a JSON line a model to `--out` and repeats none that is there.
"""

from __future__ import annotations

import copy
import math
import time
from typing import Any

import torch
from measure import WINDOW_TOKENS, Bench, Results, common_arguments, markdown, score_table  # beside this file
from rich.console import Console
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig

from quasitile.align.losses import language_model_nats, logit_kl
from quasitile.align.steps import half_precision, held_out_nats, rate_factor
from quasitile.compress.text import token_windows

HELD_OUT, BATCH = 16, 16  # windows
HEAD = 8  # features of an attention head; widths are multiples of it


def build(vocabulary: int, num_layers: int, num_bytes: int, seed: int) -> Any:
    """The widest model of so many layers that takes at most so many bytes in bf16, or nothing."""
    model = None
    for width in range(HEAD, 1024, HEAD):
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=width,
            intermediate_size=8 * width // 3,
            num_hidden_layers=num_layers,
            num_attention_heads=width // HEAD,
            num_key_value_heads=width // HEAD,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
        )
        with torch.device("meta"):
            size = 2 * sum(p.numel() for p in AutoModelForCausalLM.from_config(config).parameters())
        if size > num_bytes:
            break
        model = config
    if model is None:
        return None
    torch.manual_seed(seed)
    return AutoModelForCausalLM.from_config(model)


def train(model: Any, teacher: Any, windows: Tensor, rate: float, num_tokens: int) -> None:
    """AdamW; the rate goes up over a twentieth of the steps and then down."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.01, foreach=True)
    num_steps = math.ceil(num_tokens / (BATCH * WINDOW_TOKENS))
    for step in range(num_steps):
        for group in optimizer.param_groups:
            group["lr"] = rate * rate_factor(step / num_steps)
        rows = [(step * BATCH + place) % len(windows) for place in range(BATCH)]
        batch = windows[rows]
        with half_precision(model):
            logits = model(batch, use_cache=False).logits
            if teacher is None:
                loss = language_model_nats(logits, batch)
            else:
                with torch.inference_mode():
                    target = teacher(batch, use_cache=False).logits
                loss = logit_kl(logits, target.clone())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()


def main() -> None:
    parser = common_arguments(__doc__)
    parser.add_argument("--bits", type=float, nargs="*", default=[0.5, 0.28])
    parser.add_argument("--train-tokens", type=float, default=1e6)
    parser.add_argument("--layers", type=int, nargs="+", default=[2, 4], help="the better depth is kept")
    parser.add_argument("--original", type=float, nargs="*", default=[], help="rates at which the original reads on")
    parser.add_argument("--rates", type=float, nargs="+", default=[0.005, 0.015])
    args = parser.parse_args()
    screen, results, bench = Console(), Results(args.out), Bench(args)
    setting = {**bench.setting, "train_tokens": int(args.train_tokens)}
    for seed in range(args.seeds):
        windows = token_windows(bench.tokenizer, bench.texts, WINDOW_TOKENS, 10**9, seed, from_end=True)
        held_out, windows = windows[:HELD_OUT], windows[HELD_OUT:]

        def best(bits: float, teacher: Any, seed: int, held_out: Tensor, windows: Tensor) -> dict[str, Any]:
            started, tried = time.process_time(), []
            for num_layers in args.layers:
                for rate in args.rates:
                    model = build(len(bench.tokenizer), num_layers, int(bits * bench.num_parameters / 8), seed)
                    if model is None:
                        continue
                    train(model, teacher, windows, rate, int(args.train_tokens))
                    tried.append((held_out_nats(model.eval(), held_out), num_layers, rate, model))
            nats, num_layers, rate, model = min(tried, key=lambda entry: entry[0])
            model.to(torch.bfloat16).float()
            size = {"num_layers": num_layers, "width": model.config.hidden_size, "rate": rate}
            stored = 2 * sum(parameter.numel() for parameter in model.parameters())
            cost = {"stored_bytes": stored, "cpu_seconds": time.process_time() - started}
            return {**size, **cost, "held_out_nats": nats, **bench.score(model)}

        def read_on(rate: float, seed: int, held_out: Tensor, windows: Tensor) -> dict[str, Any]:
            model = copy.deepcopy(bench.model).train().requires_grad_(True)
            train(model, None, windows, rate, int(args.train_tokens))
            return {"held_out_nats": held_out_nats(model.eval(), held_out), **bench.score(model)}

        for rate in args.original:
            key = {**setting, "variant": f"the original, read on at {rate:g}", "bits": 16, "seed": seed}
            screen.print(results.once(key, lambda a=(rate, seed, held_out, windows): read_on(*a)), style="dim")
        for bits in args.bits:
            for variant, teacher in (("next token", None), ("distilled", bench.model)):
                key = {**setting, "variant": f"from scratch, {variant}", "bits": bits, "seed": seed}
                line = results.once(key, lambda a=(bits, teacher, seed, held_out, windows): best(*a))
                screen.print(line, style="dim")
    lines = results.find(setting)
    for score in ("damage_nats", "divergence_nats"):
        print(markdown(*score_table(lines, score)), end="\n\n")


if __name__ == "__main__":
    main()
