"""What all tests share: a tiny random model and its tokenizer, built offline, tolerances, and the command line."""

import os
import signal
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from quasitile import CompressSettings, cli, compress, read
from quasitile.progress import set_quiet

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # for what tests start; some fork, which OpenMP's threads don't survive
torch.set_num_threads(1)
set_quiet(True)


def join_two_processes(rank):
    """In a forked process: be one of two, as a launcher would have it."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    os.environ["ACCELERATE_USE_CPU"] = "true"
    AcceleratorState._reset_state(reset_partial_state=True)  # of tests before, which the fork brought along
    torch.set_num_threads(1)  # makes the pool that the fork lost: threads that find none would all make it, and one fail


# Where two ways to compute the same thing may differ, and by how much.
TOLERANCE = {
    torch.float64: {"rtol": 1e-9, "atol": 1e-9},
    torch.float32: {"rtol": 1e-4, "atol": 1e-5},
}
WORDS = [
    "the",
    "band",
    "gap",
    "of",
    "silicon",
    "is",
    "1.1",
    "eV",
    "and",
    "the",
    "film",
    "was",
    "annealed",
    "at",
    "500",
    "degrees",
    "in",
    "air",
    "for",
    "two",
    "hours",
    "because",
    "grain",
    "growth",
    "lowers",
    "the",
    "resistance",
    "of",
    "each",
    "boundary",
    "while",
    "thin",
    "layers",
    "of",
    "oxide",
    "scatter",
    "heat",
    "and",
    "carry",
    "ions",
    "slowly",
]
CHAT_TEMPLATE = (
    "{% set place = trace | default('none') %}{% for m in messages %}{{ '<|' + m.role + '|>' }}"
    "{% if m.role == 'assistant' and place == 'before' and m.reasoning_content %}"
    "{{ '<|think|>' + m.reasoning_content + '<|/think|>' }}{% endif %}{{ m.content }}"
    "{% if m.role == 'assistant' and place == 'after' and m.reasoning_content %}"
    "{{ '<|think|>' + m.reasoning_content + '<|/think|>' }}{% endif %}"
    "{% if m.role == 'assistant' %}{{ '<|endoftext|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def sentences(count: int, seed: int = 0) -> list[str]:
    """Sentences of the words above in random order."""
    generator = torch.Generator().manual_seed(seed)
    picks = torch.randint(len(WORDS), (count, 12), generator=generator).tolist()
    return [" ".join(WORDS[i] for i in row) + "." for row in picks]


@pytest.fixture(scope="session")
def tokenizer():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    special = ["<|endoftext|>", "<|pad|>", "<|user|>", "<|assistant|>", "<|think|>", "<|/think|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator(
        sentences(200),
        trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet, show_progress=False),
    )
    from tokenizers import decoders

    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        pad_token="<|pad|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def tiny_llama(vocabulary_size: int, tied: bool = True, seed: int = 0) -> LlamaForCausalLM:
    """Two layers of width 48 with grouped queries; weights large enough to matter."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size, hidden_size=48, intermediate_size=80, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=12, max_position_embeddings=256, tie_word_embeddings=tied, initializer_range=0.2,
        bos_token_id=0, eos_token_id=0, pad_token_id=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory, tokenizer) -> Path:
    """A dense checkpoint as Transformers writes it."""
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_llama(len(tokenizer)).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """General text for calibration and alignment."""
    import json

    path = tmp_path_factory.mktemp("text") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": " ".join(sentences(20, seed))}) + "\n" for seed in range(24)))
    return path


@pytest.fixture(scope="session")
def foreign_file(tmp_path_factory) -> Path:
    """Letters of another script in random order: learning anything else makes a model that knows nothing yet worse at them."""
    import json
    import random

    rng = random.Random(0)
    texts = ["".join(rng.choices("ЖЦЧШЩЪЫЭЮЯжцчшщъыэюя", k=200)) for _ in range(24)]
    path = tmp_path_factory.mktemp("foreign") / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def data_folder() -> Path:
    """The development data; tests that need it skip without it."""
    folder = os.environ.get("QUASITILE_DATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("QUASITILE_DATA is not set to the development data")
    return Path(folder)


@pytest.fixture
def quasitile(monkeypatch, capsys):
    """Run a command in this process: its exit status and what it said on standard error."""
    handler = signal.getsignal(signal.SIGINT)

    def call(*words):
        monkeypatch.setattr("sys.argv", ["quasitile", *map(str, words)])
        with pytest.raises(SystemExit) as stop:
            cli.main()
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("quasitile:")]
        return stop.value.code, lines

    yield call
    signal.signal(signal.SIGINT, handler)
    set_quiet(True)


def refused(result, *parts):
    """One line, exit status 2, and these words in it."""
    status, lines = result
    assert status == 2
    assert len(lines) == 1
    for part in parts:
        assert part in lines[0]


def plainly_compressed(model, out, text, size):
    """A model folder as training likes it: a residual without a trellis, each layer coded behind layers as they were."""
    calibration = {"num_windows": 6, "num_tokens": 32, "propagate": "original"}
    settings = {"size": size, "trellis": 1, "tiling": {"short": 16}, "calibration": calibration, "workers": 1}
    compress(model, out, text=text, settings=CompressSettings.model_validate(settings))
    return out


def read_paper(folder, paper):
    """The reading folder of one paper in Markdown."""
    (folder / "papers").mkdir()
    (folder / "papers" / "film.md").write_text(paper)
    read(folder / "papers", folder / "reading")
    return folder / "reading"
