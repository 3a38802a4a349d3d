"""Reading teaches what it says, chooses blocks by use, and undoes what costs too much."""

import json
import os
import random
import sys

import pytest
import torch
from tests.conftest import join_two_processes, plainly_compressed, read_paper

from quasitile import AdaptSettings, CompressSettings, InputError, adapt, compress, load_model
from quasitile.adapt import reader as reader_module
from quasitile.adapt import train
from quasitile.adapt.curriculum import ORDERS, Lesson, read_lessons, rounds, spread
from quasitile.adapt.draw import draw_back
from quasitile.adapt.examples import IGNORED, answer_tokens, padded
from quasitile.adapt.reader import PASS_TOKENS, open_reader, prepare, without_shards
from quasitile.adapt.select import SELECTIONS, gradient_powers, rank_blocks, usage
from quasitile.adapt.teach import gradients, replayed_passes, taught_passes, teach, weigh
from quasitile.adapt.train import Course, costs_too_much
from quasitile.align.losses import language_model_nats, logit_kl
from quasitile.align.sharding import local
from quasitile.checkpoint import stored_bytes
from quasitile.compress.windows import QUESTIONS, taught
from quasitile.folders import read_jsonl
from quasitile.runtime import load_trainable, tiled_matrices

PAPER = """# Oxide films

## Introduction

Perovskite oxide is a ceramic that carries ions. The band gap of the film is 1.1 eV.
The film was annealed at 500 °C for 2 h in air.

## Results

Grain growth is the increase of the size of crystals. The resistance falls because grain growth removes boundaries.
The thermal conductivity of the film is 2.5 W/(m K).
"""


@pytest.fixture(scope="module")
def reading(tmp_path_factory):
    return read_paper(tmp_path_factory.mktemp("reading"), PAPER)


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, model_folder, text_file):
    return plainly_compressed(model_folder, tmp_path_factory.mktemp("adapt") / "compressed", text_file, "60%")


def settings(**changes):
    base = {
        "order": "reading",
        "gate_nats": 0.05,
        "forget_nats": 0.1,
        "steps_per_section": 3,
        "text_tokens": 48,
        "replay_windows": 2,
        "replay_tokens": 32,
        "gate_windows": 4,
        "max_new_tokens": 6,
    }
    return AdaptSettings.model_validate({**base, **changes})


def place_of(record):
    return record["metadata"]["document"], record["metadata"]["section"]


def whole_loss(reader, records):
    """Nats a token of the answers, all questions in one padded batch."""
    tokens, mask, labels = padded([answer_tokens(reader.tokenizer, record, "none") for record in records], 0, 10**6)
    logits = reader.model(tokens, attention_mask=mask, use_cache=False).logits[:, :-1].transpose(1, 2)
    return torch.nn.functional.cross_entropy(logits, labels[:, 1:], ignore_index=IGNORED)


def metrics(folder):
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_questions_are_learned_within_the_same_bytes(compressed, reading, text_file, tmp_path, model_folder):
    chosen = settings(rounds=6, learning_rate=0.4, gate_nats=100, forget_nats=100, text_weight=0)
    summary = adapt(compressed, reading, tmp_path / "out", teacher=model_folder, text=text_file, settings=chosen)
    rows = metrics(tmp_path / "out")
    assert len(rows) == 6 * summary["num_sections"]
    assert all(row["loss_nats"] == pytest.approx(sum(row["each_loss_nats"]) / 3) for row in rows)
    assert sum(r["loss_nats"] for r in rows[-3:]) < 0.8 * sum(r["loss_nats"] for r in rows[:3])
    assert stored_bytes(tmp_path / "out") <= stored_bytes(compressed)
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    assert {"step", "round", "id", "question", "given", "trace", "answer", "exact_match", "token_f1", "evidence"} <= answers[
        0
    ].keys()
    load_model(tmp_path / "out")
    assert summary["answers_learned_nats"] < 0.8 * rows[0]["loss_nats"]
    assert summary["answers_stored_nats"] == pytest.approx(summary["answers_learned_nats"], rel=0.1)


