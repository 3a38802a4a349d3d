"""Alignment goes on where it was stopped, shares its work, needs the original only once, and keeps what was promised."""

import json
import math
import os
import statistics
import sys

import pytest
import torch
from tests.conftest import join_two_processes, plainly_compressed

from quasitile import AlignSettings, InputError, RecordSettings, align, compress, load_model, record
from quasitile.align import train as training
from quasitile.align.cutoffs import CutOffs
from quasitile.align.layers import align_layers
from quasitile.align.losses import logit_kl, top_k_kl
from quasitile.align.optimizer import suited_rate
from quasitile.align.price import ROUNDING_POWER, BitPrice
from quasitile.align.record import Recording
from quasitile.align.sharding import local
from quasitile.align.teacher import LiveTeacher
from quasitile.checkpoint import stored_bytes
from quasitile.codec.packing import pack
from quasitile.compress import CompressSettings
from quasitile.compress.refit import pack_within
from quasitile.compress.stack import Stack
from quasitile.runtime import load_trainable, tiled_matrices
from quasitile.runtime.linear import TiledMatrix

MODEL = "model-00001-of-00001.safetensors"


@pytest.fixture(scope="module")
def compressed(tmp_path_factory, model_folder, text_file):
    """At 2 bits, without a trellis."""
    return plainly_compressed(model_folder, tmp_path_factory.mktemp("training") / "compressed", text_file, "15%")


@pytest.fixture(scope="module")
def factors(tmp_path_factory, model_folder, text_file):
    """The paper's form."""
    out = tmp_path_factory.mktemp("training") / "factors"
    calibration = {"num_windows": 6, "num_tokens": 32, "propagate": "original"}
    settings = {"size": "35%", "residual": "none", "tiling": {"short": 16}, "calibration": calibration, "workers": 1}
    compress(model_folder, out, text=text_file, settings=CompressSettings.model_validate(settings))
    return out


@pytest.fixture(scope="module")
def recording(tmp_path_factory, model_folder, text_file):
    out = tmp_path_factory.mktemp("training") / "recording"
    record(model_folder, out, text=text_file, settings=recorded())
    return out


def settings(**changes):
    return AlignSettings(
        **{
            "num_steps": 6,
            "batch_size": 4,
            "num_tokens": 32,
            "held_out_windows": 4,
            "save_every": 2,
            "learning_rate": 0.002,
            "hidden_weight": 0.05,
            **changes,
        }
    )


def recorded(**changes):
    return RecordSettings(**{"num_windows": 40, "num_tokens": 32, "top_k": 16, **changes})


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("layer_steps", [0, 2])
def test_a_killed_run_continues_to_the_same_curve_and_bytes(
    compressed, model_folder, text_file, tmp_path, monkeypatch, layer_steps
):
    chosen = settings(layer_steps=layer_steps)
    align(compressed, tmp_path / "whole", teacher=model_folder, text=text_file, settings=chosen)
    step = training.Run.step

    def killed(self, number):
        if number == 5:
            raise KeyboardInterrupt
        return step(self, number)

    monkeypatch.setattr(training.Run, "step", killed)
    with pytest.raises(KeyboardInterrupt):
        align(compressed, tmp_path / "killed", teacher=model_folder, text=text_file, settings=chosen)
    ran = []
    monkeypatch.setattr(training.Run, "step", lambda self, number: ran.append(number) or step(self, number))
    align(compressed, tmp_path / "killed", teacher=model_folder, text=text_file, settings=chosen)
    assert ran == [4, 5]
    assert losses(tmp_path / "killed") == losses(tmp_path / "whole")
    assert (tmp_path / "killed" / MODEL).read_bytes() == (tmp_path / "whole" / MODEL).read_bytes()
    assert not (tmp_path / "killed" / "state").exists()


TWO = {"num_steps": 4, "precision": "float32", "save_every": 0}


