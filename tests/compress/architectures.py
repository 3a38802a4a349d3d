"""Tiny random checkpoints of many architectures, built offline from their configurations."""

from collections.abc import Callable

import torch
from tests.conftest import tiny_llama
from transformers import (
    BertConfig,
    BertForMaskedLM,
    BertModel,
    ConvBertConfig,
    ConvBertForMaskedLM,
    DeepseekV3Config,
    DeepseekV3ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GptOssConfig,
    GptOssForCausalLM,
    Llama4ForCausalLM,
    Llama4TextConfig,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    OPTConfig,
    OPTForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

COMMON = {"num_hidden_layers": 2, "max_position_embeddings": 64, "initializer_range": 0.1}
COMMON |= {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 1}
WIDE = COMMON | {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
GROUPED = WIDE | {"num_key_value_heads": 2, "head_dim": 8}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
EXPERTS = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}


def deepseek(vocabulary: int) -> PreTrainedModel:
    """The first layer dense, the second with routed and shared experts."""
    config = DeepseekV3Config(
        vocab_size=vocabulary, **WIDE, num_key_value_heads=4, **LATENT, **EXPERTS, n_routed_experts=4,
        n_shared_experts=1, first_k_dense_replace=1, n_group=2, topk_group=1,
    )  # fmt: skip
    model = DeepseekV3ForCausalLM(config)
    model.model.layers[1].mlp.gate.weight.data.normal_()
    model.model.layers[1].mlp.gate.e_score_correction_bias.normal_()  # kept in float32 in half-precision checkpoints
    return model


ARCHITECTURES: dict[str, Callable[[int], PreTrainedModel]] = {
    "llama": tiny_llama,
    "mistral": lambda v: MistralForCausalLM(MistralConfig(vocab_size=v, **GROUPED, sliding_window=16)),
    "qwen2": lambda v: Qwen2ForCausalLM(Qwen2Config(vocab_size=v, **GROUPED)),
    "qwen3": lambda v: Qwen3ForCausalLM(Qwen3Config(vocab_size=v, **GROUPED, tie_word_embeddings=True)),
    "gemma2": lambda v: Gemma2ForCausalLM(Gemma2Config(vocab_size=v, **GROUPED)),
    "gemma3": lambda v: Gemma3ForCausalLM(Gemma3TextConfig(vocab_size=v, **GROUPED)),
    "phi3": lambda v: Phi3ForCausalLM(Phi3Config(vocab_size=v, **WIDE)),
    "gpt2": lambda v: GPT2LMHeadModel(
        GPT2Config(
            vocab_size=v, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.1, bos_token_id=0, eos_token_id=0
        )
    ),
    "gpt-neox": lambda v: GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=v, **WIDE)),
    "opt": lambda v: OPTForCausalLM(OPTConfig(vocab_size=v, **WIDE, ffn_dim=64, init_std=0.1, word_embed_proj_dim=16)),
    "llama4": lambda v: Llama4ForCausalLM(
        Llama4TextConfig(
            vocab_size=v,
            **GROUPED,
            num_local_experts=4,
            num_experts_per_tok=1,
            intermediate_size_mlp=64,
            attention_chunk_size=32,
        )
    ),
    "mixtral": lambda v: MixtralForCausalLM(MixtralConfig(vocab_size=v, **GROUPED, num_local_experts=4, num_experts_per_tok=2)),
    "qwen3-moe": lambda v: Qwen3MoeForCausalLM(Qwen3MoeConfig(vocab_size=v, **GROUPED, **EXPERTS, num_experts=4)),
    "deepseek-v3": deepseek,
    "gpt-oss": lambda v: GptOssForCausalLM(
        GptOssConfig(vocab_size=v, **GROUPED, num_local_experts=4, num_experts_per_tok=2, sliding_window=16)
    ),
    "bert": lambda v: BertForMaskedLM(BertConfig(vocab_size=v, **WIDE)),
    "bert-encoder": lambda v: BertModel(BertConfig(vocab_size=v, **WIDE)),
    "convbert": lambda v: ConvBertForMaskedLM(
        ConvBertConfig(vocab_size=v, **WIDE, embedding_size=32, num_groups=2, conv_kernel_size=3)
    ),
}


def build(name: str, vocabulary: int, seed: int = 0) -> PreTrainedModel:
    """A checkpoint whose norms and biases are no constants."""
    torch.manual_seed(seed)
    model = ARCHITECTURES[name](vocabulary).eval()
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.1 * torch.randn(parameter.shape)
    return model