def test_the_questions_that_were_taught_are_kept_and_calibrate(compressed, reading, text_file, tmp_path):
    """Those of the sections read alone; `compress --reading` takes the folder."""
    adapt(compressed, reading, tmp_path / "out", text=text_file, settings=settings(max_sections=1))
    read_of = {(row["document"], row["section"]) for row in metrics(tmp_path / "out")}
    expected = [
        record["messages"]
        for record in read_jsonl(reading / QUESTIONS)
        if record["metadata"]["split"] == "train" and place_of(record) in read_of
    ]
    assert len(expected) < sum(record["metadata"]["split"] == "train" for record in read_jsonl(reading / QUESTIONS))
    assert sorted(map(str, taught(tmp_path / "out"))) == sorted(map(str, expected))


def test_a_model_on_a_trellis_is_announced(compressed, text_file, model_folder, tmp_path, monkeypatch):
    changes = {"size": "60%", "trellis": 4, "tiling": {"short": 16}, "calibration": {"num_windows": 6, "num_tokens": 32}}
    chosen = CompressSettings.model_validate({**changes, "workers": 1})
    compress(model_folder, tmp_path / "trellis", text=text_file, settings=chosen)
    said = []
    monkeypatch.setattr(sys.modules["quasitile.runtime.load"], "say", said.append)
    load_trainable(compressed)
    assert not said
    load_trainable(tmp_path / "trellis")
    assert len(said) == 1
    assert "trellis=1" in said[0]


def test_a_killed_reading_goes_on_to_the_same_curve_and_bytes(compressed, reading, text_file, tmp_path, monkeypatch):
    chosen = settings(order="shuffled", steps_per_section=2, rounds=2, save_every=1, num_asked=1, follow_ups=1)
    adapt(compressed, reading, tmp_path / "whole", text=text_file, settings=chosen)
    read_one, count = Course.read, iter(range(100))

    def killed(self, visit):
        if next(count) == 2:
            raise KeyboardInterrupt
        return read_one(self, visit)

    monkeypatch.setattr(Course, "read", killed)
    with pytest.raises(KeyboardInterrupt):
        adapt(compressed, reading, tmp_path / "out", text=text_file, settings=chosen)
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(Course, "read", read_one)
    adapt(compressed, reading, tmp_path / "out", text=text_file, settings=chosen)

    def untimed(folder):
        return [{key: value for key, value in line.items() if "second" not in key} for line in metrics(folder)]

    assert untimed(tmp_path / "out") == untimed(tmp_path / "whole")
    files = [path.name for path in (tmp_path / "whole").glob("*.safetensors")]
    for name in (*files, "answers.jsonl", QUESTIONS):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_only_the_chosen_share_of_blocks_learns(compressed, reading, text_file, tmp_path):
    chosen = settings(select="gradient", select_share=0.25, gate_nats=100, forget_nats=100)
    adapt(compressed, reading, tmp_path / "out", text=text_file, settings=chosen)
    row = metrics(tmp_path / "out")[0]
    assert row["num_blocks_trained"] == round(0.25 * row["num_blocks"])


def test_a_section_that_costs_too_much_is_undone(compressed, reading, text_file, tmp_path):
    ruinous = settings(learning_rate=3000, replay_weight=0, gate_nats=1e-6)
    summary = adapt(compressed, reading, tmp_path / "out", text=text_file, settings=ruinous)
    assert summary["num_undone"] == summary["num_sections"]
    before, _ = load_model(compressed)
    after, _ = load_model(tmp_path / "out")
    for name, matrix in tiled_matrices(before).items():
        assert torch.equal(matrix.weight(), tiled_matrices(after)[name].weight()), name


