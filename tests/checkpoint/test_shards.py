"""Shards come back whole, and what is damaged or missing is named."""

import json

import pytest
import torch
from safetensors.torch import load_file

from quasitile.checkpoint import stored_bytes, verify_checksums, write_shards
from quasitile.checkpoint.shards import INDEX, tensor_headers, weight_files
from quasitile.errors import InputError

TENSORS = {
    "a": torch.arange(6.0).view(2, 3),
    "b.payload": torch.arange(100, dtype=torch.uint8),
    "c": torch.ones(4, dtype=torch.bfloat16),
}


@pytest.fixture
def folder(tmp_path):
    write_shards(TENSORS, tmp_path, shard_bytes=100)
    return tmp_path


def test_tensors_come_back_from_several_shards(folder):
    files = weight_files(folder)
    assert len(files) == 3
    loaded = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert loaded.keys() == TENSORS.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in TENSORS.items())
    assert stored_bytes(folder) == sum(file.stat().st_size for file in files)


def test_headers_tell_what_is_inside(folder):
    headers = tensor_headers(folder)
    assert headers["a"]["shape"] == [2, 3]
    assert headers["a"]["dtype"] == "F32"
    assert headers["b.payload"]["num_bytes"] == 100


def test_a_changed_byte_is_named(folder):
    verify_checksums(weight_files(folder))
    file = weight_files(folder)[1]
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    with pytest.raises(InputError, match=rf"{file.name} does not match its checksum"):
        verify_checksums(weight_files(folder))


def test_a_missing_shard_is_named(folder):
    file = weight_files(folder)[2]
    file.unlink()
    with pytest.raises(InputError, match=f"{file.name} is missing"):
        weight_files(folder)


def test_a_file_without_checksum_is_named(folder):
    index = json.loads((folder / INDEX).read_text())
    index["metadata"]["sha256"].popitem()
    (folder / INDEX).write_text(json.dumps(index))
    with pytest.raises(InputError, match="has no checksum for"):
        verify_checksums(weight_files(folder))


@pytest.mark.parametrize("keep", [4, 20, -3])
def test_a_truncated_shard_is_named(folder, keep):
    file = weight_files(folder)[1]
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=f"{file.name} is truncated"):
        tensor_headers(folder)


def test_no_folder_and_no_weights(tmp_path):
    with pytest.raises(InputError, match="is not a folder"):
        weight_files(tmp_path / "none")
    with pytest.raises(InputError, match="no safetensors weights"):
        weight_files(tmp_path)
