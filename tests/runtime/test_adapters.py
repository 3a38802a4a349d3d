"""LoRA on coded layers trains, is saved and loaded, and merges."""

import pytest
import torch
from tests.runtime.models import TOKENS, stored_folder
from torch.testing import assert_close

from quasitile import load_model, set_execution
from quasitile.runtime import TiledLinear, tiled_matrices

peft = pytest.importorskip("peft")
from quasitile.runtime.adapters import with_coded_layers  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # what PEFT uses of Transformers
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@pytest.fixture(scope="module", params=["llama", "opt", "mixtral"])
def folder(request, tmp_path_factory, tokenizer):
    return stored_folder(request.param, tokenizer, tmp_path_factory.mktemp(request.param))


def lora():
    return with_coded_layers(peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False))


@torch.no_grad()
def logits(model):
    return model(TOKENS).logits


def test_it_trains_is_loaded_again_and_merges(folder, tmp_path):
    torch.manual_seed(0)
    model = peft.get_peft_model(load_model(folder)[0], lora())
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(3):
        loss = model(TOKENS, labels=TOKENS).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.eval()
    expected, plain = logits(model), logits(load_model(folder)[0])
    assert not torch.allclose(expected, plain, **CLOSE)
    for name in ("factored", "lazy", "dense"):
        set_execution(model, name)
        assert_close(logits(model), expected, rtol=1e-3, atol=1e-3)

    model.save_pretrained(tmp_path / "adapter")
    config = with_coded_layers(peft.LoraConfig.from_pretrained(tmp_path / "adapter"))
    again = peft.PeftModel.from_pretrained(load_model(folder)[0], tmp_path / "adapter", config=config)
    assert_close(logits(again), expected, **CLOSE)

    again.merge_adapter()
    assert_close(logits(again), expected, **CLOSE)
    again.unmerge_adapter()
    assert_close(logits(again), expected, **CLOSE)
    with again.disable_adapter():
        assert_close(logits(again), plain, **CLOSE)

    before = set(tiled_matrices(load_model(folder)[0]))
    merged = again.merge_and_unload()
    assert_close(logits(merged), expected, **CLOSE)
    left = set(tiled_matrices(merged))
    assert before - left == {name for name in before if name.endswith(("q_proj", "v_proj"))}
    merged.save_pretrained(tmp_path / "merged")
    assert_close(logits(type(merged).from_pretrained(tmp_path / "merged", dtype=torch.float32)), expected, **CLOSE)


def test_without_the_coded_layers_peft_refuses_them(folder):
    config = peft.LoraConfig(target_modules=["q_proj"])
    model, _ = load_model(folder)
    assert any(isinstance(module, TiledLinear) for module in model.modules())
    with pytest.raises(ValueError, match="is not supported"):
        peft.get_peft_model(model, config)