def test_a_gate_takes_back_only_as_much_as_it_must(compressed, reading, text_file, monkeypatch):
    reader = open_reader(compressed, None, text_file, settings())
    prepare(reader)
    course, saved = Course(reader), reader.snapshot()
    values, before = reader.blocks[0].coefficients()[0], saved[0][0]
    course.general = course.before = 3.0
    for losses, kept in (([3.01], 1.0), ([3.2, 3.04], 0.5), ([3.2, 3.1, 3.04], 0.25), ([3.2, 3.2, 3.2], 0.0)):
        course.general = 3.0
        with torch.no_grad():
            values.copy_(before + 1.0)
        left = iter(losses)
        monkeypatch.setattr(reader, "general_nats", lambda left=left: next(left))
        assert course.hold_back(saved) == (losses[0], kept)
        torch.testing.assert_close(values.detach(), before + kept)


def test_the_rate_halves_where_nothing_is_kept_and_recovers(compressed, reading, text_file, monkeypatch):
    reader = open_reader(compressed, None, text_file, settings(learning_rate=0.01))
    prepare(reader)
    course, resumed, saved, rates = Course(reader), Course(reader), reader.snapshot(), []
    for loss in (9.0, 9.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0):
        course.general = course.before = 3.0
        monkeypatch.setattr(reader, "general_nats", lambda loss=loss: loss)
        course.hold_back(saved)
        rates.append(reader.learning_rate / 0.01)
        so_far, rate = course.so_far(), reader.learning_rate
        reader.learning_rate = 0.01
        resumed.go_on(so_far, [])
        assert reader.learning_rate == rate
    assert rates == pytest.approx([1 / 2, 1 / 4, *(min(1, 1.25**kept / 4) for kept in range(1, 8))])


@pytest.mark.parametrize("with_teacher", [True, False])
def test_reading_as_a_whole_stays_within_the_allowance(compressed, reading, foreign_file, model_folder, tmp_path, with_teacher):
    chosen = settings(rounds=2, learning_rate=30, replay_weight=0, gate_nats=100, forget_nats=0.02, overshoot=50)
    teacher = model_folder if with_teacher else None
    summary = adapt(compressed, reading, tmp_path / "out", teacher=teacher, text=foreign_file, settings=chosen)
    assert summary["general_learned_nats"] > summary["general_before_nats"] + 0.02
    assert 0 < summary["kept_share"] < 1
    assert summary["general_after_nats"] - summary["general_before_nats"] <= 0.02


def test_on_the_way_a_reading_may_cost_no_more_than_it_may_overshoot(compressed, reading, text_file, tmp_path):
    chosen = settings(rounds=4, learning_rate=1000, replay_weight=0, gate_nats=100, forget_nats=0.02, judged_windows=4)
    summary = adapt(compressed, reading, tmp_path / "out", text=text_file, settings=chosen)
    rows, before = metrics(tmp_path / "out"), summary["general_before_nats"]
    assert any(row["undone"] for row in rows)
    assert all(row["general_nats"] <= before + 5 * 0.02 for row in rows if row["kept_share"] == 1)


@pytest.mark.parametrize(("allowed", "least"), [(0.02, 0.55), (0.3, 1.0), (0.0, 0.0)])
def test_as_much_is_kept_as_is_allowed(allowed, least):
    """Against a rise that is known everywhere: not quite a square, and with its minimum off the start."""
    start, values = [torch.tensor([1.0]), torch.zeros(2, 2)], [torch.tensor([3.0]), torch.ones(2, 2)]
    tried = []

    def rise():
        tried.append(float(values[0] - 1) / 2)
        return 0.05 * tried[-1] ** 2.5 + 0.01 * tried[-1]

    kept = draw_back(values, start, rise, allowed)
    assert least <= kept <= max(least, 0.62)
    assert 0.05 * kept**2.5 + 0.01 * kept <= allowed or not kept
    assert len(tried) <= 8
    torch.testing.assert_close(values, [torch.tensor([1.0 + 2 * kept]), torch.full((2, 2), kept)])