def run_process(rank, compressed, model_folder, text_file, out, changes):
    join_two_processes(rank)
    train = training.Run.train

    def counted(self, *args):
        train(self, *args)
        kept = [values for state in self.optimizer.state.values() for key, values in state.items() if key != "step"]
        out.with_name(f"{out.name}-{rank}").write_text(str(sum(local(values).numel() for values in kept)))

    training.Run.train = counted
    align(compressed, out, teacher=model_folder, text=text_file, settings=settings(**TWO, **changes))
    torch.distributed.destroy_process_group()


def in_two_processes(compressed, model_folder, text_file, out, **changes):
    """Numbers that the optimiser of each process keeps."""
    arguments = (compressed, model_folder, text_file, out, changes)
    torch.multiprocessing.start_processes(run_process, arguments, nprocs=2, start_method="fork")
    return [int(out.with_name(f"{out.name}-{rank}").read_text()) for rank in range(2)]


@pytest.fixture
def alike(model_folder, text_file, tmp_path, monkeypatch):
    """Checks that runs of two processes gave the curve and the model that one gives."""
    monkeypatch.setenv("MASTER_PORT", str(20_000 + os.getpid() % 20_000))

    def check(model, *names, **changes):
        chosen = settings(**TWO, **changes)
        one = align(model, tmp_path / "one", teacher=model_folder, text=text_file, settings=chosen)
        for name in names:
            assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "one"), rel=2e-3), name
            summary = json.loads((tmp_path / name / "summary.json").read_text())
            assert summary["damage_after_nats"] == pytest.approx(one["damage_after_nats"], abs=5e-3), name
            assert summary["stored_bytes"] <= stored_bytes(model)

    return check


def test_two_processes_give_the_curve_of_one_with_and_without_shards(compressed, model_folder, text_file, tmp_path, alike):
    whole = in_two_processes(compressed, model_folder, text_file, tmp_path / "two")
    shards = in_two_processes(compressed, model_folder, text_file, tmp_path / "shards", shard=True)
    alike(compressed, "two", "shards")
    assert whole[0] == whole[1]
    assert sum(shards) == pytest.approx(whole[0], rel=0.01)  # every number is kept once instead of twice
    assert max(shards) < 0.55 * whole[0]


def test_shards_are_of_what_the_layers_learned_before(compressed, model_folder, text_file, tmp_path, alike):
    """At a rate that makes the layers' rounding steps grow, which the stored model must know of."""
    changes = {"layer_steps": 12, "learning_rate": 0.2, "price_bits": False}
    in_two_processes(compressed, model_folder, text_file, tmp_path / "shards", shard=True, **changes)
    alike(compressed, "shards", **changes)
    layers = json.loads((tmp_path / "one" / "summary.json").read_text())["layers"]
    assert max(layer["step_factor"] for layer in layers) > 1
    assert {path.name for path in (tmp_path / "shards").iterdir()} == {path.name for path in (tmp_path / "one").iterdir()}


def test_shards_need_several_processes_and_whole_factors(compressed, model_folder, text_file, tmp_path):
    with pytest.raises(InputError, match="launch several"):
        align(compressed, tmp_path / "out", teacher=model_folder, text=text_file, settings=settings(shard=True))
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="cut_offs"):
        settings(shard=True, cut_offs=True)


def test_parts_of_a_batch_and_checkpointing_change_nothing_but_memory(compressed, model_folder, text_file, tmp_path):
    whole = settings(num_steps=2, precision="float32", save_every=0)
    for name, chosen in (
        ("whole", whole),
        ("parts", whole.model_copy(update={"gradient_accumulation": 2})),
        ("again", whole.model_copy(update={"checkpointing": True})),
    ):
        align(compressed, tmp_path / name, teacher=model_folder, text=text_file, settings=chosen)
    for name in ("parts", "again"):
        assert losses(tmp_path / name) == pytest.approx(losses(tmp_path / "whole"), rel=2e-3), name
    odd = settings(gradient_accumulation=3)
    with pytest.raises(InputError, match="does not divide"):
        align(compressed, tmp_path / "odd", teacher=model_folder, text=text_file, settings=odd)


