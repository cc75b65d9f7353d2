"""Numbers as the page shows them."""

from __future__ import annotations


def time(microseconds: float) -> str:
    """Four digits, or fewer where the others are 0, and a unit."""
    for unit, scale in (("ns", 1e-3), ("µs", 1.0), ("ms", 1e3)):
        if microseconds < 1000 * scale:
            return f"{microseconds / scale:.4g} {unit}"
    return f"{microseconds / 1e6:.4g} s"


def count(n: int) -> str:
    return f"{n:,}"


def counted(n: int, noun: str) -> str:
    """2 files"""
    return f"{count(n)} {noun}{'' if n == 1 else 's'}"


def times(ratio: float) -> str:
    """2.31×"""
    return f"{ratio:.3g}×" if ratio < 999.5 else f"{ratio:,.0f}×"


def share(ratio: float) -> str:
    """43 %, or with a digit more where it is small."""
    return f"{100 * ratio:.2g} %" if ratio < 0.0995 else f"{100 * ratio:.0f} %"


def lasting(seconds: float) -> str:
    """In the two largest units that fit."""
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60:,} h {minutes % 60} min"
