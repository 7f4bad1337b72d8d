"""Few values instead of many: codebooks found by k-means, and whole numbers with a scale a row.

Everything is computed on the device of the weights, without chance: the same weights give the same codes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_transformer.compression.tensors import Quantized, linear_levels
from lite_transformer.errors import UnsupportedInputError

_LLOYD_STEPS = 300
_BINS_FACTOR = 2
# Scales tried for a row of few bits, as parts of its largest weight: cutting off the rarest weights serves the rest.
_CLIPS = (1.0, 0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.65, 0.6, 0.55, 0.5)
_HALF_MIN, _HALF_MAX = 2.0**-14, 65504.0  # normal numbers of half precision
_COARSEST_HALF = 2.0**-10
_SMALLEST = 2.0**-149  # above 0, in single precision


@dataclass(frozen=True)
class Codes:
    """Quantized weights on their device; see `tensors.Quantized` for the meaning of codes, levels and scales."""

    codes: Tensor
    levels: Tensor
    scales: Tensor | None = None
    linear: bool = False

    def dense(self) -> Tensor:
        """The weights that the codes stand for, float32."""
        values = self.levels.float()[self.codes.long()]
        if self.scales is not None:
            values *= self.scales.float().view(-1, *[1] * (self.codes.dim() - 1))
        return values

    def packed(self) -> Quantized:
        """The same as NumPy arrays, for a packed file."""
        scales = None if self.scales is None else self.scales.cpu().numpy()
        if self.linear:
            return Quantized(self.codes.cpu().numpy(), linear_levels(self.levels.numel()), scales, linear=True)
        return Quantized(self.codes.cpu().numpy(), self.levels.cpu().numpy(), scales)


def kmeans(weight: Tensor, bits: int, levels: Tensor | None = None) -> Codes:
    """One-dimensional k-means of a tensor's weights into at most 2 ** bits levels (Han et al. 2016, section 3).

    Zeros have a level of their own, which is exactly 0: what was pruned stays pruned. Weights of no more than 2 ** bits
    different values keep these values (in half precision, where they fit it). Starts from levels as dense as the cube
    root of the weights' density, which is where the best ones lie for many levels, and goes on by Lloyd's steps.

    Args:
        levels: those found before, ascending; the weights, taken for finite, get the nearest ones and no others are
            looked for, nor is the device waited for.
    Raises: UnsupportedInputError for other widths than 1 to 8, and for weights that are not finite.
    """
    flat = weight.detach().float().reshape(-1)
    if levels is not None:
        return Codes(_nearest(flat, levels.float(), keep_zeros=True).view(weight.shape), levels)
    _check(weight, bits)
    ordered = flat[flat != 0].sort().values
    zeros = ordered.numel() < flat.numel()
    count = 2**bits - zeros
    distinct = torch.unique_consecutive(ordered)
    levels = distinct if distinct.numel() <= count else _lloyd(ordered, _start(ordered, count))
    if zeros:
        levels = torch.cat([levels, levels.new_zeros(1)]).sort().values
    if levels.numel() == 0:
        levels = flat.new_zeros(1)
    levels = _shortened(levels)
    return Codes(_nearest(flat, levels.float(), zeros).view(weight.shape), levels)


def _check(weight: Tensor, bits: int) -> None:
    if not 1 <= bits <= 8:
        raise UnsupportedInputError(f"{bits} bits: 1 to 8 are possible")
    if not torch.isfinite(weight).all():
        raise UnsupportedInputError("weights that are not finite cannot be quantized")


def _start(ordered: Tensor, count: int) -> Tensor:
    """``count`` ascending levels whose density is the cube root of that of the ascending weights."""
    low, high = ordered[0].double(), ordered[-1].double()
    bins = max(16, round(_BINS_FACTOR * ordered.numel() ** (1 / 3)))  # more would show chance, not density
    edges = torch.linspace(0, 1, bins + 1, device=ordered.device, dtype=torch.float64) * (high - low) + low
    inner = torch.searchsorted(ordered, edges[1:-1].float())
    ends = torch.cat([inner, inner.new_tensor([ordered.numel()])])
    share = torch.diff(ends, prepend=ends.new_zeros(1)).double().pow(1 / 3)
    cumulated = torch.cat([share.new_zeros(1), share.cumsum(0)]) / share.sum()
    wanted = (torch.arange(count, device=ordered.device, dtype=torch.float64) + 0.5) / count
    right = torch.searchsorted(cumulated, wanted).clamp(1, bins)
    left = cumulated[right - 1]
    part = (wanted - left) / (cumulated[right] - left).clamp_min(1e-300)
    return edges[right - 1] + part * (edges[right] - edges[right - 1])


def _lloyd(ordered: Tensor, levels: Tensor) -> Tensor:
    """Levels (float64) moved to the means of the weights nearest to them until they rest. ``ordered`` is ascending."""
    sums = torch.cat([ordered.new_zeros(1, dtype=torch.float64), ordered.double().cumsum(0)])
    tolerance = 1e-7 * float(ordered[-1] - ordered[0])
    for _ in range(_LLOYD_STEPS):
        borders = torch.searchsorted(ordered, ((levels[1:] + levels[:-1]) / 2).float())
        borders = torch.cat([borders.new_zeros(1), borders, borders.new_tensor([ordered.numel()])])
        sizes = torch.diff(borders)
        means = torch.diff(sums[borders]) / sizes.clamp_min(1)
        moved = torch.where(sizes > 0, means, levels)
        if float((moved - levels).abs().max()) <= tolerance:
            break
        levels = moved
    return moved.sort().values


def _shortened(levels: Tensor) -> Tensor:
    """The ascending levels in half precision, those that it cannot tell apart as one; in single where it is too coarse.

    It is fine enough for levels of which the largest is at least 2 ** -10: the others are off by at most 2 ** -25.
    """
    largest = float(levels.abs().max())
    if largest == 0 or _COARSEST_HALF <= largest <= _HALF_MAX:
        return torch.unique_consecutive(levels.half())
    return levels.float()


def _nearest(flat: Tensor, levels: Tensor, keep_zeros: bool) -> Tensor:
    """The code (uint8) of the ascending level nearest to each weight; only zeros get the level 0 if ``keep_zeros``."""
    borders = (levels[1:] + levels[:-1]) / 2
    if keep_zeros:  # a small weight next to the level 0 goes to the nearest level on its side of it
        borders = torch.where(levels[:-1] == 0, 0.0, torch.where(levels[1:] == 0, -_SMALLEST, borders))
    return torch.bucketize(flat, borders).to(torch.uint8)


def linear(weight: Tensor, bits: int) -> Codes:
    """Symmetric whole numbers of 2 to 8 bits, times a scale for each row (first index); 0 stays exactly 0.

    A row's scale is its largest weight, divided by the largest number; with fewer than 8 bits, that of several smaller
    ones whose squared error is least. A vector is one row.

    Raises: UnsupportedInputError for other widths, and for weights that are not finite.
    """
    _check(weight, bits)
    if bits == 1:
        raise UnsupportedInputError("1 bit: linear quantization takes 2 to 8")
    numbers, best = _rounded(_rows(weight), bits)
    largest = 2 ** (bits - 1) - 1
    codes = (numbers + largest).to(torch.uint8).view(weight.shape)
    levels = torch.arange(-largest, largest + 1, dtype=torch.float32, device=weight.device)
    scales = best.flatten() if weight.dim() > 1 else best.flatten().expand(weight.shape).clone()
    return Codes(codes, levels, _stored(scales), linear=True)


def linear_values(weights: Sequence[Tensor], bits: int) -> list[Tensor]:
    """What `linear` makes of each of the weights, which it takes for finite, as values (float32).

    Weights with rows of one length are computed together, and nothing waits for their device: for every step of
    training. Scales out of the range of half precision in one of them keep those of all these in single precision.
    """
    groups: dict[int, list[int]] = {}
    for place, weight in enumerate(weights):
        groups.setdefault(_rows(weight).shape[1], []).append(place)
    found: dict[int, Tensor] = {}
    for places in groups.values():
        rows = [_rows(weights[place]) for place in places]
        numbers, scales = _rounded(torch.cat(rows), bits)
        values = (numbers * scales).split([part.shape[0] for part in rows])
        found |= {place: part.view(weights[place].shape) for place, part in zip(places, values, strict=True)}
    return [found[place] for place in range(len(weights))]


def _rows(weight: Tensor) -> Tensor:
    return weight.detach().float().reshape(weight.shape[0] if weight.dim() > 1 else 1, -1)


def _rounded(rows: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Whole numbers (as floats) and scales (rows, 1), see `linear`."""
    largest = 2 ** (bits - 1) - 1
    peak = rows.abs().amax(dim=1, keepdim=True)
    best = _scales(peak / largest)
    if bits < 8:
        least = _squared_error(rows, best, largest)
        for clip in _CLIPS[1:]:
            tried = _scales(peak * clip / largest)
            error = _squared_error(rows, tried, largest)
            better = error < least
            best = torch.where(better, tried, best)
            least = torch.where(better, error, least)
    return _numbers(rows, best, largest), best


