"""Numbers for people."""

THOUSAND, MILLION = 1_000, 1_000_000
KIB = 1024
MINUTE_S, HOUR_S, DAY_S = 60, 3600, 86_400
WHOLE_FROM = 10
"""From here on a fraction says nothing."""


def count(value: float) -> str:
    """Return 0.4, 12, 1,240, 12.4 k, 3.1 M."""
    if value >= MILLION:
        return f"{value / MILLION:,.1f} M"
    if value >= 10 * THOUSAND:
        return f"{value / THOUSAND:.1f} k"
    return f"{value:,.0f}" if value >= WHOLE_FROM or value == int(value) else f"{value:.1f}"


def size(value: float) -> str:
    """Return 0 B, 512 B, 1.5 KiB."""
    if value < KIB:
        return f"{value:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        value /= KIB
        if value < KIB:
            return f"{value:.1f} {unit}"
    return f"{value / KIB:,.1f} TiB"


def span(seconds: float) -> str:
    """Return 4 s, 3 min, 2 h 5 min, 3 d 4 h."""
    whole = int(seconds)
    if whole < MINUTE_S:
        return f"{whole} s"
    if whole < HOUR_S:
        return f"{whole // MINUTE_S} min"
    if whole < DAY_S:
        return f"{whole // HOUR_S} h {whole % HOUR_S // MINUTE_S} min"
    return f"{whole // DAY_S} d {whole % DAY_S // HOUR_S} h"
