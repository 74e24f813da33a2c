"""Small drawings: the points of a line, and the shares of a bar. Numbers in, text for SVG out."""

from __future__ import annotations

from collections.abc import Sequence

WIDTH = 100.0
HEIGHT = 24.0


def line(values: Sequence[float | None], most: float) -> tuple[str, ...]:
    """Return the points of a line from left to right in a box of 100 by 24; a missing value cuts the line in two.

    :param most: the value at the top; 0 is the bottom
    """
    if len(values) < 2 or most <= 0:
        return ()
    step = WIDTH / (len(values) - 1)
    lines: list[str] = []
    points: list[str] = []
    for n, value in enumerate((*values, None)):
        if value is not None:
            height = HEIGHT - 1 - (HEIGHT - 2) * min(1.0, max(0.0, value / most))
            points.append(f"{n * step:.1f},{height:.1f}")
            continue
        if len(points) > 1:
            lines.append(" ".join(points))
        points = []
    return tuple(lines)


def share(part: float, whole: float) -> float:
    """Return `part` of `whole` in percent, 0 to 100."""
    return round(100 * min(1.0, max(0.0, part / whole)), 2) if whole > 0 else 0.0
