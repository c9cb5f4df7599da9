"""From stored values of a grey DICOM image to 8 bits: one table for all pixels.

The way of PS3.3 C.11 and PS3.4 N.2: Modality LUT or rescale, then VOI LUT or window, then black and white swapped for
MONOCHROME1. The lookups are our own: those of pydicom 3 keep indices in the type of the entries, which wraps those of
8-bit entries round, and read no Modality LUT of 10 to 15 bits.
"""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Integer, UInt8

_AT_ONCE = 1 << 20  # pixels that are counted or looked up at a time: an index of each takes eight bytes

Stored = Integer[np.ndarray, "H W"]
Values = Float[np.ndarray, " values"]
Levels = UInt8[np.ndarray, " values"]
Entries = Float[np.ndarray, " entries"]  # of a lookup table


class Histogram(NamedTuple):
    """How many pixels have each stored value from the lowest to the highest one."""

    lowest: int
    counts: Int[np.ndarray, " values"]

    @property
    def stored(self) -> Values:
        """The values."""
        return np.arange(self.lowest, self.lowest + len(self.counts), dtype=np.float64)


ToLevels = Callable[[Any, Histogram, bool], Levels]


def to_grey(dataset: Any, pixels: Stored, inverted: bool, levels: ToLevels) -> UInt8[np.ndarray, "H W"]:
    """The 8-bit value of each pixel; `inverted` where the lowest value is white."""
    lowest, highest = int(pixels.min()), int(pixels.max())
    counts = np.zeros(highest - lowest + 1, np.int64)
    for rows in _parts(pixels):
        counts += np.bincount((pixels[rows].astype(np.int64) - lowest).ravel(), minlength=len(counts))
    table = levels(dataset, Histogram(lowest, counts), inverted)
    grey = np.empty(pixels.shape, np.uint8)
    for rows in _parts(pixels):
        grey[rows] = table[pixels[rows].astype(np.int64) - lowest]
    return grey


def window_levels(dataset: Any, histogram: Histogram, inverted: bool) -> Levels:
    """As a viewer first shows the image: see `common.data.dicom.read_dicom`."""
    padding = _padding(dataset, histogram.stored)
    values = _rescaled(dataset, histogram.stored)
    if not np.isfinite(values).all():
        raise ValueError("a rescaled value is not finite")
    shares = _through_lut(dataset, values)
    if shares is None:
        shares = _through_window(dataset, values)
    if shares is None:
        used = values[(histogram.counts > 0) & ~padding]
        shares = _spread(values, used) if used.size else np.zeros_like(values)
    shares = np.clip(1 - shares if inverted else shares, 0, 1)
    shares[padding] = 0
    return np.floor(shares * 255 + 0.5).astype(np.uint8)


def equalized_levels(dataset: Any, histogram: Histogram, inverted: bool) -> Levels:
    """As MIMIC-CXR-JPG was made: see `common.data.dicom.read_dicom`."""
    shifted = histogram.stored - histogram.lowest
    levels = (shifted / max(shifted[-1], 1) * 255).astype(np.uint8)  # truncated
    levels = 255 - levels if inverted else levels
    counts = np.bincount(levels, weights=histogram.counts, minlength=256)
    return equalizing_table(counts.astype(np.int64))[levels]


def equalizing_table(counts: Int[np.ndarray, "256"]) -> UInt8[np.ndarray, "256"]:
    """What OpenCV's `equalizeHist` makes of each level of an image with this histogram.

    The darkest level in use becomes 0 and each other one the share of pixels above the darkest that it reaches, in
    float32 and rounded to even. An image of one level stays as it is.
    """
    darkest = int(np.flatnonzero(counts)[0])
    others = int(counts.sum() - counts[darkest])
    if not others:
        return np.arange(256, dtype=np.uint8)
    above = counts.copy()
    above[: darkest + 1] = 0
    scale = np.float32(255) / np.float32(others)
    return np.clip(np.rint(np.cumsum(above).astype(np.float32) * scale), 0, 255).astype(np.uint8)