def test_a_loss_that_is_not_finite_stops_and_keeps_its_batch(compressed, model_folder, text_file, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "logit_kl", lambda *_: torch.tensor(float("inf"), requires_grad=True))
    with pytest.raises(InputError, match=r"step 1 of alignment is inf; lower align\.learning_rate \(its batch is in"):
        align(compressed, tmp_path / "out", teacher=model_folder, text=text_file, settings=settings())
    assert len(json.loads((tmp_path / "out-failed.json").read_text())["batch"]) == 4


def test_all_likeliest_tokens_are_the_whole_divergence():
    generator = torch.Generator().manual_seed(0)
    student, teacher = torch.randn(2, 2, 3, 7, generator=generator, dtype=torch.float64)
    values, ids = teacher.log_softmax(-1).topk(7)
    for temperature in (1.0, 2.0):
        assert float(top_k_kl(student, ids, values, temperature)) == pytest.approx(
            float(logit_kl(student, teacher, temperature)), rel=1e-6
        )
    few = float(top_k_kl(student, ids[..., :3], values[..., :3]))
    assert 0 < few < float(logit_kl(student, teacher))
    assert float(top_k_kl(teacher, ids[..., :3], values[..., :3])) == pytest.approx(0, abs=1e-9)
    student.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: top_k_kl(x, ids[..., :3], values[..., :3]), (student,))


def test_a_recording_holds_what_the_original_makes(recording, model_folder):
    kept, model = Recording(recording), load_model(model_folder)[0]
    live = LiveTeacher(model, kept.windows, in_half_precision=False)
    ours, theirs = (teacher.targets([3, 11], True) for teacher in (kept, live))
    torch.testing.assert_close(ours.log_probabilities, theirs.logits.log_softmax(-1).gather(-1, ours.ids), rtol=1e-4, atol=1e-4)
    for a, b in zip(ours.hidden, theirs.hidden, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)
    assert kept.nats([0, 9]) == pytest.approx(live.nats([0, 9]), rel=1e-5)


def test_a_recording_made_layer_by_layer_is_the_same(recording, model_folder, text_file, tmp_path):
    record(model_folder, tmp_path / "out", text=text_file, settings=recorded(stream=True))  # as YAML reads yes
    ours, theirs = (Recording(folder).targets([0, 21], True) for folder in (tmp_path / "out", recording))
    torch.testing.assert_close(ours.log_probabilities, theirs.log_probabilities, rtol=1e-4, atol=1e-4)
    for a, b in zip(ours.hidden, theirs.hidden, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-2, atol=1e-2)


def test_a_recording_goes_on_where_it_was_killed_and_damage_is_noticed(
    recording, model_folder, text_file, tmp_path, monkeypatch
):
    module = sys.modules["quasitile.align.record"]
    save, written = module.save_tensors, []

    def killed(path, tensors):
        if len(written) == 3:
            raise KeyboardInterrupt
        written.append(path.name)
        save(path, tensors)

    monkeypatch.setattr(module, "save_tensors", killed)
    with pytest.raises(KeyboardInterrupt):
        record(model_folder, tmp_path / "out", text=text_file, settings=recorded())
    monkeypatch.setattr(module, "save_tensors", lambda path, tensors: written.append(path.name) or save(path, tensors))
    record(model_folder, tmp_path / "out", text=text_file, settings=recorded())
    assert written == [f"{number:06d}.safetensors" for number in range(5)]
    file = tmp_path / "out" / "000002.safetensors"
    assert file.read_bytes() == (recording / file.name).read_bytes()
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="missing or damaged"):
        Recording(tmp_path / "out")


def test_alignment_from_a_recording_needs_no_original(compressed, recording, text_file, tmp_path):
    summary = align(
        compressed, tmp_path / "out", teacher=recording, text=text_file, settings=settings(num_steps=16, learning_rate=0.05)
    )

    found = losses(tmp_path / "out")
    assert statistics.fmean(found[-4:]) < statistics.fmean(found[:4])
    assert math.isfinite(summary["damage_before_nats"])
    with pytest.raises(InputError, match=r"set align\.num_tokens=32"):
        align(compressed, tmp_path / "bad", teacher=recording, text=text_file, settings=settings(num_tokens=16))


