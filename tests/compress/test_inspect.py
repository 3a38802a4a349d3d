"""A configuration alone tells what is in a model of any size, as `compress` would count it, and what it would cost."""

import json
import math

import pytest
from tests.conftest import tiny_llama

from quasitile import InputError, compress, inspect
from quasitile.compress import CompressSettings, InspectSettings
from quasitile.compress.rates import BASE_BYTES, Load, Rates, coding_seconds, measure, predict

LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 128256, "num_key_value_heads": 8,
    "rope_theta": 500000.0, "rms_norm_eps": 1e-5, "tie_word_embeddings": False, "torch_dtype": "bfloat16",
}  # fmt: skip
# As published, weights and extra files aside, and the published number of parameters.
PUBLISHED = {
    "Llama-3-8B": (
        LLAMA | {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        8_030_261_248,
    ),
    "Llama-3.1-405B": (
        LLAMA | {"hidden_size": 16384, "intermediate_size": 53248, "num_hidden_layers": 126, "num_attention_heads": 128},
        405_853_388_800,
    ),
    "Mixtral-8x7B": (
        {
            "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
            "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "num_local_experts": 8,
            "num_experts_per_tok": 2, "vocab_size": 32000, "tie_word_embeddings": False,
        },
        46_702_792_704,
    ),
    "DeepSeek-V3": (
        {
            "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3",
            "auto_map": {"AutoModelForCausalLM": "modeling_deepseek.DeepseekV3ForCausalLM"}, "first_k_dense_replace": 3,
            "hidden_size": 7168, "intermediate_size": 18432, "kv_lora_rank": 512, "moe_intermediate_size": 2048,
            "n_group": 8, "n_routed_experts": 256, "n_shared_experts": 1, "num_attention_heads": 128,
            "num_experts_per_tok": 8, "num_hidden_layers": 61, "num_key_value_heads": 128, "num_nextn_predict_layers": 1,
            "q_lora_rank": 1536, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "topk_group": 4, "v_head_dim": 128,
            "vocab_size": 129280, "tie_word_embeddings": False,
            "quantization_config": {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]},
        },
        671_026_419_200,  # without the layer for multi-token prediction, which Transformers does not build
    ),
    "Qwen3-235B-A22B": (
        {
            "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 128, "hidden_size": 4096,
            "intermediate_size": 12288, "moe_intermediate_size": 1536, "num_attention_heads": 64, "num_experts": 128,
            "num_experts_per_tok": 8, "num_hidden_layers": 94, "num_key_value_heads": 4, "vocab_size": 151936,
            "tie_word_embeddings": False,
        },
        235_093_634_560,
    ),
    "gpt-oss-20b": (
        {
            "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 64, "hidden_size": 2880,
            "intermediate_size": 2880, "num_attention_heads": 64, "num_experts_per_tok": 4, "num_hidden_layers": 24,
            "num_key_value_heads": 8, "num_local_experts": 32, "vocab_size": 201088, "tie_word_embeddings": False,
            "quantization_config": {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]},
        },
        20_914_757_184,
    ),
    "Gemma-3-1B": (
        {
            "architectures": ["Gemma3ForCausalLM"], "model_type": "gemma3_text", "head_dim": 256, "hidden_size": 1152,
            "intermediate_size": 6912, "num_attention_heads": 4, "num_hidden_layers": 26, "num_key_value_heads": 1,
            "vocab_size": 262144,
        },
        999_885_952,
    ),
    "Phi-3-mini": (
        {
            "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192,
            "num_attention_heads": 32, "num_hidden_layers": 32, "num_key_value_heads": 32, "vocab_size": 32064,
            "tie_word_embeddings": False, "pad_token_id": 32000,
        },
        3_821_079_552,
    ),
    "GPT-2": ({"architectures": ["GPT2LMHeadModel"], "model_type": "gpt2"}, 124_439_808),
    "BERT-base": ({"architectures": ["BertModel"], "model_type": "bert"}, 109_482_240),
}  # fmt: skip


@pytest.fixture(scope="module")
def plans(tmp_path_factory):
    """Plans of published models, each made once."""
    made = {}

    def plan(name):
        if name not in made:
            folder = tmp_path_factory.mktemp("configs")
            (folder / "config.json").write_text(json.dumps(PUBLISHED[name][0]))
            made[name] = inspect(folder, settings=InspectSettings.model_validate({"tiling": {"short": 512}}))
        return made[name]

    return plan


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_parameters(plans, name):
    plan = plans(name)
    assert plan["num_parameters"] + plan["num_buffer_values"] == PUBLISHED[name][1]
    assert plan["stored_bytes"] is None
    assert plan["num_matrices"] == len(plan["matrices"]) == sum(group["count"] for group in plan["groups"])
    in_matrices = sum(math.prod(matrix["shape"]) for matrix in plan["matrices"])
    assert in_matrices == sum(group["num_parameters"] for group in plan["groups"])
    assert 0.98 * plan["num_parameters"] < in_matrices < plan["num_parameters"]
    assert len(plan["groups"]) < 20  # what a newcomer reads, whatever the model's size


