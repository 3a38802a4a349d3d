"""Tensors are read and written one at a time as safetensors reads and writes them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from quasitile import InputError
from quasitile.checkpoint import verify_checksums
from quasitile.checkpoint.shards import INDEX, tensor_headers, weight_files
from quasitile.checkpoint.streams import DTYPES, Stored, TensorReader, save_tensors, write_streamed_shards

TENSORS = {
    "odd": torch.arange(7, dtype=torch.uint8),
    **{name: (10 * torch.randn(6, 5)).to(dtype) for name, dtype in DTYPES.items()},
    "empty": torch.zeros(0, 3),
}


def test_what_safetensors_wrote_is_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    for place in (tmp_path, tmp_path / "model.safetensors"):
        reader = TensorReader(place)
        for name, tensor in TENSORS.items():
            assert torch.equal(reader.read(name), tensor), name
            assert torch.equal(reader.rows(name, 0, 0), tensor[:0]), name
        assert torch.equal(reader.rows("BF16", 2, 5), TENSORS["BF16"][2:5])
    assert "BF16" in reader


def test_what_is_written_is_read_by_safetensors(tmp_path):
    save_tensors(tmp_path / "x.safetensors", TENSORS)
    read = load_file(tmp_path / "x.safetensors")
    assert all(torch.equal(read[name], tensor) for name, tensor in TENSORS.items())
    assert [path.name for path in tmp_path.iterdir()] == ["x.safetensors"]


def test_shards_from_files(tmp_path):
    (tmp_path / "bytes").write_bytes(bytes(range(100)))
    stored = [Stored(name, tensor.dtype, tuple(tensor.shape), tensor) for name, tensor in TENSORS.items()]
    folder = tmp_path / "model"
    folder.mkdir()
    write_streamed_shards([*stored, Stored("file", torch.uint8, (100,), tmp_path / "bytes")], folder, shard_bytes=200)
    assert len(weight_files(folder)) > 3
    verify_checksums(weight_files(folder))
    assert tensor_headers(folder).keys() == {*TENSORS, "file"}
    assert TensorReader(folder).read("file").tolist() == list(range(100))
    assert json.loads((folder / INDEX).read_text())["metadata"]["total_size"] == sum(each.num_bytes for each in stored) + 100


def test_a_file_that_was_cut_off_while_it_was_read(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    reader = TensorReader(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-400])
    last = max(reader.headers, key=lambda name: reader.headers[name]["start"])
    with pytest.raises(InputError, match="truncated inside"):
        reader.read(last)