def test_a_layer_run_by_itself_gives_what_it_gives_in_the_model(model_folder):
    model, tokens = load_model(model_folder)[0], torch.arange(8, 72).view(2, 32)
    stack = Stack(model)
    with torch.no_grad():
        states = model(tokens, output_hidden_states=True, use_cache=False).hidden_states
        torch.testing.assert_close(stack.given(tokens), states[0])
        torch.testing.assert_close(stack.layer(0, tokens, states[0]), states[1])
        last = stack.layer(1, tokens, states[1])
        torch.testing.assert_close(model.model.norm(last), states[2])
        torch.testing.assert_close(model(tokens, output_hidden_states=True, use_cache=False).hidden_states[2], states[2])


def test_layers_train_one_by_one_and_are_stored_within_their_bytes(compressed, recording):
    kept, factors = Recording(recording), {}
    for priced in (False, True):
        factors[priced] = train_first_layer(compressed, kept, priced)
    assert 1 <= factors[True] < factors[False]  # the price left less to be made coarser


def test_both_stages_read_the_same_windows_in_the_same_order():
    chosen = settings(batch_size=3, held_out_windows=4, seed=2)
    few, many = training.window_order(15, 3, chosen), training.window_order(15, 40, chosen)
    assert many[: len(few)] == few
    assert sorted(many[:11]) == sorted(many[11:22]) == list(range(4, 15))
    assert len(many) >= 40 * 3


def test_layers_alone_never_have_more_than_one_in_memory(compressed, model_folder, text_file, tmp_path, monkeypatch):
    """Nothing but one decoder layer is decoded or trainable whenever a weight is; what is stored is what was measured."""
    students, held = [], []

    def load(*args, **kwargs):
        students.append(load_trainable(*args, **kwargs))
        assert not any(matrix.dense.numel() for matrix in tiled_matrices(students[0][0]).values())
        return students[0]

    def watched(method):
        def wrapper(self, *args, **kwargs):
            method(self, *args, **kwargs)
            if students:
                matrices = tiled_matrices(students[0][0]).items()
                names = [name for name, matrix in matrices if matrix.trainable or matrix.dense.numel()]
                held.append({name.split(".layers.")[1].split(".")[0] for name in names if ".layers." in name})

        return wrapper

    monkeypatch.setattr(training, "load_trainable", load)
    for name in ("execute", "make_trainable"):
        monkeypatch.setattr(TiledMatrix, name, watched(getattr(TiledMatrix, name)))
    out, chosen = tmp_path / "out", settings(num_steps=0, layer_steps=24, learning_rate=0.2, norm_learning_rate=0)
    summary = align(compressed, out, teacher=model_folder, text=text_file, settings=chosen)
    assert set.union(*held) == {str(index) for index in range(len(Stack(students[0][0]).layers))}
    assert max(map(len, held)) == 1
    assert summary["damage_after_nats"] == summary["damage_after_layers_nats"] != summary["damage_before_nats"]
    for name, matrix in tiled_matrices(Stack(students[0][0]).layers[0]).items():  # the last layer does not learn alone
        for values in (matrix.payload, matrix.remainders):
            assert values.untyped_storage().filename is not None, name  # in a file and not in memory
    stored, tokenizer = load_model(out)
    original = training.open_teacher(
        model_folder, tokenizer, text_file, chosen.num_tokens, chosen.seed, False, torch.device("cpu")
    )
    assert training.HeldOut(original, chosen).damage(stored) == pytest.approx(summary["damage_after_nats"], abs=1e-5)
    assert summary["stored_bytes"] == stored_bytes(out) <= stored_bytes(compressed)
    assert summary["num_tokens"] == 24 * chosen.batch_size * chosen.num_tokens