def test_a_section_beyond_the_allowance_counts_only_if_it_lowers_the_loss():
    chosen = AdaptSettings(gate_nats=0.05, forget_nats=0.05, overshoot=2)
    assert not costs_too_much(3.04, 3.0, 3.0, chosen)
    assert costs_too_much(3.06, 3.0, 3.0, chosen)  # for itself
    assert costs_too_much(3.11, 3.09, 3.0, chosen)  # in sum
    assert not costs_too_much(3.14, 3.15, 3.0, chosen)  # on the way back


def test_usage_is_the_mean_square_of_what_a_block_adds(compressed):
    model, _ = load_model(compressed)
    for matrix in tiled_matrices(model).values():
        matrix.make_trainable()
    layer = model.model.layers[0].mlp.up_proj
    seen = []
    layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].flatten(0, 1)))
    tokens = torch.arange(8, 72).view(2, 32)
    found = usage(model, tokens)
    block = next(block for block in layer.matrix.rank_blocks() if block.coefficients())
    part = seen[0][:, block.tile.columns] @ layer.matrix.weight_of(block).T
    assert found[block] == pytest.approx(part.square().sum(1).mean().item(), rel=1e-4)
    assert set(found) == set(rank_blocks(model))


def test_selections(compressed):
    model, _ = load_model(compressed)
    for matrix in tiled_matrices(model).values():
        matrix.make_trainable()
    blocks = rank_blocks(model)[:4]
    here, background = [1.0, 4.0, 3.0, 1.0], [1.0, 1.0, 3.0, 0.5]
    assert SELECTIONS["usage"](blocks, here, background, 2, random.Random(0)) == [blocks[1], blocks[3]]
    assert len(SELECTIONS["random"](blocks, here, background, 2, random.Random(0))) == 2
    assert SELECTIONS["all"](blocks, here, background, 2, random.Random(0)) == blocks
    assert SELECTIONS["none"](blocks, here, background, 2, random.Random(0)) == []


def test_what_a_gradient_weighs_is_its_mean_square(compressed):
    model, _ = load_model(compressed)
    for matrix in tiled_matrices(model).values():
        matrix.make_trainable()
    tokens = torch.arange(8, 40).view(1, 32)
    found = gradient_powers(model, lambda: language_model_nats(model(tokens, use_cache=False).logits, tokens))
    block = rank_blocks(model)[3]
    language_model_nats(model(tokens, use_cache=False).logits, tokens).backward()
    grads = torch.cat([values.grad.flatten() for values in block.coefficients()])
    assert found[block] == pytest.approx(float(grads.square().mean()), rel=1e-4)


def test_blocks_chosen_by_gradient_are_those_of_what_is_taught_and_learn_alone(compressed, reading, text_file, model_folder):
    chosen = settings(select="gradient", text_weight=0, num_questions=100, num_revisited=0, select_share=0.3)
    reader = open_reader(compressed, model_folder, text_file, chosen)
    prepare(reader)
    lesson = read_lessons(reading)[0]

    found = gradient_powers(reader.model, lambda: whole_loss(reader, lesson.records))
    ratio = {block: found[block] / usual for block, usual in zip(reader.blocks, reader.background, strict=True)}
    expected = set(sorted(reader.blocks, key=lambda block: -ratio[block])[: round(0.3 * len(reader.blocks))])
    before = reader.snapshot()
    reader.choose(lesson)
    losses = teach(reader, lesson, [], 2)
    assert losses["replay_nats"] > 0
    moved = {
        block
        for block, old in zip(reader.blocks, before, strict=True)
        if any(not torch.equal(values, was) for values, was in zip(block.coefficients(), old, strict=True))
    }
    assert moved == set(reader.chosen)
    assert len(moved) == len(expected)
    assert len(moved & expected) > 0.9 * len(expected)  # products are in half precision there


