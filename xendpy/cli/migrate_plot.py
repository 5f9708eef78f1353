"""A migration as a picture: pages sent and dirtied in each iteration, and the rate; plain SVG."""

from __future__ import annotations

import math
from collections.abc import Iterator
from html import escape
from typing import Final

from xendpy.cli import migrate_progress as progress
from xendpy.cli.migrate_progress import View

WIDTH, HEIGHT = 760, 420
LEFT, RIGHT, TOP, BOTTOM = 80, 80, 76, 58
# Okabe and Ito's palette: told apart by everybody.
SENT, DIRTIED, RATE, GREY = "#0072b2", "#e69f00", "#009e73", "#888888"
NICE: Final = (1, 2, 2.5, 5, 10)


def svg(view: View) -> str:
    """Return the picture as the text of an SVG file.

    Pages are on a logarithmic axis at the left: the first iteration sends all, the last few.
    """
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}"'
            ' font-family="sans-serif" font-size="12">',
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
            *_titles(view),
            *_Plot(view).elements(),
            "</svg>\n",
        ]
    )


def _titles(view: View) -> Iterator[str]:
    yield _text(LEFT, 24, f"Migration of {view.name}, peer {view.peer}", size=16)
    told = [f"{view.state}, {progress.span(view.elapsed_s)}", progress.size(view.sent_bytes)]
    if view.downtime is not None:
        told.append(f"downtime {progress.total_downtime(view.downtime)}")
    yield _text(LEFT, 42, ", ".join(told), colour="#444444")
    x = LEFT
    for colour, label in (
        (SENT, "pages sent"),
        (DIRTIED, "pages dirtied meanwhile"),
        (RATE, "rate, MiB/s"),
    ):
        yield f'<rect x="{x}" y="53" width="11" height="11" fill="{colour}"/>'
        yield _text(x + 16, 63, label)
        x += 36 + 7 * len(label)


class _Plot:
    """The axes and what is between them."""

    def __init__(self, view: View) -> None:
        self._rounds = view.rounds
        self._rates = [
            item["sent_pages"] * view.page_size / item["seconds"] / progress.MIB
            for item in view.rounds
        ]
        most = max(
            (max(item["sent_pages"], item["dirtied_pages"] or 0) for item in view.rounds),
            default=1,
        )
        self._decades = max(1, math.ceil(math.log10(max(most, 2))))
        self._step = _nice(max(self._rates, default=1.0) / 4)
        self._top_rate = self._step * 4
        self._slot = (WIDTH - LEFT - RIGHT) / max(1, len(view.rounds))

    def elements(self) -> Iterator[str]:
        yield from self._axes()
        for index in range(len(self._rounds)):
            yield from self._bars(index)
        yield from self._line()

    def _axes(self) -> Iterator[str]:
        for decade in range(self._decades + 1):
            y = self._pages_y(10**decade)
            yield _rule(y)
            yield _text(LEFT - 8, y + 4, f"{10**decade:,}", anchor="end")
        for number in range(5):
            rate = self._step * number
            yield _text(WIDTH - RIGHT + 8, self._rate_y(rate) + 4, f"{rate:g}", colour=RATE)
        middle = (TOP + HEIGHT - BOTTOM) / 2
        yield _text(18, middle, "pages (logarithmic)", anchor="middle", turned=True)
        x = WIDTH - 18
        yield _text(x, middle, "MiB/s", anchor="middle", turned=True, colour=RATE)
        yield _text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 12, "iteration", anchor="middle")
        if not self._rounds:
            yield _text(WIDTH / 2, middle, "no iteration has ended", anchor="middle")

    def _bars(self, index: int) -> Iterator[str]:
        item, left = self._rounds[index], LEFT + index * self._slot
        width = min(40.0, self._slot * 0.36)
        middle = left + self._slot / 2
        floor = HEIGHT - BOTTOM
        for key, colour, x in (
            ("sent_pages", SENT, middle - width),
            ("dirtied_pages", DIRTIED, middle),
        ):
            pages = int(item[key] or 0)
            if pages:
                y = self._pages_y(pages)
                yield (
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}"'
                    f' height="{max(1.0, floor - y):.1f}" fill="{colour}">'
                    f"<title>{pages:,} pages</title></rect>"
                )
        every = math.ceil(34 / self._slot)
        if item["last"]:
            yield _text(middle, floor + 30, "guest stopped", anchor="middle", colour=GREY)
        if index % every == 0 or item["last"]:
            yield _text(middle, floor + 16, str(int(item["index"]) + 1), anchor="middle")

    def _line(self) -> Iterator[str]:
        points = [
            (LEFT + (index + 0.5) * self._slot, self._rate_y(rate))
            for index, rate in enumerate(self._rates)
        ]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        yield f'<polyline points="{path}" fill="none" stroke="{RATE}" stroke-width="2"/>'
        for (x, y), rate in zip(points, self._rates, strict=True):
            yield (
                f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="white" stroke="{RATE}"'
                f' stroke-width="2"><title>{rate:.1f} MiB/s</title></circle>'
            )

    def _pages_y(self, pages: float) -> float:
        height = HEIGHT - TOP - BOTTOM
        return HEIGHT - BOTTOM - height * math.log10(max(1.0, pages)) / self._decades

    def _rate_y(self, rate: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * rate / self._top_rate


def _nice(step: float) -> float:
    """Return the round number at or above `step`."""
    if step <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(step))
    return float(next(power * factor for factor in NICE if power * factor >= step * 0.999))


def _rule(y: float) -> str:
    return f'<line x1="{LEFT}" y1="{y:.1f}" x2="{WIDTH - RIGHT}" y2="{y:.1f}" stroke="#dddddd"/>'


def _text(
    x: float,
    y: float,
    text: str,
    *,
    anchor: str = "start",
    colour: str = "#000000",
    size: int = 12,
    turned: bool = False,
) -> str:
    turn = f' transform="rotate(-90 {x:.1f} {y:.1f})"' if turned else ""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
        f' font-size="{size}"{turn}>{escape(text)}</text>'
    )
