"""The only code that opens weight files."""

from quasitile.checkpoint.shards import stored_bytes, verify_checksums, write_shards

__all__ = ["stored_bytes", "verify_checksums", "write_shards"]
