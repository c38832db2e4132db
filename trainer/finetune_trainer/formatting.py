"""Numbers, counts, durations and lists as text, the same in messages, tables, logs and plots."""

from __future__ import annotations

import math
from collections.abc import Sequence


def format_count(count: int) -> str:
    """A count in at most four digits.

    >>> [format_count(n) for n in (842, 999_999, 22_713_216, 1_240_000_000)]
    ['842', '1M', '22.7M', '1.24B']
    """
    value, units = float(count), iter(("", "K", "M", "B", "T"))
    unit = next(units)
    while float(f"{value:.3g}") >= 1000 and unit != "T":
        value, unit = value / 1000, next(units)
    return f"{value:.0f}{unit}" if value >= 100 else f"{value:.3g}{unit}"


def format_bytes(count: int) -> str:
    """A size in binary units.

    >>> [format_bytes(n) for n in (842, 1_536, 3 * 2**30)]
    ['842 B', '1.5 KiB', '3 GiB']
    """
    value, units = float(count), iter(("B", "KiB", "MiB", "GiB", "TiB"))
    unit = next(units)
    while value >= 1024 and unit != "TiB":
        value, unit = value / 1024, next(units)
    return f"{value:.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def format_number(value: float) -> str:
    """A number as a manifest would spell it.

    >>> [format_number(x) for x in (0.05, 0.001, 2.5e-5, 3.0, 0.0, float("nan"))]
    ['0.05', '1e-3', '2.5e-5', '3', '0', 'nan']
    """
    if value == 0 or not math.isfinite(value) or 0.01 <= abs(value) < 10_000:
        return f"{value:.4g}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"


def format_percent(fraction: float) -> str:
    """A fraction as a percentage.

    >>> format_percent(0.05), format_percent(0.001)
    ('5%', '0.1%')
    """
    return f"{100 * fraction:.3g}%"


def format_duration(seconds: float) -> str:
    """A duration in its two largest units.

    >>> [format_duration(x) for x in (0.4, 42, 185, 7_800)]
    ['0 s', '42 s', '3 min 05 s', '2 h 10 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def pluralize(count: float, noun: str, plural: str | None = None) -> str:
    """A count with its noun.

    >>> pluralize(1, "step"), pluralize(1_200, "step"), pluralize(0.5, "epoch"), pluralize(2, "batch", "batches")
    ('1 step', '1,200 steps', '0.5 epochs', '2 batches')
    """
    return f"{count:,.10g} {noun if count == 1 else plural or f'{noun}s'}"


def join_some(items: Sequence[str], limit: int = 5) -> str:
    """A list that is cut after `limit` items.

    >>> join_some(["a", "b", "c", "d"], limit=2)
    'a, b and 2 more'
    """
    more = f" and {len(items) - limit} more" if len(items) > limit else ""
    return ", ".join(items[:limit]) + more