def train_first_layer(compressed, kept, priced):
    """By itself; by how much its rounding steps grew."""
    student, _ = load_trainable(compressed)
    before = {name: matrix.payload.numel() for name, matrix in tiled_matrices(student).items()}
    chosen = settings(layer_steps=24, learning_rate=0.2, price_bits=priced)

    (line,) = align_layers(student, kept, list(range(4, 40)), chosen)
    assert line["layer"] == 0
    assert line["relative_error_after"] < line["relative_error_before"]
    after = {name: matrix.payload.numel() for name, matrix in tiled_matrices(student).items()}
    first = [name for name in after if ".layers.0." in name]
    assert sum(after[name] for name in first) <= sum(before[name] for name in first)
    assert not any(matrix.trainable for matrix in tiled_matrices(student).values())
    return line["step_factor"]


def test_the_price_of_a_bit_adds_the_gradient_of_the_coders_cost(compressed):
    student, _ = load_trainable(compressed)
    matrices = list(tiled_matrices(student).values())
    for matrix in matrices:
        matrix.make_trainable()
    price = BitPrice(matrices, sum(matrix.payload.numel() for matrix in matrices), 0.1)
    block = next(matrices[1].rank_blocks())
    codes = block.residual.detach().double().requires_grad_()
    power = codes.detach().square()
    rows, columns, mean = power.mean(1) + ROUNDING_POWER, power.mean(0) + ROUNDING_POWER, power.mean() + ROUNDING_POWER
    (0.5 * codes.square() / (rows[:, None] * columns / mean) / math.log(2) * price.nats_per_bit).sum().backward()
    block.residual.grad = torch.zeros_like(block.residual)
    price.add_gradients()
    torch.testing.assert_close(block.residual.grad.double(), codes.grad, rtol=1e-5, atol=1e-12)
    assert price.follow() == price.limit_bytes  # what is stored, to the byte
    at_first = price.nats_per_bit
    price.limit_bytes //= 2
    assert price.follow() > price.limit_bytes
    assert price.nats_per_bit == pytest.approx(at_first * math.e)  # far too large: as much dearer as goes at once


def test_alignment_with_a_price_needs_no_coarser_steps(compressed, model_folder, text_file, tmp_path):
    factors = {}
    for priced in (False, True):
        chosen = settings(num_steps=16, learning_rate=0.2, price_bits=priced, save_every=0)
        out = tmp_path / str(priced)
        factors[priced] = align(compressed, out, teacher=model_folder, text=text_file, settings=chosen)["step_factor"]
        assert stored_bytes(out) <= stored_bytes(compressed)
    assert 1 <= factors[True] < factors[False]


def test_steps_grow_no_more_than_the_bytes_need(compressed):
    student, _ = load_trainable(compressed)
    matrices = list(tiled_matrices(student).values())
    with torch.no_grad():
        for matrix in matrices:
            matrix.make_trainable()
            for values in (values for block in matrix.rank_blocks() for values in block.coefficients()):
                beyond = torch.linspace(0.5001, 0.51, values.numel()).view_as(values)  # as training leaves many codes
                values.copy_(torch.where(values.round() == 0, beyond, values))
    limit = round(0.99 * sum(pack(matrix.coded()).numel() for matrix in matrices))

    factor = pack_within(student, limit)
    stored = sum(matrix.payload.numel() for matrix in matrices)
    assert 1 < factor < 1.02
    assert 0.995 * limit < stored <= limit


def test_gates_close_at_their_cut_off_and_their_gradient_is_right():
    gates = CutOffs(8, 2).double()
    assert gates.kept().all()
    with torch.no_grad():
        gates.cuts.copy_(torch.tensor([3.0, 8.0]))
    assert gates.kept()[:, 0].tolist() == [True] * 3 + [False] * 5
    assert gates.kept()[:, 1].all()
    values = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 5

    def gated(cuts):
        middle = torch.arange(8, dtype=torch.float64) + 0.5
        kept = torch.stack([middle < cut for cut in cuts.detach().tolist()], 1).double()
        power = (values.square() * kept).sum(0) / kept.sum(0)
        each = 0.5 * torch.log2(2 * torch.pi * torch.e * (power + 1 / 12))
        return (torch.sigmoid((cuts - middle[:, None]) / 1.5) * each).sum()

    cuts = gates.cuts.detach().clone().requires_grad_()
    expected = gated(cuts)
    expected.backward()
    found = gates.bits(values)
    found.backward()
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gates.cuts.grad, cuts.grad)


