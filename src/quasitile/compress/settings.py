"""How a model is compressed: the settings of the stage."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from quasitile.codec.factors import SVDS
from quasitile.codec.machine import STATES
from quasitile.codec.matrix import INPUTS, PRICES
from quasitile.codec.spectrum import TRANSFORMS, TRUNCATIONS
from quasitile.codec.structure import STRUCTURES
from quasitile.codec.tiling import TILINGS
from quasitile.compress.modular import MODULES
from quasitile.compress.order import ORDERS
from quasitile.compress.stream import AxesSettings
from quasitile.settings import AutoYesNo, ComputeSettings, Settings

MIDWAY_BITS = 1.5  # a weight; above it the coded model's gradients say the same as the original's


class TilingSettings(Settings):
    """Where the tiles lie."""

    name: Literal[*TILINGS] = "fibonacci"  # type: ignore[valid-type]
    short: int = Field(default=96, ge=1, description="the shorter tile side; the longer one is 1.618 times it")
    seed: int = Field(default=0, ge=0, description="phase of the chain, or order of the shuffled one")


class SpectrumSettings(Settings):
    """What is done in the frequency domain."""

    transform: Literal[*TRANSFORMS] = "dct"  # type: ignore[valid-type]
    threshold: float = Field(default=0.55, ge=0.5, description="coefficients below this many steps are truncated")
    truncation: Literal[*TRUNCATIONS] = Field(default="threshold", description="which others are truncated")  # type: ignore[valid-type]
    keep: float = Field(
        default=1.0,
        gt=0,
        le=1,
        description="share of power (energy), of frequencies (low_pass) or of coefficients (budget) kept",
    )

    @model_validator(mode="after")
    def _keep_is_used(self) -> SpectrumSettings:
        if self.truncation == "threshold" and self.keep < 1:
            raise ValueError(f"keep={self.keep} needs a truncation of energy, low_pass or budget; set spectrum.truncation")
        return self


class CalibrationSettings(Settings):
    """How much text is streamed for the moments."""

    num_windows: int = Field(default=96, ge=1)
    num_tokens: int = Field(default=256, ge=2, description="a window")
    reading_share: float = Field(default=0.25, ge=0, lt=1, description="of the windows, made of the reading where one is given")
    batch_size: int = Field(default=8, ge=1)
    stream: AutoYesNo = Field(
        default="auto", description="one layer at a time from disk; auto: where the model would fill the memory"
    )
    propagate: Literal["auto", "original", "compressed", "corrected"] = Field(
        default="auto",
        description="what a layer is coded behind: layers as they were, coded ones (streamed), or coded ones whose errors it "
        "makes up for; auto: the last, but original where that is not possible, or streamed and above 3 bits a weight",
    )
    gradients: Literal["auto", "original", "midway"] = Field(
        default="auto",
        description="whose gradients price errors: the original's, or half of these and half of the coded model's, which is "
        f"then coded twice; auto: the latter at {MIDWAY_BITS} bits a weight and below, unless propagate is original",
    )
    moment_bytes: int = Field(
        default=64 * 2**20, ge=2**12, description="a larger second moment is kept as diagonal blocks of so many (streamed)"
    )

    def prices_midway(self, bits: float) -> bool:
        """Whether gradients are taken midway where a weight gets so many bits."""
        wanted = bits <= MIDWAY_BITS and self.propagate != "original"
        return self.gradients == "midway" or (self.gradients == "auto" and wanted)

    @model_validator(mode="after")
    def _compressed_is_streamed(self) -> CalibrationSettings:
        if self.propagate == "compressed" and self.stream == "no":
            raise ValueError("propagate=compressed works layer by layer; leave stream at auto, or set it to yes")
        return self


class CompressSettings(ComputeSettings):
    """How a model is compressed."""

    size: str = Field(default="25%", description="share of bf16 bytes (25%), bytes (4GB) or stored parameters (7B)")
    tiling: TilingSettings = TilingSettings()
    order: Literal["none", *ORDERS] = Field(default="none", description="of axes that are free")  # type: ignore[valid-type]
    axes: AxesSettings = AxesSettings()
    spectrum: SpectrumSettings = SpectrumSettings()
    residual: Literal["none", *TRANSFORMS] = Field(default="identity", description="transform of the quantised rest of a tile")  # type: ignore[valid-type]
    residual_threshold: float = Field(default=0.5, ge=0.5, description="dead zone of the residual in steps")
    trellis: Literal[*STATES] = Field(default=8, description="states of the trellis of a residual of identity; 1 for none")  # type: ignore[valid-type]
    row_damping: float = Field(default=0.0, ge=0, description="share of the mean output gradient that every row gets at least")
    max_rank: int | None = Field(default=None, ge=0, description="a limit; with a residual, nothing means no factors")
    rank_price: float = Field(default=1.0, gt=0, description="above 1: fewer components, stored more finely")
    factorise: Literal["tile first", "factor first"] = Field(
        default="tile first", description="each tile by itself, or slices of one factorisation of the matrix"
    )
    svd: Literal[*SVDS] = Field(default="auto", description="auto: randomised for few components of large tiles")  # type: ignore[valid-type]
    products: bool = Field(
        default=True,
        description="at very few bits try each matrix as one product of two factors too, and keep the form that predicts "
        "text better (in memory)",
    )
    feedback: bool = Field(default=True, description="let column bands make up for what later ones lost")
    skip: tuple[str, ...] = Field(default=(), description="matrices left as they are: names, or patterns such as *embed*")
    calibration: CalibrationSettings = CalibrationSettings()
    ranks: Literal["priced", "share", "fixed"] = Field(
        default="priced", description="who decides a tile's rank: its price, an equal share of all tiles' numbers, or max_rank"
    )
    residual_part: Literal["all", "rows", "entries"] = Field(default="all", description="which entries the residual has")
    structure: Literal["none", *STRUCTURES] = Field(default="none", description="which weights share a number")  # type: ignore[valid-type]
    modules: Literal["none", *MODULES] = Field(default="none", description="how whole modules are made narrower first")  # type: ignore[valid-type]
    number_bits: float = Field(
        default=8.0, gt=0, description="where numbers are counted (ranks, residual_part, structure, modules): bits for each"
    )
    factor_numbers: float = Field(default=0.5, gt=0, lt=1, description="factors' part of them beside a part of the residual")
    alternations: int = Field(default=0, ge=0, description="rounds of fitting the residual and the factors in turn")
    inputs: Literal[*INPUTS] = Field(default="correlated", description="what is known of the inputs")  # type: ignore[valid-type]
    prices: Literal[*PRICES] = Field(default="rows", description="output gradients count by row, by matrix or not")  # type: ignore[valid-type]
    workers: int = Field(default=0, ge=0, description="threads, or processes where the model is streamed; 0 for one a core")
    ray: str = Field(default="", description="address of a Ray cluster (auto, local, host:port) that codes a streamed model")
    seed: int = 0

    @model_validator(mode="after")
    def _truncation_is_used(self) -> CompressSettings:
        if self.spectrum.truncation != "threshold" and self.residual == "identity" and not self.max_rank:
            raise ValueError(
                f"spectrum.truncation={self.spectrum.truncation} has nothing to truncate: a residual of identity has no "
                "spectrum and there are no factors; choose another residual, or a max_rank"
            )
        return self

    @model_validator(mode="after")
    def _axes_are_known(self) -> CompressSettings:
        if self.axes.kind != "none" and self.tiling.name == "hierarchical":
            raise ValueError("the hierarchical tiling is laid out in the weight's own columns; set axes.kind to none")
        if self.axes.kind != "none" and self.structure != "none":
            raise ValueError(f"the columns of structure={self.structure} have no axes of their own; set axes.kind to none")
        if self.axes.kind in ("sorted", "stream") and self.residual == "none":
            raise ValueError(f"axes.kind={self.axes.kind} is for columns that make up for each other's loss; set a residual")
        return self

    @property
    def has_factors(self) -> bool:
        """Whether tiles may have components."""
        return bool(self.residual == "none" or self.max_rank or self.ranks == "share")

    @property
    def transforms(self) -> set[str]:
        """Bases that stored numbers need."""
        return ({self.spectrum.transform} if self.has_factors else set()) | ({self.residual} - {"none"})

    @model_validator(mode="after")
    def _factors_are_used(self) -> CompressSettings:
        if not self.has_factors and (self.factorise != "tile first" or self.svd == "randomised"):
            raise ValueError("factorise and svd are about factors; with a residual there are none unless you set a max_rank")
        if self.factorise == "factor first" and self.ranks != "priced":
            raise ValueError(f"ranks={self.ranks} is for factors of single tiles; set factorise to tile first")
        if self.svd == "randomised" and self.max_rank is None:
            raise ValueError("svd=randomised finds the leading components and must know how many; set a max_rank")
        return self

    @model_validator(mode="after")
    def _parts_are_there(self) -> CompressSettings:
        if self.ranks == "fixed" and not self.max_rank:
            raise ValueError("ranks=fixed needs a max_rank above 0")
        if self.residual_part != "all" and self.residual != "identity":
            raise ValueError(f"residual_part={self.residual_part} needs a residual of identity")
        if self.alternations and (self.residual != "identity" or (self.ranks == "priced" and not self.max_rank)):
            raise ValueError(f"alternations={self.alternations} need a residual of identity and factors; give a max_rank")
        if self.alternations and self.residual_part != "all":
            raise ValueError(f"alternations={self.alternations} need the whole residual; set residual_part to all")
        return self
