"""Numbers, tables and names as a person reads them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def printable(text: str) -> str:
    """``text`` on one line without control characters: names from files must not steer a terminal."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in " ".join(text.split()))


def size(nbytes: float) -> str:
    return scaled(nbytes, "B")


def scaled(value: float, unit: str) -> str:
    """Three digits and a decimal prefix: 1.23 GB."""
    for prefix in ("", "k", "M", "G", "T"):
        if abs(value) < 999.5:
            digits = 0 if not prefix and value == int(value) else max(0, 3 - len(str(int(abs(value)))))
            return f"{value:.{digits}f} {prefix}{unit}"
        value /= 1000
    return f"{value:.3g} P{unit}"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 100:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


def table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> str:
    """Columns two spaces apart; those numbered in ``right`` are aligned there, the last one is not padded."""
    lines = [list(header), *(list(r) for r in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    numbers = set(right)
    return "\n".join(
        "  ".join(
            c.rjust(w) if i in numbers else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
