"""Values -> inline SVG. Colours are classes of the page's style, which has them for light and for dark.

A chart is 360 units wide, so that its letters can be read on a phone, and has a title that is read aloud. Every mark
has a ``<title>``, which is shown under the pointer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from typing import Final

WIDTH: Final = 360
_LINE = 37  # height of a bar with its words


def svg(height: float, title: str, marks: Sequence[str]) -> str:
    """A picture with a name for those who do not see it."""
    body = "".join(marks)
    return f'<svg viewBox="0 0 {WIDTH} {height:g}" role="img" aria-label="{escape(title)}">{body}</svg>'


def _rect(x: float, y: float, width: float, height: float, style: str, said: str) -> str:
    return (
        f'<rect x="{x:.2f}" y="{y:.2f}" width="{max(width, 0):.2f}" height="{height:.2f}" class="{style}">'
        f"<title>{escape(said)}</title></rect>"
    )


def _text(x: float, y: float, words: str, style: str = "") -> str:
    return f'<text x="{x:.2f}" y="{y:.2f}" class="{style}">{escape(words)}</text>'


def stacked_bars(title: str, rows: Mapping[str, Mapping[str, int]], unit: int, unit_name: str) -> str:
    """rows: label -> part -> size. A bar for each row, all on one scale, the parts in classes c0, c1, ..."""
    longest = max(sum(parts.values()) for parts in rows.values()) or 1
    marks = []
    for n, (label, parts) in enumerate(rows.items()):
        y, x, total = n * _LINE, 0.0, sum(parts.values())
        marks += [
            _text(0, y + 12, label, "strong" if n == 0 else ""),
            _text(WIDTH, y + 12, _size(total, unit, unit_name), "end"),
        ]
        for m, (part, size) in enumerate(parts.items()):
            width = size / longest * WIDTH
            said = f"{label}, {part}: {_size(size, unit, unit_name)}, {size / (total or 1):.1%}"
            marks.append(_rect(x, y + 18, width - (0.8 if width > 2 else 0), 10, f"c{m}", said))
            x += width
    return svg(len(rows) * _LINE, title, marks)


def _size(n: int, unit: int, unit_name: str) -> str:
    return f"{n / unit:,.1f} {unit_name}"


def columns(title: str, labels: Sequence[str], shares: Sequence[float], expected: float, words: str) -> str:
    """A column for each share, from 0, and a line where all would be if none were preferred."""
    height, base = 110, 128
    top = 1.16 * max(expected, *shares)
    step = WIDTH / len(shares)
    marks = []
    for n, (label, share) in enumerate(zip(labels, shares, strict=True)):
        tall = share / top * height
        said = f"{label}: {share:.3%}, expected {expected:.3%}"
        marks.append(_rect(n * step + step * 0.1, base - tall, step * 0.8, tall, "bar", said))
        if len(shares) <= 8:
            x = n * step + step / 2
            marks += [_text(x, base + 16, label, "middle"), _text(x, base - tall + 18, f"{share:.2%}", "middle on")]
    y = base - expected / top * height
    marks += [
        f'<line x1="0" x2="{WIDTH}" y1="{y:.2f}" y2="{y:.2f}" class="expected"/>',
        _text(WIDTH, y - 6, words, "end small"),
    ]
    return svg(base + (22 if len(shares) <= 8 else 2), title, marks)


def heat_map(
    title: str,
    rows: Sequence[str],
    heads: Sequence[str],
    cells: Sequence[Sequence[float | None]],
    said: Sequence[Sequence[str]],
) -> str:
    """cells: -1 to 1, 0 in the middle, None for nothing there; said: the words of each cell."""
    left, top = 26, (18 if heads else 0)
    width, height = (WIDTH - left) / len(cells[0]), max(5.0, min(14.0, 260 / len(rows)))
    marks = [_text(left + (n + 0.5) * width, 11, head, "middle small") for n, head in enumerate(heads)]
    every = max(1, round(14 / height))
    for r, (row, line, words) in enumerate(zip(rows, cells, said, strict=True)):
        y = top + r * height
        if r % every == 0:
            marks.append(_text(left - 5, y + min(height, 14) / 2 + 4, row, "end small"))
        for c, (cell, word) in enumerate(zip(line, words, strict=True)):
            if cell is not None:
                style = f'{"more" if cell >= 0 else "less"}" style="fill-opacity:{min(abs(cell), 1):.3f}'
                marks.append(_rect(left + c * width, y, width - 0.6, height - 0.6, style, word))
    return svg(top + len(rows) * height, title, marks)


def rates(title: str, rows: Sequence[tuple[str, float, float]]) -> str:
    """rows: (label, tokens per second, the machine's limit). A bar inside the frame of its limit."""
    longest = max(max(rate, limit) for _, rate, limit in rows) or 1
    marks = []
    for n, (label, rate, limit) in enumerate(rows):
        y = n * _LINE
        said = f"{label}: {rate:,.1f} tokens/s of {limit:,.1f}"
        share = f"{rate:,.1f} tok/s · {rate / limit:.0%}"
        marks += [_text(0, y + 12, label), _text(WIDTH, y + 12, share, "end")]
        marks += [
            _rect(0, y + 18, limit / longest * WIDTH, 10, "limit", said),
            _rect(0, y + 18, rate / longest * WIDTH, 10, "bar", said),
        ]
    return svg(len(rows) * _LINE, title, marks)
