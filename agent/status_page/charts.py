"""Inline SVG: a line over the last minutes, and a bar. Looks come from page.css."""

from collections.abc import Callable, Sequence
from html import escape

from agent.status_page.history import SPAN_S, Point

WIDTH, HEIGHT = 300, 72
TOP = 4
"""Room for half a stroke above the highest point."""
GAP_S = 30.0
"""No line is drawn over a time of which nothing is known."""


def chart(title: str, points: Sequence[Point], unit: str, shown: Callable[[float], str]) -> str:
    """Return a figure: what it is, its value now, its peak, and the line that led there."""
    now, peak = (points[-1].value, max(p.value for p in points)) if points else (0.0, 0.0)
    said = f"{title}: {shown(now)} {unit} now, at most {shown(peak)} {unit} in 15 minutes"
    lines = _lines(points, peak)
    strokes = "".join(f'<path class="line" d="M{line}"/>' for line in map(_path, lines))
    areas = "".join(
        f'<path class="area" d="M{line[0][0]:.1f},{HEIGHT} L{_path(line)} '
        f'L{line[-1][0]:.1f},{HEIGHT} Z"/>'
        for line in lines
    )
    value = f"<b>{escape(shown(now))}</b> {escape(unit)}" if points else "<b>&ndash;</b>"
    peak_said = f"peak {escape(shown(peak))}" if points else "from the second sample on"
    return (
        f'<figure class="chart"><figcaption>{escape(title)}</figcaption>'
        f'<p class="now">{value}<span class="peak">{peak_said}</span></p>'
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(said)}">'
        f'<path class="grid" d="M0,{TOP} H{WIDTH} M0,{HEIGHT / 2 + TOP / 2} H{WIDTH}"/>'
        f"{areas}{strokes}"
        f'<path class="axis" d="M0,{HEIGHT} H{WIDTH}"/></svg>'
        '<p class="ticks"><span>15 min ago</span><span>now</span></p></figure>'
    )


def bar(share: float) -> str:
    """Return a bar that is filled to ``share``, 0.0 to 1.0."""
    share = min(1.0, max(0.0, share))
    return (
        '<svg class="bar" viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">'
        '<rect class="track" width="100" height="6"/>'
        f'<rect class="fill" width="{share * 100:.1f}" height="6"/></svg>'
    )


_Line = list[tuple[float, float]]


def _lines(points: Sequence[Point], peak: float) -> list[_Line]:
    """Return where ``points`` lie, in pieces of which each is without a gap."""
    lines: list[_Line] = []
    before: Point | None = None
    for point in points:
        if before is None or before.age_s - point.age_s > GAP_S:
            lines.append([])
        x = WIDTH * (1 - point.age_s / SPAN_S)
        y = HEIGHT - (HEIGHT - TOP) * (point.value / peak if peak else 0.0)
        lines[-1].append((x, y))
        before = point
    return lines


def _path(line: _Line) -> str:
    return " L".join(f"{x:.1f},{y:.1f}" for x, y in line)
