# SPDX-License-Identifier: Apache-2.0
"""Rows and counts drawn for a terminal: no line wider than it is, and readable without colour."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from oumi.core.types.example import printable

if TYPE_CHECKING:
    from oumi.core.data.checks.statistics import Bin
    from oumi.core.types.example import Example

LEGEND = "⟦trained⟧  not trained   ▸ a turn begins   ↵ a new line"
_TARGET, _OTHER, _CONTROL, _MARK = ("bold green", "bold cyan"), ("default", "bright_black"), "magenta", "bold yellow"
"""Styles; the first two alternate from token to token, so that their borders show."""
_HEAD, _TAIL = 192, 64
"""Tokens that are drawn of the beginning and the end of a long document."""
_EIGHTHS = " ▏▎▍▌▋▊▉"
_MAX_BAR = 60


def console() -> Console:
    """Returns where to draw: plain text unless it is a terminal."""
    return Console(highlight=False, emoji=False, markup=False)


def rule(out: Console, title: str) -> None:
    """Prints a line across the terminal that begins with a title."""
    line = Text("── ", style="bright_black")
    line.append(title[: out.width - 4], style="bold")
    line.append(" " + "─" * max(out.width - len(line.plain) - 1, 0), style="bright_black")
    out.print(line, no_wrap=True, crop=True)


def shortened(text: str, width: int) -> str:
    """Returns a text of at most `width` characters, its end kept: of a path as many names as there is room for."""
    if len(text) <= width:
        return text
    end = text[len(text) - max(width - 1, 1) :]
    _, slash, names = end.partition("/")
    return f"…/{names}" if slash and len(names) > width // 3 else f"…{end}"


def draw_document(out: Console, example: Example, tokenizer: Any, is_full: bool) -> None:
    """Prints the tokens of a document, turn by turn; of a long one its beginning and its end, unless it `is_full`."""
    length = len(example.tokens)
    pieces = _pieces(example.tokens.tolist(), tokenizer)
    turns = turns_of(example, tokenizer)
    for number, (first, last) in enumerate(zip(turns, [*turns[1:], length], strict=True)):
        text, is_open = Text(), False
        for i in range(first, last):
            if not is_full and length > _HEAD + _TAIL + 1 and _HEAD <= i < length - _TAIL:
                if i in (_HEAD, first):
                    _close(text, is_open)
                    is_open = False
                    text.append(_gap(example, i, min(last, length - _TAIL)), style="italic bright_black")
                continue
            is_target = bool(example.is_target[i])
            if is_target != is_open:
                text.append("⟦" if is_target else "⟧", style=_MARK)
                is_open = is_target
            is_control = int(example.tokens[i]) in tokenizer.all_special_ids
            style = _CONTROL if is_control and not is_target else (_TARGET if is_target else _OTHER)[i % 2]
            text.append(_shown(pieces[i]), style=style)
        _close(text, is_open)
        _print_turn(out, text, "▸ " if len(turns) > 1 or number else "")


def turns_of(example: Example, tokenizer: Any) -> list[int]:
    """Returns where each turn begins: after the token that ends the answers, or any text."""
    tokens, is_target = example.tokens.tolist(), example.is_target
    special = set(tokenizer.all_special_ids)
    last_targets = [i for i in range(len(tokens)) if is_target[i] and (i + 1 == len(tokens) or not is_target[i + 1])]
    ends = {tokens[i] for i in last_targets if tokens[i] in special} | {tokenizer.eos_token_id}
    begins = [0]
    for i, token in enumerate(tokens[:-1]):
        if token in ends:
            start = i + 1
            while start < len(tokens) and tokens[start] not in special and not tokenizer.decode(tokens[start]).strip():
                start += 1  # white space between turns belongs to the turn before it
            if start < len(tokens):
                begins.append(start)
    return begins


def draw_histogram(out: Console, bins: Sequence[Bin]) -> None:
    """Prints bins as bars with their counts and shares."""
    total, most = sum(part.count for part in bins), max(part.count for part in bins)
    labels = [f"{part.low:,} or more" if part.high is None else f"{part.low:,} - {part.high:,}" for part in bins]
    wide, digits = max(map(len, labels)), len(f"{most:,}")
    room = min(out.width - wide - digits - 14, _MAX_BAR)
    for label, part in zip(labels, bins, strict=True):
        line = Text(f"    {label:>{wide}}  {part.count:>{digits},} {part.count / total:>4.0%} ")
        line.append(_bar(part.count / most, max(room, 4)), style="cyan")
        line.rstrip()
        out.print(line, no_wrap=True)


def sparkline(bins: Sequence[Bin]) -> str:
    """Returns bins as one character each."""
    most = max((part.count for part in bins), default=0)
    return "".join(" ▁▂▃▄▅▆▇█"[-(-8 * part.count // most)] for part in bins)


def draw_table(out: Console, rows: Sequence[Sequence[str]]) -> None:
    """Prints rows of which the first names the columns; the first column is shortened so that all of them fit."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    rest = sum(widths[1:]) + 2 * len(widths[1:])
    widths[0] = max(min(widths[0], out.width - 2 - rest), 8)
    for number, row in enumerate(rows):
        cells = [f"{shortened(row[0], widths[0]):<{widths[0]}}"]
        cells += [f"{cell:>{width}}" for cell, width in zip(row[1:], widths[1:], strict=True)]
        style = "bright_black" if number == 0 else "default"
        out.print(Text(("  " + "  ".join(cells)).rstrip(), style=style), no_wrap=True, crop=True)


def draw_note(out: Console, text: str, indent: int = 2, style: str = "") -> None:
    """Prints a sentence, wrapped and indented; a word that is too long is broken."""
    for line in Text(text, style=style).wrap(out, out.width - indent):
        line.rstrip()
        out.print(Text(" " * indent).append_text(line))


def counted(number: int, what: str) -> str:
    """Returns `1 row` or `2 rows`."""
    return f"{number:,} {what}" + ("s" if number != 1 else "")


def _print_turn(out: Console, text: Text, mark: str) -> None:
    text.rstrip()
    for number, line in enumerate(text.wrap(out, out.width - len(mark) - 1)):
        gutter = Text(mark if number == 0 else " " * len(mark), style=_MARK)
        out.print(gutter.append_text(line), no_wrap=True)


def _gap(example: Example, first: int, last: int) -> str:
    targets = int(example.is_target[first:last].sum())
    return f"\n… {counted(last - first, 'token')} left out here, {targets:,} of them trained: see --full …\n"


def _close(text: Text, is_open: bool) -> None:
    if is_open:
        text.append("⟧", style=_MARK)


def _pieces(tokens: list[int], tokenizer: Any) -> list[str]:
    """Returns the text of each token; the bytes of one character stand with the last of them."""
    return list(_decoded(tokens, tokenizer))


def _decoded(tokens: list[int], tokenizer: Any) -> Iterator[str]:
    waiting: list[int] = []
    for i, token in enumerate(tokens):
        waiting.append(token)
        text = tokenizer.decode(waiting)
        if text.endswith("\ufffd") and len(waiting) < 4 and i + 1 < len(tokens):
            yield ""
            continue
        yield text
        waiting = []


def _shown(text: str) -> str:
    """Returns a text whose control characters show; a line ends where it does, after a sign for it."""
    return "↵\n".join(printable(part) for part in text.split("\n"))


def _bar(share: float, width: int) -> str:
    eighths = round(8 * width * share)
    num_full, rest = divmod(max(eighths, 1) if share else 0, 8)
    return ("█" * num_full + _EIGHTHS[rest]).rstrip()