@pytest.mark.parametrize(
    "changes",
    [
        {"select": "gradient", "follow_ups": 1},
        {"select": "none"},
        {"order": "easy first", "guidance_weight": 1.0},
        {"trains": "residual", "order": "cyclic"},
    ],
    ids=str,
)
def test_every_way_of_reading_works(compressed, reading, text_file, tmp_path, model_folder, changes):
    chosen = settings(max_sections=2, steps_per_section=2, learning_rate=0.2, gate_nats=100, forget_nats=100, **changes)
    summary = adapt(compressed, reading, tmp_path / "out", teacher=model_folder, text=text_file, settings=chosen)
    rows = metrics(tmp_path / "out")
    assert all(row["tokens"] > 0 and row["tokens_per_second"] > 0 for row in rows)
    answers = [json.loads(line) for line in (tmp_path / "out" / "answers.jsonl").read_text().splitlines()]
    if "follow_ups" in changes:
        assert {row["follow_up"] for row in answers} == {0, 1}
        assert summary["num_steps"] > 4
    if changes.get("select") == "none":
        assert summary["num_steps"] == 4
        before, after = (tiled_matrices(load_model(folder)[0]) for folder in (compressed, tmp_path / "out"))
        assert all(torch.equal(matrix.weight(), after[name].weight()) for name, matrix in before.items())
    if changes.get("order") == "cyclic":
        assert [row["section"] for row in rows] == [rows[0]["section"], rows[1]["section"]] * 2
    assert (rows[0]["guidance_nats"] > 0) == ("guidance_weight" in changes)


def test_spectra_can_only_learn_where_there_are_factors(compressed, reading, text_file, tmp_path):
    with pytest.raises(InputError, match=r"adapt\.trains=spectral"):
        adapt(compressed, reading, tmp_path / "out", text=text_file, settings=settings(trains="spectral"))
    with pytest.raises(InputError, match="needs the original"):
        adapt(compressed, reading, tmp_path / "out", text=text_file, settings=settings(guidance_weight=1))


def test_a_loss_that_is_not_finite_stops_and_keeps_its_batch(compressed, reading, text_file, tmp_path, monkeypatch):
    module = sys.modules["quasitile.adapt.teach"]
    monkeypatch.setattr(module, "answer_loss", lambda *_: torch.tensor(float("nan"), requires_grad=True))
    with pytest.raises(InputError, match=r"is nan; lower adapt\.learning_rate \(its batch is in .*out-failed\.json\)"):
        adapt(compressed, reading, tmp_path / "out", text=text_file, settings=settings())
    kept = json.loads((tmp_path / "out-failed.json").read_text())
    assert kept["batch"]
    assert not (tmp_path / "out").exists()


def test_only_the_answer_is_learned(tokenizer):
    record = {
        "messages": [
            {"role": "user", "content": "what is the band gap?"},
            {"role": "assistant", "content": "1.1 eV", "reasoning_content": "the film"},
        ]
    }
    ids, labels = answer_tokens(tokenizer, record, "none")
    learned = [token for token in labels if token != IGNORED]
    assert tokenizer.decode(learned) == "1.1 eV<|endoftext|>"
    assert tokenizer.decode(ids).startswith("<|user|>what is the band gap?<|assistant|>")
    for trace, text in (
        ("before", "<|think|>the film<|/think|>1.1 eV<|endoftext|>"),
        ("after", "1.1 eV<|think|>the film<|/think|><|endoftext|>"),
    ):
        assert tokenizer.decode([t for t in answer_tokens(tokenizer, record, trace)[1] if t != IGNORED]) == text


