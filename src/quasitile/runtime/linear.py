"""Layers whose weight is a coded matrix.

A `TiledMatrix` is in one of two states. *Packed*: it holds the stored bytes, and computes with a dense
weight decoded from them, with factors and whole numbers, or with weights that it decodes when they are
used (see `execution`). *Trainable*: it holds a `RankBlock` a tile and computes the weight in every
forward pass, rounding straight through, so that what is trained is what will be stored.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from quasitile.codec.axes import Axes
from quasitile.codec.block import CodedMatrix, Tiling, from_symbols
from quasitile.codec.factors import scale_values
from quasitile.codec.packing import pack
from quasitile.codec.stored import StoredMatrix
from quasitile.codec.structure import Structure
from quasitile.runtime.decode import decode_weight
from quasitile.runtime.factored import Factored, can_be_factored
from quasitile.runtime.lazy import Cache, Lazy
from quasitile.runtime.rank_block import RankBlock, assemble, to_path

REMAINDER_UNITS = 254  # in a rounding step; 126 of them are just below a half


class TiledMatrix(nn.Module):
    """An M x N weight stored as coded blocks.

    Args:
        shape: (M, N).
        payload_bytes: Size of the stored bytes.
        dtype: Of the dense weight.
        structure: How the weight is expanded from the stored matrix, or nothing where it is that matrix.
    """

    dense: Tensor
    payload: Tensor
    scales: Tensor  # of every entry, in the trainable state

    def __init__(
        self,
        shape: tuple[int, int],
        payload_bytes: int = 0,
        dtype: torch.dtype = torch.float32,
        structure: Structure | None = None,
    ) -> None:
        super().__init__()
        self.shape = (int(shape[0]), int(shape[1]))
        self.structure = structure
        self.register_buffer("payload", torch.zeros(payload_bytes, dtype=torch.uint8))
        self.register_buffer("dense", torch.empty(0, dtype=dtype), persistent=False)
        self.register_buffer("scales", torch.empty(0), persistent=False)
        self.blocks = nn.ModuleList()
        self._skeleton: CodedMatrix | None = None
        self.shared_axes: Axes | None = None  # that another matrix stores
        self.remainders: Tensor | None = None  # int8, what rounding took away in 1/254 of a step; not part of the model
        self._held: Tensor | None = None
        self._cached: tuple[int, Tensor] | None = None  # of a trainable matrix, for use without gradients
        self.execution, self._cache = "dense", Cache()
        self.name = ""  # of its layer, for messages
        self.factored: Factored | None = None
        self.lazy: Lazy | None = None
        self._opened: StoredMatrix | None = None
        self.in_shards = False  # the blocks are whole only while their layer computes, so a weight is never kept
        self.loading = False  # until its bytes have been read, the weight has a shape and no values

    @classmethod
    def from_coded(cls, coded: CodedMatrix, dtype: torch.dtype = torch.float32) -> TiledMatrix:
        """A packed matrix in memory."""
        shape = coded.tiling.shape if coded.structure is None else coded.structure.shape
        matrix = cls(shape, dtype=dtype, structure=coded.structure)
        matrix.pack(coded)
        return matrix

    @property
    def trainable(self) -> bool:
        """Whether it is in the trainable state."""
        return self._skeleton is not None

    @property
    def num_states(self) -> int:
        """Of its trellis, in the trainable state; 1 for none."""
        return 1 if self._skeleton is None else self._skeleton.num_states

    def coded(self, coarser: float = 1.0) -> CodedMatrix:
        """What is stored, or would be stored now.

        Args:
            coarser: Of a trainable matrix: rounding steps this many times as large.
        """
        skeleton = self._skeleton
        if skeleton is None:
            return self._unpacked()
        blocks = [block.stored(coarser) for block in self.rank_blocks()]
        if skeleton.num_states > 1:
            to_path(blocks, skeleton.tiling, skeleton.num_states)
        return replace(skeleton, blocks=blocks)

    def opened(self) -> StoredMatrix:
        """The stored bytes, read as far as they say what is where.

        Raises:
            ValueError: They are no coded matrix of the right shape.
        """
        if self._opened is not None:
            return self._opened
        shape = self.shape if self.structure is None else self.structure.stored_shape
        return StoredMatrix(self.payload, shape, self.shared_axes)

    def _unpacked(self) -> CodedMatrix:
        """The stored bytes as a coded matrix.

        Raises:
            ValueError: They are no coded matrix of the right shape.
        """
        return replace(self.opened().unpacked(), structure=self.structure)

    def rank_blocks(self) -> Iterator[RankBlock]:
        """The trainable blocks, in the order of the tiling."""
        for block in self.blocks:
            assert isinstance(block, RankBlock)
            yield block

    def make_trainable(self, generator: torch.Generator | None = None, jitter: float = 0.0) -> None:
        """From packed to trainable; the function of the layer does not change.

        Coefficients start where they were before they were rounded, where that is known
        (`remainders`): then those that training moves to another whole number are the ones that were
        near it anyway. Otherwise they start a random distance beside their whole number; without
        that, all of them would cross over at the same moment.

        Args:
            generator: For the random distances.
            jitter: The largest random distance in steps, below 0.5.
        """
        coded = self._unpacked()
        transforms = coded.transform, coded.residual_transform
        first = 0
        for block in coded.blocks:
            size = block.num_codes
            if self.remainders is None:
                beside = jitter * (2 * torch.rand(size, generator=generator) - 1)
            else:
                beside = self.remainders[first : first + size].clamp(-126, 126).float() / REMAINDER_UNITS
            in_factors = block.left.numel() + block.right.numel()
            left, right = from_symbols(beside[:in_factors], len(block.left), len(block.right))
            block.left += left
            block.right += right
            if block.residual is not None:
                block.residual += beside[in_factors:].view_as(block.residual)
            first += size
        device = self.payload.device
        self.release()
        self.blocks = nn.ModuleList(
            RankBlock(block, tile, transforms) for block, tile in zip(coded.blocks, coded.tiling.tiles, strict=True)
        ).to(device)
        self._skeleton = coded
        self.scales = (scale_values(coded.row_scales)[:, None] * scale_values(coded.column_scales)).to(device)

    def pack(self, coded: CodedMatrix | None = None) -> None:
        """To the packed state: store `coded`, or what has been trained."""
        coded = coded or self.coded()
        known = [block.remainders for block in coded.blocks if block.remainders is not None]
        self.remainders = (torch.cat(known) * REMAINDER_UNITS).round().clamp(-126, 126).to(torch.int8) if known else None
        self.payload = pack(coded).to(self.payload.device)
        self.shared_axes = coded.axes if coded.axes is not None and coded.axes.shared else None
        self.blocks = nn.ModuleList()
        self._skeleton, self._cached, self.scales = None, None, self.scales.new_empty(0)
        self.decode()

    def decode(self) -> None:
        """Make what its execution computes with from the stored bytes.

        Raises:
            ValueError: The bytes are no coded matrix of this shape.
        """
        self.execute(self.execution, self._cache)

    def release(self) -> None:
        """Forget everything but the stored bytes."""
        if self.lazy is not None:
            self.lazy.drop()
        self._opened = self.lazy = self.factored = None
        dtype, device = self.dense.dtype, self.payload.device
        self.dense = torch.empty(0, dtype=dtype, device=device)
        self._cache = Cache()

    def execute(self, execution: str, cache: Cache | None = None) -> None:
        """Compute in another way from now on.

        Args:
            execution: `dense`, `factored` (dense where a matrix cannot be used without making it dense) or `lazy`.
            cache: Of `lazy`.

        Raises:
            ValueError: The bytes are no coded matrix of this shape.
        """
        self.loading = False
        cache = cache or Cache()
        self.release()
        self.execution, self._cache = execution, cache
        if self.trainable:  # from the next `pack` on
            return
        opened, dtype = self.opened(), self.dense.dtype
        if execution == "lazy":
            self._opened = opened
            self.lazy = Lazy(opened, self.structure, dtype, self._cache, self.name)
            return
        if execution == "factored" and can_be_factored(opened, self.structure):
            with suppress(OverflowError):
                self.factored = Factored(opened, dtype).to(self.payload.device)
                return
        self.dense = decode_weight(opened, self.structure, dtype, self.payload.device)

    def sizes(self) -> dict[str, int]:
        """Bytes of the dense weight and of what `factored` would hold; whether there is a residual."""
        opened, size = self.opened(), self.dense.element_size()
        dense = size * self.shape[0] * self.shape[1]
        if not can_be_factored(opened, self.structure):
            return {"dense_bytes": dense, "factored_bytes": dense, "residual": 1}
        sides = [sum(tile.shape) for tile in opened.tiling.tiles]
        factors = size * sum(rank * side for rank, side in zip(opened.ranks.tolist(), sides, strict=True))
        residual = opened.residual_transform is not None
        return {"dense_bytes": dense, "factored_bytes": factors + residual * dense // size, "residual": int(residual)}

    def linear(self, x: Tensor, bias: Tensor | None) -> Tensor:
        """`(..., N) -> (..., M)`."""
        if self.factored is not None:
            return self.factored.linear(x, bias)
        if self.lazy is not None:
            return self.lazy.linear(x, bias)
        return nn.functional.linear(x, self.weight().to(x.dtype), bias)

    def rows(self, indices: Tensor, padding_idx: int | None = None) -> Tensor:
        """Rows (..., N) of the weight, in the layer's dtype."""
        if self.factored is not None:
            return self.factored.rows(indices, self.dense.dtype)
        if self.lazy is not None:
            return self.lazy.rows(indices)
        return nn.functional.embedding(indices, self.weight(), padding_idx)

    def weight_of(self, block: RankBlock) -> Tensor:
        """One tile (P, Q) of the stored matrix, in the trainable state.

        Where there is no structure, its columns meet the inputs `along_axes`.
        """
        return block() / self.scales[block.tile.rows, block.tile.columns]

    def along_axes(self, inputs: Tensor) -> Tensor:
        """Inputs (T, N) as the columns of the tiles meet them: coefficients along the matrix' axes where it has some."""
        axes = self._skeleton.axes if self._skeleton is not None else None
        return inputs if axes is None else axes.coefficients(inputs)

    def weight(self) -> Tensor:
        """The weight (M, N) in the layer's dtype."""
        if self.loading:
            return torch.empty(self.shape, dtype=self.dense.dtype, device="meta")
        if self._skeleton is None:
            if self.lazy is not None:
                return self.lazy.weight(self.payload.device)
            if self.factored is not None:
                return decode_weight(self.opened(), self.structure, self.dense.dtype, self.payload.device)
            if not self.dense.numel():
                self.decode()
            return self.dense
        if self._held is not None:
            return self._held
        if torch.is_grad_enabled() or self.in_shards:
            self._cached = None  # fused optimisers change values in place without saying so
            return self._assembled(self._skeleton.tiling)
        versions = sum(block.version for block in self.rank_blocks())
        if self._cached is None or self._cached[0] != versions:
            self._cached = versions, self._assembled(self._skeleton.tiling)
        return self._cached[1]

    def hold(self, holding: bool) -> None:
        """Compute the weight of a trainable matrix once for several forward passes, or stop doing so; not in shards."""
        self._cached = None  # see `weight`
        holding &= not self.in_shards
        self._held = self._assembled(self._skeleton.tiling) if holding and self._skeleton is not None else None

    def detach_held(self) -> list[tuple[Tensor, Tensor]]:
        """Let gradients end at the held weight: it, as it was computed, and what stands for it; nothing where it is frozen."""
        weight = self._held
        if weight is None or not weight.requires_grad:
            return []
        self._held = weight.detach().requires_grad_()
        return [(weight, self._held)]

    def _assembled(self, tiling: Tiling) -> Tensor:
        # In full precision also under autocast: what is trained must be what is stored, and many
        # small products are slower in half precision.
        with torch.autocast(self.dense.device.type, enabled=False):
            weight = assemble(tiling, list(self.rank_blocks())) / self.scales
            axes = self._skeleton.axes if self._skeleton is not None else None
            weight = weight if axes is None else axes.entries(weight)
            return (weight if self.structure is None else self.structure.expand(weight)).to(self.dense.dtype)


