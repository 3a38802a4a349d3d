"""The only code that opens weight files."""

from quasitile.checkpoint.shards import (
    check_tensors,
    header_bytes,
    seal,
    stored_bytes,
    tensor_headers,
    verify_checksums,
    write_shards,
)

__all__ = ["check_tensors", "header_bytes", "seal", "stored_bytes", "tensor_headers", "verify_checksums", "write_shards"]