def test_padding_is_masked_and_never_learned():
    tokens, mask, labels = padded([([5, 6, 7], [IGNORED, 6, 7]), ([8], [8])], pad=1, limit=2)
    assert tokens.tolist() == [[5, 6], [8, 1]]
    assert mask.tolist() == [[1, 1], [1, 0]]
    assert labels.tolist() == [[IGNORED, 6], [8, IGNORED]]


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("pass_tokens", [0, 40, 10**6], ids=["no padding", "some", "one batch"])
def test_passes_of_like_length_give_the_gradient_of_one_batch(
    compressed, reading, text_file, model_folder, monkeypatch, pass_tokens, parts
):
    """Answers, text and replay together: each pass backward by itself, the sum as if all were one batch."""
    monkeypatch.setitem(PASS_TOKENS, "cpu", pass_tokens)
    chosen = settings(select="all", precision="float32", gradient_accumulation=parts, replay_windows=3)
    reader = open_reader(compressed, model_folder, text_file, chosen)
    prepare(reader)
    lesson = read_lessons(reading)[0]
    reader.choose(lesson)
    text, windows = reader.text(lesson, 48), reader.draw_replay()
    passes = list(taught_passes(reader, lesson.records, lesson, text))
    num_lengths = len({len(ids) for ids, _ in reader.rows(lesson.records)})
    if parts == 1:
        assert len(passes) == {0: num_lengths, 40: 2, 10**6: 1}[pass_tokens] + 1
    found = gradients(reader, iter(passes), replayed_passes(reader, windows))
    answers, of_text = whole_loss(reader, lesson.records), language_model_nats(reader.model(text).logits, text)
    replayed = logit_kl(reader.model(windows).logits, reader.teacher(windows).logits.detach())
    for name, loss in (("loss_nats", answers), ("text_nats", of_text), ("replay_nats", replayed)):
        assert found[name].item() == pytest.approx(loss.item(), rel=1e-4), name
    assert found["tokens"] == sum(len(ids) for ids, _ in reader.rows(lesson.records)) + text.numel() + windows.numel()
    wanted = torch.autograd.grad(answers + 0.25 * of_text + 10 * replayed, reader.learning())
    for values, theirs in zip(reader.learning(), wanted, strict=True):
        torch.testing.assert_close(values.grad, theirs, rtol=2e-3, atol=2e-6)


@pytest.mark.parametrize(("asked", "weight"), [(None, 10), (0.5, 0.5)])
def test_replay_weighs_ten_times_as_much_where_it_imitates_the_original(
    compressed, reading, text_file, model_folder, asked, weight
):
    losses = {"loss_nats": torch.tensor(1.0), "replay_nats": torch.tensor(2.0)}
    reader = open_reader(compressed, model_folder, text_file, settings(replay_weight=asked))
    assert weigh(reader, losses).item() == 1 + 2 * weight
    blind = open_reader(compressed, None, text_file, settings(replay_weight=asked))
    assert weigh(blind, losses).item() == 1 + 2 * (asked or 1)


@pytest.mark.parametrize("size", ["25%", "18%"])
def test_the_learning_rate_halves_with_every_bit_as_a_rounding_step_doubles(model_folder, reading, text_file, tmp_path, size):
    folder = plainly_compressed(model_folder, tmp_path / "compressed", text_file, size)
    matrices = tiled_matrices(load_model(folder)[0]).values()
    bits = 8 * sum(m.payload.numel() for m in matrices) / sum(m.shape[0] * m.shape[1] for m in matrices)
    found = open_reader(folder, model_folder, text_file, settings()).settings.learning_rate
    assert found == pytest.approx(0.01 * 2 ** (bits - 4), rel=0.05)
    assert open_reader(folder, model_folder, text_file, settings(learning_rate=0.3)).settings.learning_rate == 0.3


@pytest.mark.parametrize(("bits", "rate"), [(None, 0.01), (4, 0.01), (2, 0.0025), (1, 0.0025), (8, 0.16), (16, 0.16)])
def test_the_learning_rate_of_factors_alone_and_beyond_its_bounds(monkeypatch, bits, rate):
    monkeypatch.setattr(reader_module, "bits_with_residual", lambda _: bits)
    assert reader_module.reading_rate(torch.nn.Linear(2, 2)) == rate


