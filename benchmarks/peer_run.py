"""One other program's quantisation of one model, in that program's own environment; `peers.py` starts it.

    python benchmarks/peer_run.py PEER MODEL WINDOWS.npy OUT --bits 4 --group 64 --seed 0

Imports nothing of quasitile. `WINDOWS.npy` holds the calibration tokens (count, T). Every linear layer
of the decoder is quantised, neither the embedding nor the head. Writes the dequantised weights
(out, in) to `OUT.safetensors` and what they take to `OUT.json`: codes as if packed without a gap,
16 bits a scale, and a zero point where there is one, in as many bits as a code.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.pytorch_utils import Conv1D

BITS_OF_SCALE = 16


def with_plain_linear_layers(model: Any) -> Any:
    """GPT-2's transposed layers as ordinary ones, which every peer knows; the function stays the same."""
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, Conv1D):
                linear = nn.Linear(*child.weight.shape)
                linear.weight.data.copy_(child.weight.T)
                linear.bias.data.copy_(child.bias)
                setattr(module, name, linear)
    return model


def linear_layers(model: Any) -> dict[str, nn.Module]:
    """All but the head."""
    head = model.get_output_embeddings()
    return {name: module for name, module in model.named_modules() if isinstance(module, nn.Linear) and module is not head}


def llm_compressor_gptq(model: Any, tokenizer: Any, windows: np.ndarray, args: argparse.Namespace) -> int:
    """llm-compressor's GPTQ, asymmetric; returns the bits of a zero point."""
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from datasets import Dataset
    from llmcompressor import oneshot
    from llmcompressor.modifiers.quantization import GPTQModifier

    weights = QuantizationArgs(num_bits=args.bits, type="int", symmetric=False, strategy="group", group_size=args.group)
    scheme = QuantizationScheme(targets=["Linear"], weights=weights)
    modifier = GPTQModifier(config_groups={"group_0": scheme}, ignore=["lm_head"])
    rows = {"input_ids": windows.tolist(), "attention_mask": np.ones_like(windows).tolist()}
    oneshot(
        model=model,
        tokenizer=tokenizer,
        dataset=Dataset.from_dict(rows),
        recipe=modifier,
        max_seq_length=windows.shape[1],
        num_calibration_samples=len(windows),
        shuffle_calibration_samples=False,
    )
    return args.bits


def autoround(model: Any, tokenizer: Any, windows: np.ndarray, args: argparse.Namespace, iterations: int) -> int:
    """AutoRound, symmetric from 3 bits up, asymmetric at 2; returns the bits of a zero point."""
    from auto_round import AutoRound

    symmetric = args.bits > 2
    batches = [torch.from_numpy(windows[first : first + 8]) for first in range(0, len(windows), 8)]
    rounded = AutoRound(
        model,
        tokenizer,
        bits=args.bits,
        group_size=args.group,
        sym=symmetric,
        iters=iterations,
        seqlen=windows.shape[1],
        nsamples=len(windows),
        batch_size=8,
        dataset=batches,
        seed=args.seed,
        device_map="cpu",
        enable_torch_compile=False,
    )
    rounded.quantize()
    return 0 if symmetric else args.bits


def hqq(model: Any, tokenizer: Any, windows: np.ndarray, args: argparse.Namespace) -> int:
    """HQQ, which needs no text; its zero points are kept in 16 bits."""
    from hqq.core.quantize import Quantizer

    for module in linear_layers(model).values():
        weight, how = module.weight.data.float(), {"nbits": args.bits, "group_size": args.group, "axis": 1, "device": "cpu"}
        codes, meta = Quantizer.quantize(weight, compute_dtype=torch.float32, **how)
        module.weight.data.copy_(Quantizer.dequantize(codes, meta))
    return 16


PEERS = {
    "GPTQ (llm-compressor)": llm_compressor_gptq,
    "AutoRound, 200 iterations": partial(autoround, iterations=200),  # its default
    "AutoRound, 50 iterations": partial(autoround, iterations=50),  # its "light" recipe
    "HQQ": hqq,
}


def stored_bytes(weight: Tensor, bits: int, group: int, bits_of_zero: int) -> int:
    """Of a matrix (M, N) with a grid for each group of columns of a row."""
    groups = weight.shape[0] * -(-weight.shape[1] // group)
    return -(-(bits * weight.numel() + (BITS_OF_SCALE + bits_of_zero) * groups) // 8)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("model")
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    started = time.monotonic()
    model = with_plain_linear_layers(AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval())
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    before = {name: module.weight.detach().clone() for name, module in linear_layers(model).items()}
    bits_of_zero = PEERS[args.peer](model, tokenizer, np.load(args.windows), args)
    after = {name: module.weight.detach().float().contiguous() for name, module in linear_layers(model).items()}
    for name, weight in after.items():
        check_grid(name, before[name], weight, args.bits, args.group)
    sizes = {name: stored_bytes(weight, args.bits, args.group, bits_of_zero) for name, weight in after.items()}
    save_file(after, args.out.with_suffix(".safetensors"))
    report = {"stored_bytes": sizes, "bits_of_zero": bits_of_zero, "seconds": time.monotonic() - started}
    args.out.with_suffix(".json").write_text(json.dumps(report))


def check_grid(name: str, before: Tensor, after: Tensor, bits: int, group: int) -> None:
    """A group may hold at most 2^bits values, and none may be left unquantised: else the bytes would be a lie.

    Raises:
        RuntimeError: It does not hold.
    """
    if torch.equal(before, after):
        raise RuntimeError(f"{name} has not been quantised; this version of the peer needs other settings")
    step = after.abs().max() * 1e-4
    for values in (after[:, :group] / step).round():
        if len(values.unique()) > 2**bits:
            raise RuntimeError(f"{name} holds more than {2**bits} values in a group; it has not been quantised as asked")


if __name__ == "__main__":
    main()