def test_experts_heads_and_transposed_layers_are_counted_one_by_one(plans):
    deepseek = {group["name"]: group for group in plans("DeepSeek-V3")["groups"]}
    experts = deepseek["model.layers.*.mlp.experts.gate_up_proj.*"]
    assert (experts["count"], experts["shape"], experts["kind"]) == (58 * 256, [4096, 7168], "experts")
    gpt2 = plans("GPT-2")
    assert gpt2["tied"] == {"lm_head": "transformer.wte"}
    first = next(group for group in gpt2["groups"] if group["name"].endswith("c_fc"))
    assert (first["kind"], first["shape"], first["count"]) == ("conv1d", [3072, 768], 12)


def test_what_a_size_buys(plans):
    plan = plans("Llama-3-8B")
    row = next(row for row in plan["sizes"] if row["size"] == "25%")
    assert row["stored_bytes"] == plan["original_bytes"] // 4
    assert row["bits_per_weight"] == pytest.approx(4)
    assert 3.9 < row["bits_per_matrix_weight"] < 4  # norms stay as they are
    assert row["predicted_damage_nats"] is None  # shapes do not know


def test_what_is_coded_twice_takes_twice_the_time(plans):
    plan = plans("Llama-3-8B")
    once = plan["cost"]["calibration_seconds"] + plan["cost"]["coding_seconds"]
    assert [row["seconds"] / once for row in plan["sizes"]] == pytest.approx([1, 1, 1, 2])  # 50, 25, 12.5 and 6.25 %


def test_time_grows_with_the_model_and_shrinks_with_the_cores(plans):
    small, large = plans("Llama-3-8B")["cost"], plans("Llama-3.1-405B")["cost"]
    assert large["coding_seconds"] > 40 * small["coding_seconds"]
    assert large["calibration_seconds"] > 40 * small["calibration_seconds"]
    assert small["peak_memory_bytes"] > 8e9 * 8 > small["streamed_memory_bytes"] > 8e9 / 32 * 8
    loads = [Load((512, 256), 1.0, "layer.0"), Load((512, 256), 0.25, None)]
    one, four = (predict(loads, 1000, Rates(1e9, 1e6), cores) for cores in (1, 4))
    assert one.coding_seconds == pytest.approx(4 * four.coding_seconds)
    assert one.calibration_seconds == pytest.approx(1000 * 1.25 * (6 * 512 * 256 + 2 * 256**2) / 1e9)
    assert one.streamed_memory_bytes == BASE_BYTES + 8 * 512 * 256 + 4 * 256**2


def test_a_measured_rate_is_that_of_the_measured_matrix():
    rates = measure((192, 128))
    assert rates.flops > 1e8
    assert rates.weights > 1e4
    assert 0 < coding_seconds((192, 128), rates) < 5


def test_an_earlier_compression_says_what_another_size_would_lose(model_folder, text_file, tmp_path):
    changes = {"size": "50%", "tiling": {"short": 16}, "calibration": {"num_windows": 4, "num_tokens": 32}, "workers": 1}
    made = compress(model_folder, tmp_path / "out", text=text_file, settings=CompressSettings.model_validate(changes))
    plan = inspect(tmp_path / "out", settings=InspectSettings(sizes=("50%", "25%", "6.25%")))
    same, half, little = (row["predicted_damage_nats"] for row in plan["sizes"])
    assert plan["compressed"]
    assert plan["stored_bytes"] == made["stored_bytes"]
    assert same == pytest.approx(made["predicted_damage_nats"] * 4 ** (made["bits_per_weight"] - 8))
    assert half == pytest.approx(same * 4**4)
    assert little is None  # the rule does not reach below two bits
    assert [m["name"] for m in plan["matrices"]] == [m["name"] for m in inspect(model_folder)["matrices"]]


def test_a_configuration_file_a_folder_and_a_checkpoint_give_the_same_matrices(model_folder, tmp_path):
    whole = inspect(model_folder)
    (tmp_path / "config.json").write_text((model_folder / "config.json").read_text())
    for source in (tmp_path, tmp_path / "config.json"):
        plan = inspect(source)
        assert plan["matrices"] == whole["matrices"]
        assert plan["stored_bytes"] is None
    assert whole["stored_bytes"] == (model_folder / "model.safetensors").stat().st_size
    assert whole["stored_dtypes"] == {"BF16": whole["num_parameters"]}


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(InputError, match=r"no config\.json"):
        inspect(tmp_path)
    with pytest.raises(InputError, match="does not exist"):
        inspect(tmp_path / "none" / "config.json")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "cuneiform"}))
    with pytest.raises(InputError, match="cuneiform"):
        inspect(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(InputError, match="no configuration that Transformers can load"):
        inspect(tmp_path)
    config = tiny_llama(64).config.to_dict()
    for wrong in ({"hidden_size": "wide"}, {"num_attention_heads": 0, "head_dim": None}):
        (tmp_path / "config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(InputError, match=r"mend config\.json"):
            inspect(tmp_path)