ALIKE = {
    "order": "cyclic",
    "steps_per_section": 2,
    "learning_rate": 0.2,
    "gate_nats": 100,
    "forget_nats": 0.05,
    "select": "gradient",
    "precision": "float32",
    "replay_windows": 3,
    "guidance_weight": 0.5,
    "num_asked": 1,
}


def counting(file):
    """`without_shards`, and into a file how many numbers the optimiser keeps in this process."""

    def counted(reader, *args):
        kept = [values for state in reader.optimizer.state.values() for key, values in state.items() if key != "step"]
        file.write_text(str(sum(local(values).numel() for values in kept)))
        return without_shards(reader, *args)

    return counted


def read_in_process(rank, compressed, reading, text_file, model_folder, out, changes):
    join_two_processes(rank)
    train.without_shards = counting(out.with_name(f"{out.name}-{rank}"))
    chosen = settings(**ALIKE, **changes)
    summary = adapt(compressed, reading, out, teacher=model_folder, text=text_file, settings=chosen)
    assert bool(summary) is (rank == 0)
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def read_whole(compressed, reading, text_file, model_folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("whole") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "without_shards", counting(out.with_name("kept")))
        return out, adapt(compressed, reading, out, teacher=model_folder, text=text_file, settings=settings(**ALIKE))


def assert_read_alike(folder, read_whole):
    """The curve and the model of a reading by one process, all of it in memory."""
    rows, wanted = metrics(folder), metrics(read_whole[0])
    for name in ("loss_nats", "text_nats", "replay_nats", "guidance_nats", "general_nats"):
        assert [row[name] for row in rows] == pytest.approx([row[name] for row in wanted], rel=5e-3), name
    for name in ("tokens", "asked", "num_blocks_trained"):
        assert [row[name] for row in rows] == [row[name] for row in wanted], name
    summary = json.loads((folder / "summary.json").read_text())
    for name in ("general_after_nats", "answers_stored_nats"):
        assert summary[name] == pytest.approx(read_whole[1][name], rel=5e-3), name


@pytest.fixture
def in_two_processes(compressed, reading, text_file, model_folder, tmp_path, monkeypatch, read_whole):
    """Checks that two processes read as one does, and returns the share of its numbers that the optimiser of each keeps."""
    monkeypatch.setenv("MASTER_PORT", str(20_000 + os.getpid() % 20_000))

    def check(**changes):
        out = tmp_path / "two"
        arguments = (compressed, reading, text_file, model_folder, out, changes)
        torch.multiprocessing.start_processes(read_in_process, arguments, nprocs=2, start_method="fork")
        assert_read_alike(out, read_whole)
        kept = [int(out.with_name(name).read_text()) for name in (f"{out.name}-0", f"{out.name}-1")]
        return [number / int(read_whole[0].with_name("kept").read_text()) for number in kept]

    return check


def test_two_processes_read_as_one_does(in_two_processes):
    assert in_two_processes() == [1, 1]


def test_two_processes_with_a_part_of_the_model_each_read_as_one_does(in_two_processes):
    shares = in_two_processes(shard=True, gradient_accumulation=2, checkpointing=True)
    assert sum(shares) == pytest.approx(1)  # every number is kept once
    assert max(shares) < 0.55


def test_shards_need_several_processes(compressed, reading, text_file, tmp_path):
    with pytest.raises(InputError, match=r"adapt\.shard .* launch several"):
        adapt(compressed, reading, tmp_path / "out", text=text_file, settings=settings(shard=True))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changes", [{"gradient_accumulation": 2}, {"checkpointing": True}], ids=str)