def _scales(scales: Tensor) -> Tensor:
    """Scales rounded to half precision, if none of them is out of its range."""
    fits = ((scales == 0) | ((scales >= _HALF_MIN) & (scales <= _HALF_MAX))).all()
    return torch.where(fits, scales.half().float(), scales)


def _numbers(rows: Tensor, scales: Tensor, largest: int) -> Tensor:
    return (rows / torch.where(scales > 0, scales, 1)).round().clamp(-largest, largest)


def _squared_error(rows: Tensor, scales: Tensor, largest: int) -> Tensor:
    return (_numbers(rows, scales, largest) * scales - rows).square().sum(dim=1, keepdim=True)


def kmeans_rows(weight: Tensor, bits: int, levels: Tensor | None = None) -> Codes:
    """As `kmeans`, after each row (first index) was divided by its root mean square, which becomes its scale.

    For tables whose rows differ in size, such as embeddings of rare and frequent words. A vector is one row.

    Args:
        levels: as of `kmeans`.
    """
    if weight.dim() < 2:
        return kmeans(weight, bits, levels)
    if levels is None:
        _check(weight, bits)
    rows = weight.detach().float().flatten(1)
    scales = _scales(rows.double().square().mean(dim=1, keepdim=True).sqrt().float())
    rows = rows / torch.where(scales > 0, scales, 1)
    found = kmeans(rows, bits, levels)
    return Codes(found.codes.view(weight.shape), found.levels, _stored(scales.flatten(), wait=levels is None))


def _stored(scales: Tensor, wait: bool = True) -> Tensor:
    """The scales in half precision if they have no more digits; as they are unless the device may be waited for."""
    half = scales.half()
    return half if wait and bool((half.float() == scales).all()) else scales


CODEBOOKS = {"kmeans": kmeans, "kmeans_rows": kmeans_rows}
METHODS = CODEBOOKS | {"linear": linear}