def test_learned_cut_offs_keep_the_promised_size(factors, model_folder, text_file, tmp_path):
    chosen = settings(num_steps=8, cut_offs=True, cut_off_learning_rate=4.0)
    align(factors, tmp_path / "out", teacher=model_folder, text=text_file, settings=chosen)
    assert stored_bytes(tmp_path / "out") <= stored_bytes(factors)
    before, after = (load_model(folder)[0] for folder in (factors, tmp_path / "out"))
    zeros = [
        sum(int((block.left == 0).sum()) for matrix in tiled_matrices(model).values() for block in matrix.coded().blocks)
        for model in (before, after)
    ]
    assert zeros[1] > zeros[0]


def test_reports_go_through_the_callbacks_of_transformers(compressed, model_folder, text_file, tmp_path, monkeypatch):
    import transformers

    seen = []

    class Callback(transformers.TrainerCallback):
        def on_train_begin(self, args, state, control, **kwargs):
            seen.append("begin")

        def on_log(self, args, state, control, logs=None, **kwargs):
            seen.append((state.global_step, logs["loss"]))

        def on_train_end(self, args, state, control, **kwargs):
            seen.append("end")

    monkeypatch.setattr("transformers.integrations.get_reporting_integration_callbacks", lambda names: [Callback])
    chosen = settings(num_steps=2, report_to=("tensorboard",))
    align(compressed, tmp_path / "out", teacher=model_folder, text=text_file, settings=chosen)
    assert seen == ["begin", *enumerate(losses(tmp_path / "out"), 1), "end"]
    monkeypatch.undo()
    chosen = settings(report_to=("nothing-known",))
    with pytest.raises(InputError, match="report_to=nothing-known"):
        align(compressed, tmp_path / "other", teacher=model_folder, text=text_file, settings=chosen)


@pytest.mark.parametrize("form", ["compressed", "factors"])
def test_the_rate_that_suits_a_model_is_the_one_it_trains_at(form, request, model_folder, text_file, tmp_path):
    """The same bytes as with that rate given: a hundredth of a step for factors, for entries the more the fewer bits."""
    model = request.getfixturevalue(form)
    matrices = tiled_matrices(load_model(model)[0]).values()
    bits = 8 * sum(m.payload.numel() for m in matrices) / sum(math.prod(m.shape) for m in matrices)
    expected = {"compressed": min(0.004, 0.003 * bits**-0.6), "factors": 0.01}[form]
    made = {}
    for rate in (None, float(f"{expected:.2g}"), 0.1):
        out = tmp_path / str(rate)
        summary = align(model, out, teacher=model_folder, text=text_file, settings=settings(num_steps=3, learning_rate=rate))
        assert summary["learning_rate"] == (rate or pytest.approx(expected, rel=0.05))
        made[rate] = (out / MODEL).read_bytes()
    chosen, given, other = made.values()
    assert chosen == given != other


@pytest.mark.parametrize(("share", "expected"), [(0.02, 0.004), (0.25, 0.0013), (0.5, 0.00086)])
def test_the_more_bits_the_smaller_the_rate(compressed, share, expected):
    """Of 16 bits a weight: below half a bit nothing is gained by more, above 2 bits steps become smaller."""
    model = load_model(compressed)[0]
    for matrix in tiled_matrices(model).values():
        size = round(share * 2 * math.prod(matrix.shape))
        opened = matrix.opened()
        matrix.opened = lambda opened=opened: opened
        matrix.payload = torch.zeros(size, dtype=torch.uint8)
    assert suited_rate(model) == pytest.approx(expected, rel=0.02)