def test_parts_and_checkpointing_change_nothing_but_memory(
    compressed, reading, text_file, model_folder, tmp_path, read_whole, changes
):
    chosen = settings(**{**ALIKE, **changes})
    adapt(compressed, reading, tmp_path / "out", teacher=model_folder, text=text_file, settings=chosen)
    assert_read_alike(tmp_path / "out", read_whole)


def test_checkpoints_are_taken_while_it_learns(compressed, reading, text_file):
    reader = open_reader(compressed, None, text_file, settings(select="all", checkpointing=True))
    prepare(reader)
    lesson, modes = read_lessons(reading)[0], []
    layer = reader.model.model.layers[0]
    layer.self_attn.register_forward_hook(lambda *_: modes.append(layer.gradient_checkpointing and layer.training))
    reader.choose(lesson)
    teach(reader, lesson, [], 1)
    num_passes = len(modes)
    assert all(modes)
    assert num_passes % 2 == 0  # each a second time
    reader.general_nats()
    assert not any(modes[num_passes:])


def test_what_learns_is_reported_to_callbacks(compressed, reading, text_file, tmp_path, monkeypatch):
    from transformers import TrainerCallback

    seen = []

    class Callback(TrainerCallback):
        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, logs["loss_nats"]))

    monkeypatch.setattr("transformers.integrations.get_reporting_integration_callbacks", lambda names: [Callback])
    adapt(compressed, reading, tmp_path / "out", text=text_file, settings=settings(report_to=("tensorboard",)))
    assert seen == [(row["step"], row["loss_nats"]) for row in metrics(tmp_path / "out")]


def test_orders_and_spreading():
    lessons = [Lesson("d", number, "", "") for number in range(10)]

    def order(name, num_rounds=1, num_steps=1):
        hardness = dict(zip(range(10), [5, 3, 9, 1, 0, 8, 7, 2, 6, 4], strict=True))
        num_rounds, num_steps = rounds(name, num_rounds, num_steps)
        rng, hard = random.Random(0), lambda lesson: hardness[lesson.section]
        return [(lesson.section, num_steps, n) for n in range(num_rounds) for lesson in ORDERS[name](lessons, rng, hard)]

    def sections(name):
        return [section for section, _, _ in order(name)]

    assert sections("reading") == list(range(10))
    assert sections("reversed") == list(range(9, -1, -1))
    assert sections("shuffled") != list(range(10))
    assert sections("easy first") == [4, 3, 7, 1, 9, 0, 8, 6, 5, 2]
    assert order("cyclic", num_steps=2) == [(s, 1, n) for n in range(2) for s in range(10)]
    assert order("reading", 2, 3) == [(s, 3, n) for n in range(2) for s in range(10)]
    for name in ORDERS:
        visited = order(name, 2, 3)
        assert sum(steps for _, steps, _ in visited) == 60, name
        assert sorted(set(section for section, _, _ in visited)) == list(range(10)), name
    assert [lesson.section for lesson in spread(lessons, 3)] == [0, 3, 6]
    assert spread(lessons, 0) == lessons


def test_lessons_hold_only_training_questions(reading):
    lessons = read_lessons(reading)
    assert [lesson.section for lesson in lessons] == sorted(lesson.section for lesson in lessons)
    records = [record for lesson in lessons for record in lesson.records]
    assert all(record["metadata"]["split"] == "train" for record in records)
    asked = lessons[0].asked(2)
    assert len({record["metadata"]["fact"] for record in asked}) == len(asked)


def test_what_cannot_be_read_is_refused(compressed, model_folder, reading, text_file, tmp_path):
    with pytest.raises(InputError, match="is not compressed"):
        adapt(model_folder, reading, tmp_path / "out", text=text_file)
    with pytest.raises(InputError, match=r"sections\.jsonl does not exist"):
        adapt(compressed, tmp_path, tmp_path / "out", text=text_file)
    assert not (tmp_path / "out").exists()