def _parts(pixels: Stored) -> Iterator[slice]:
    step = max(_AT_ONCE // pixels.shape[1], 1)
    return (slice(start, start + step) for start in range(0, len(pixels), step))


def _padding(dataset: Any, stored: Values) -> Bool[np.ndarray, " values"]:
    """Which stored values stand for no part of the image (PS3.3 C.7.5.1.1.2)."""
    first = dataset.get("PixelPaddingValue")
    if first is None:
        return np.zeros(len(stored), bool)
    last = dataset.get("PixelPaddingRangeLimit")
    ends = int(first), int(first if last is None else last)
    return (stored >= min(ends)) & (stored <= max(ends))


def _rescaled(dataset: Any, stored: Values) -> Values:
    """Values after the Modality LUT, or rescaled (PS3.3 C.11.1)."""
    if dataset.get("ModalityLUTSequence"):
        entries, first = _lut(dataset, dataset.ModalityLUTSequence[0])
        return _looked_up(entries, first, stored)
    slope, intercept = dataset.get("RescaleSlope"), dataset.get("RescaleIntercept")
    if slope is None or intercept is None:
        return stored
    return stored * float(slope) + float(intercept)


def _through_lut(dataset: Any, values: Values) -> Values | None:
    """Shares of white by the first VOI LUT (PS3.3 C.11.2.1.1), from its lowest entry to its highest."""
    if not dataset.get("VOILUTSequence"):
        return None
    entries, first = _lut(dataset, dataset.VOILUTSequence[0])
    return _spread(_looked_up(entries, first, np.rint(values)), entries)


def _through_window(dataset: Any, values: Values) -> Values | None:
    """Shares of white by the first window (PS3.3 C.11.2.1.2); None where there is none, or an impossible one."""
    centre, width = (_first_number(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    function = str(dataset.get("VOILUTFunction") or "LINEAR")
    if centre is None or width is None or width < (1 if function == "LINEAR" else 1e-6):
        return None
    if function == "SIGMOID":
        return 1 / (1 + np.exp(np.clip(-4 * (values - centre) / width, -700, 700)))
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    elif function != "LINEAR_EXACT":
        return None
    inside = (values - centre) / max(width, 1e-6) + 0.5
    return np.where(values <= centre - width / 2, 0, np.where(values > centre + width / 2, 1, inside))


def _first_number(value: Any) -> float | None:
    """The first of what may be several numbers; None where there is none, or it is not finite."""
    if value is not None and not isinstance(value, str | int | float) and hasattr(value, "__len__"):
        value = value[0] if len(value) else None
    if value is None or value == "":
        return None
    number = float(value)
    return number if np.isfinite(number) else None


def _lut(dataset: Any, item: Any) -> tuple[Entries, int]:
    """The entries of a lookup table, and the value of which the first one is."""
    count, first, _ = (int(number) for number in item.LUTDescriptor)
    count, data = count or 1 << 16, item.LUTData
    if isinstance(data, bytes):
        size = 1 if len(data) in (count, count + count % 2) else 2
        order = "<" if dataset.original_encoding[1] else ">"
        entries = np.frombuffer(data, np.dtype(f"{order}u{size}"), count)
    else:
        entries = np.atleast_1d(np.asarray(data, np.float64))
    if len(entries) < count:
        raise ValueError("fewer entries than the lookup table claims")
    return entries[:count].astype(np.float64), first


def _looked_up(entries: Entries, first: int, values: Values) -> Values:
    """Values below the first entry's have the first entry, those above the last one's the last."""
    return entries[np.clip(values - first, 0, len(entries) - 1).astype(np.int64)]


def _spread(values: Values, used: Float[np.ndarray, " used"]) -> Values:
    """Shares of the way from the lowest of `used` to the highest."""
    lowest, highest = used.min(), used.max()
    return (values - lowest) / (highest - lowest) if highest > lowest else np.zeros_like(values)
