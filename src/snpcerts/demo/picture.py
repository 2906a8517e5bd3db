# SPDX-License-Identifier: Apache-2.0
"""Draws one second of the demo's two runs as an SVG image, for light and dark pages.

Each run is a panel with the signing key, the writer's lock, and each guest's requests. A request is
a bar from reading the certificates to the signature, in the colour of the key that the certificates
certify.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final
from xml.sax.saxutils import escape

from snpcerts.certfile.span import SpanKind
from snpcerts.demo.conclusion import summary
from snpcerts.demo.course import Course, CourseRequest
from snpcerts.demo.tally import Tally

_SECOND: Final = 1.0
_STEP: Final = 0.1  # seconds between candidate positions of the window
_GUESTS: Final = 6  # guests that are drawn; the others are only counted
_WIDTH, _LEFT, _RIGHT = 860, 92, 16
_ROW, _BAR, _NOTE = 20, 12, 44
_TOP, _HEAD, _FOOT = 46, 24, 68
_NARROW: Final = 58  # pixels that a key's name needs

_UNDER_THE_LOCK: Final = (
    "the writer waits until the firmware has signed, and a new request waits for the writer"
)

_LIGHT: Final = (
    ("page", "#ffffff"),
    ("text", "#1f2328"),
    ("quiet", "#59636e"),
    ("line", "#d1d9e0"),
    ("k0", "#2f6fb7"),
    ("k1", "#1a8a72"),
    ("k2", "#b7791f"),
    ("k3", "#7d57b5"),
    ("none", "#9aa4ae"),
    ("hold", "#3d444d"),
    ("wait", "#b6bfc8"),
    ("bad", "#cf222e"),
    ("on-key", "#ffffff"),
)
_DARK: Final = (
    ("page", "#0d1117"),
    ("text", "#e6edf3"),
    ("quiet", "#9198a1"),
    ("line", "#30363d"),
    ("k0", "#58a6ff"),
    ("k1", "#3fb99a"),
    ("k2", "#d9a13c"),
    ("k3", "#b294e8"),
    ("none", "#6e7681"),
    ("hold", "#c9d1d9"),
    ("wait", "#4a525c"),
    ("bad", "#ff6a69"),
    ("on-key", "#0d1117"),
)


@dataclass(frozen=True, slots=True)
class DemoRunShown:
    """One run to draw: what happened when, and the counts."""

    course: Course
    tally: Tally


def picture_of(unlocked: DemoRunShown, locked: DemoRunShown, seconds: float) -> str:
    """Return the SVG text, which shows the same second of both runs. Each run took ``seconds``.

    That second is in the middle of the runs or, if the run without the lock has no mismatch there,
    at the nearest time at which it has one.
    """
    start = _window(unlocked.course, seconds)
    length = min(_SECOND, seconds)
    keys = _colours((unlocked.course, locked.course))
    parts: list[str] = []
    y = float(_TOP)
    for run, words in ((unlocked, ""), (locked, _UNDER_THE_LOCK)):
        panel = _Panel(run, start, length, keys, y, words)
        parts += panel.draw()
        y += panel.height + _NOTE
    y -= _NOTE / 2
    return "\n".join((*_head(y + _FOOT), *parts, *_axis(y, start, length), "</svg>", ""))


def _window(course: Course, seconds: float) -> float:
    """Return when the drawn second starts, in seconds after the start of the run."""
    last = max(0.0, seconds - _SECOND)
    middle = last / 2
    bad = [_at_end(each) - course.begin for each in course.requests() if each.mismatched]
    starts = [number * _STEP for number in range(int(last / _STEP) + 1)]
    starts.sort(key=lambda each: abs(each - middle))
    margin = _SECOND / 20
    for start in (middle, *starts):
        if any(start + margin <= at <= start + _SECOND - margin for at in bad):
            return start
    return middle


def _colours(courses: Iterable[Course]) -> dict[str, str]:
    """Return the CSS class of each signing key's colour, by the key's name."""
    names = sorted({name for course in courses for name in course.key_names.values()})
    return {name: f"k{number % 4}" for number, name in enumerate(names)}


def _at_end(request: CourseRequest) -> float:
    return request.end if request.signature is None else request.signature.end


def _head(height: float) -> Iterator[str]:
    yield (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_n(height)}" '
        f'width="{_WIDTH}" height="{_n(height)}" role="img" '
        'font-family="system-ui, -apple-system, Segoe UI, DejaVu Sans, sans-serif">'
    )
    yield "<title>Certificates and signatures while the key changes</title>"
    yield (
        "<desc>Two panels show the same second of two runs. Without the lock, some guests get "
        "certificates of one key and a report signed by the next. With the lock, none "
        "does.</desc>"
    )
    yield "<style>"
    yield from _rules(_LIGHT)
    yield "text { font-size: 12px } .head { font-size: 14px; font-weight: 600 }"
    yield ".small { font-size: 11px } .bold { font-weight: 600 }"
    yield "@media (prefers-color-scheme: dark) {"
    yield from _rules(_DARK)
    yield "}"
    yield "</style>"
    yield f'<rect width="{_WIDTH}" height="{_n(height)}" rx="6" class="page"/>'
    yield _text(
        16,
        26,
        "One second of two runs: guests attest while the firmware changes its key",
        "text head",
    )


def _rules(colours: Sequence[tuple[str, str]]) -> Iterator[str]:
    for name, colour in colours:
        yield f".{name} {{ fill: {colour} }} .s-{name} {{ stroke: {colour} }}"


class _Panel:
    def __init__(
        self,
        run: DemoRunShown,
        start: float,
        length: float,
        keys: dict[str, str],
        top: float,
        words: str,
    ) -> None:
        self._run = run
        self._words = words  # the caption, unless the panel shows a mismatch
        self._course = run.course
        self._begin = run.course.begin + start
        self._length = length
        self._keys = keys
        self._top = top
        self._shown = min(run.course.guests, _GUESTS)
        self._rows = top + _HEAD + 6
        self.height = _HEAD + 6 + (2 + self._shown) * _ROW
        self._bars: dict[tuple[str, float], list[str]] = {}  # by class and height

    def draw(self) -> Iterator[str]:
        good = self._run.tally.mismatched == 0
        title = f"{self._course.title}, the whole run: {summary(self._run.tally)}"
        yield _text(16, self._top + 14, title, "text bold" if good else "bad bold")
        for number in range(self._shown):
            y = self._rows + (2 + number) * _ROW + _ROW / 2
            yield _line(_LEFT, y, _WIDTH - _RIGHT, y, "s-line")
        changes = list(self._key_row())
        self._writer_row()
        for number in range(self._shown):
            yield _text(16, self._rows + (2 + number) * _ROW + 14, f"guest {number}", "quiet")
        above: list[str] = []
        bad: CourseRequest | None = None
        for request in self._course.requests():
            if request.guest < self._shown and (seen := self._request(request)) is not None:
                above += seen
                bad = bad or (request if request.mismatched else None)
        yield from (
            f'<path d="{"".join(bars)}" class="s-{kind}" stroke-width="{_n(height)}"/>'
            for (kind, height), bars in self._bars.items()
        )
        yield from (*changes, *above)
        yield from self._note(bad)

    def _note(self, bad: CourseRequest | None) -> Iterator[str]:
        words, kind = self._words, "quiet small"
        if bad is not None and bad.report is not None:
            result = bad.report.result
            words = (
                f"guest {bad.guest} at {_at_end(bad) - self._course.begin:.2f} s: report signed by "
                f"{result.key}, certificates for {result.certified or 'no known key'}"
            )
            kind = "bad small"
        yield _text(_LEFT, self._top + self.height + 14, words, kind)

    def _key_row(self) -> Iterator[str]:
        yield _text(16, self._rows + 14, "signing key", "quiet")
        yield _text(16, self._rows + _ROW + 14, "writer", "quiet")
        changes = self._course.keys()
        bottom = self._rows + (2 + self._shown) * _ROW
        for number, (since, name) in enumerate(changes):
            until = changes[number + 1][0] if number + 1 < len(changes) else float("inf")
            if (seen := self._across(since, until)) is None:
                continue
            x, width = seen
            self._bar(x, self._rows + _ROW / 2 - 1, width, self._keys.get(name, "none"), _ROW - 4)
            if width >= _NARROW:
                yield _text(x + 6, self._rows + 13, name, "on-key small bold")
            if since >= self._begin:
                yield _line(x, self._rows, x, bottom, "s-quiet", dash="2 3")

    def _writer_row(self) -> None:
        y = self._rows + _ROW * 1.5
        kinds = {SpanKind.LOCK_WAIT: "wait", SpanKind.LOCK_HELD: "hold"}
        for span in (span for update in self._course.updates for span in update.spans):
            name = kinds.get(span.kind)
            if name and (seen := self._across(span.start, span.end)) is not None:
                self._bar(seen[0], y, max(seen[1], 1.5), name, _BAR - 2)

    def _bar(self, x: float, y: float, width: float, kind: str, height: float) -> None:
        place = f"M{_n(x)} {_n(y)}h{_n(width)}"
        self._bars.setdefault((kind, height), []).append(place)

    def _request(self, request: CourseRequest) -> list[str] | None:
        """Add the request's bar to the panel.

        Returns the elements to draw over the bar, or None if the bar is not visible.
        """
        table = request.span(SpanKind.TABLE)
        start = request.exited if table is None else table.start
        end = _at_end(request)
        if request.report is None or (seen := self._across(start, end)) is None:
            return None
        x, width = seen
        y = self._rows + (2 + request.guest) * _ROW + (_ROW - _BAR) / 2
        result = request.report.result
        name = self._keys.get(result.certified, "none")
        if table is None:
            return [_box(x, y + 3, max(width, 2), _BAR - 6, "page s-none", 1, stroke=1)]
        self._bar(x, y + _BAR / 2, max(width, 2), name, _BAR)
        if not request.mismatched:
            return []
        edge = _box(x - 1, y - 1, max(width, 2) + 2, _BAR + 2, "open s-bad", 3, stroke=2)
        return [edge, _cross(x + width, y + _BAR / 2, 5)]

    def _across(self, start: float, end: float) -> tuple[float, float] | None:
        """Return the left edge and the width of a time span in the image; None if it is outside the
        window.
        """
        first = max(0.0, start - self._begin)
        last = min(self._length, end - self._begin)
        if last < first or first > self._length:
            return None
        scale = (_WIDTH - _LEFT - _RIGHT) / self._length
        return _LEFT + first * scale, (last - first) * scale


def _axis(y: float, start: float, length: float) -> Iterator[str]:
    scale = (_WIDTH - _LEFT - _RIGHT) / length
    yield _line(_LEFT, y + 6, _WIDTH - _RIGHT, y + 6, "s-quiet")
    for number in range(6):
        x = _LEFT + number / 5 * length * scale
        yield _line(x, y + 6, x, y + 10, "s-quiet")
        anchor = "end" if number == 5 else "middle"
        words = f"{start + number / 5 * length:.{1 if length == _SECOND else 2}f} s"
        yield _text(x, y + 23, words, "quiet small", anchor=anchor)
    y += 40
    for x, what in ((_LEFT, "k0"), (_LEFT + 14, "k1"), (_LEFT + 28, "k2"), (_LEFT + 42, "k3")):
        yield _box(x, y, 12, _BAR, what, 2)
    yield _text(_LEFT + 62, y + 10, "certificates in use, by their key", "quiet small")
    yield _box(_LEFT + 262, y, 12, _BAR, "k0", 2)
    yield _box(_LEFT + 261, y - 1, 14, _BAR + 2, "open s-bad", 3, stroke=2)
    yield _cross(_LEFT + 274, y + _BAR / 2, 5)
    yield _text(_LEFT + 288, y + 10, "signed by another key", "quiet small")
    yield _box(_LEFT + 424, y + 3, 12, _BAR - 6, "page s-none", 1, stroke=1)
    yield _text(_LEFT + 442, y + 10, "no certificates", "quiet small")
    yield _box(_LEFT + 540, y + 1, 12, _BAR - 2, "wait", 1)
    yield _text(_LEFT + 558, y + 10, "waits for the lock", "quiet small")
    yield _box(_LEFT + 668, y + 1, 12, _BAR - 2, "hold", 1)
    yield _text(_LEFT + 686, y + 10, "holds it", "quiet small")


def _text(x: float, y: float, words: str, kind: str, *, anchor: str = "start") -> str:
    place = "" if anchor == "start" else f' text-anchor="{anchor}"'
    return f'<text x="{_n(x)}" y="{_n(y)}" class="{kind}"{place}>{escape(words)}</text>'


def _box(
    x: float, y: float, width: float, height: float, kind: str, round_by: float, stroke: float = 0
) -> str:
    edge = f' stroke-width="{_n(stroke)}"' if stroke else ""
    hollow = ' fill="none"' if kind.startswith("open") else ""
    return (
        f'<rect x="{_n(x)}" y="{_n(y)}" width="{_n(width)}" height="{_n(height)}" '
        f'rx="{_n(round_by)}" class="{kind.removeprefix("open ")}"{edge}{hollow}/>'
    )


def _line(x: float, y: float, to_x: float, to_y: float, kind: str, *, dash: str = "") -> str:
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return (
        f'<path d="M{_n(x)} {_n(y)}L{_n(to_x)} {_n(to_y)}" class="{kind}" '
        f'stroke-width="1"{dashes}/>'
    )


def _cross(x: float, y: float, size: float) -> str:
    a, b, c, d = (_n(each) for each in (x - size, x + size, y - size, y + size))
    return f'<path d="M{a} {c}L{b} {d}M{a} {d}L{b} {c}" class="s-bad" stroke-width="2.5"/>'


def _n(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")