class TiledLinear(nn.Module):
    """`y = x W^T + b` with a coded W."""

    coded_parameters: ClassVar = {"weight": "linear"}  # see `quasitile.runtime.layers.KINDS`

    def __init__(self, matrix: TiledMatrix, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.out_features, self.in_features = matrix.shape
        self.bias = bias

    @property
    def weight(self) -> Tensor:
        """The weight (M, N)."""
        return self.matrix.weight()

    def forward(self, x: Tensor) -> Tensor:
        """`(..., N) -> (..., M)`."""
        return self.matrix.linear(x, self.bias)


class TiledEmbedding(nn.Module):
    """A look-up table of M rows with a coded weight."""

    coded_parameters: ClassVar = {"weight": "embedding"}

    def __init__(self, matrix: TiledMatrix, padding_idx: int | None = None) -> None:
        super().__init__()
        self.matrix = matrix
        self.num_embeddings, self.embedding_dim = matrix.shape
        self.padding_idx = padding_idx

    @property
    def weight(self) -> Tensor:
        """The table (M, N)."""
        return self.matrix.weight()

    def forward(self, token_ids: Tensor) -> Tensor:
        """`(...) -> (..., N)`."""
        return self.matrix.rows(token_ids, self.padding_idx)


class TiledHead(nn.Module):
    """An output head that shares the embedding's matrix and stores at most a bias of its own.

    Args:
        embedding: A module with a `TiledMatrix` as its `matrix`.
        bias: (M,).
    """

    def __init__(self, embedding: Any, bias: nn.Parameter | None = None) -> None:
        super().__init__()
        self._shared = (embedding,)  # in a tuple, so that it is not registered a second time
        self.bias = bias
        self.out_features, self.in_features = embedding.matrix.shape

    @property
    def weight(self) -> Tensor:
        """The embedding's weight."""
        return self._shared[0].weight

    def forward(self, hidden: Tensor) -> Tensor:
        """`(..., N) -> (..., M)`."""
        return self._shared[0].matrix.linear(hidden, self.bias)


def tiled_matrices(model: nn.Module) -> dict[str, TiledMatrix]:
    """Every coded matrix of a model by its layer's name, or by `EXPERTS.PARAMETER.INDEX` in a stack."""
    return {
        name.removesuffix(".matrix").replace(".matrices.", "."): module
        for name, module in model.named_modules()
        if isinstance(module, TiledMatrix)
    }
