# SPDX-License-Identifier: Apache-2.0
"""Cuts named functions, and all definitions that these need, out of C files.

It understands only code that has the kernel's shape: definitions begin in the first column.
First of all, it drops the ``#if`` branches that the configuration does not select: otherwise
an inline stub in an ``#else`` branch would take the place of the real function.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final


class CutError(Exception):
    """The source is not as expected. The message says in which way."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A macro, type, variable or function, or ("made") the use of a macro that defines functions.

    ``names`` are the names that it defines. A tag includes its keyword, as in "struct x".
    """

    kind: str
    names: tuple[str, ...]
    text: str
    file: str


_WORD: Final = re.compile(r"\b(?:(struct|union|enum)\s+)?([A-Za-z_]\w*)")
_COMMENT: Final = re.compile(r'/\*.*?\*/|//[^\n]*|("(?:\\.|[^"\\\n])*")', re.S)
_INVOCATION: Final = re.compile(r"[A-Z_][A-Z0-9_]*\([^;{]*\)$", re.S)
_ATTRIBUTES: Final = frozenset(
    (
        "__attribute__",
        "__printf",
        "__acquires",
        "__releases",
        "__must_hold",
        "__aligned",
        "__section",
    )
)


def selected(text: str, configuration: Collection[str]) -> str:
    """The text without its comments, and without ``#if`` branches that are not selected."""
    text = _COMMENT.sub(lambda found: found[1] or " ", text)
    text = re.sub(r"\\\n", "\x00", text)
    kept, stack = [], [(True, True)]  # (taken now, a branch was taken already)
    for line in text.split("\n"):
        directive = re.match(r"\s*#\s*(ifdef|ifndef|if|elif|else|endif)\b(.*)", line)
        if directive is None:
            if stack[-1][0]:
                kept.append(line)
            continue
        word, condition = directive[1], directive[2].replace("\x00", " ")
        if word in ("if", "ifdef", "ifndef"):
            outer = stack[-1][0]
            true = outer and _holds(word, condition, configuration)
            stack.append((true, true or not outer))
        elif word == "endif":
            stack.pop()
        else:
            done = stack[-1][1]
            true = not done and (word == "else" or _holds("if", condition, configuration))
            stack[-1] = (true, done or true)
    return "\n".join(kept).replace("\x00", "\\\n")


def _holds(word: str, condition: str, configuration: Collection[str]) -> bool:
    if word != "if":
        name = condition.split()[0]
        return (name in configuration) == (word == "ifdef")
    text = re.sub(
        r"(?:defined|IS_ENABLED|IS_REACHABLE|IS_BUILTIN)\s*\(?\s*(\w+)\s*\)?",
        lambda found: str(int(found[1] in configuration)),
        condition,
    )
    text = re.sub(r"\b[A-Za-z_]\w*(\s*\([^()]*\))?", "0", text)
    text = re.sub(r"\b(0[xX][0-9a-fA-F]+|\d+)[uUlL]*\b", r"\1", text)
    text = text.replace("&&", " and ").replace("||", " or ")
    text = re.sub(r"!(?!=)", " not ", text)
    try:
        return bool(eval(text, {"__builtins__": {}}))  # noqa: S307 - digits and operators only
    except SyntaxError:
        raise CutError(f"cannot evaluate #if {condition}") from None


def definitions(
    text: str, file: str, makers: Mapping[str, Iterable[str]] | None = None
) -> Iterator[Definition]:
    """Every definition in a text that :func:`selected` has returned.

    ``makers`` has the macros that define functions when they are invoked, and the
    names of these functions: ``{}`` stands for the macro's first argument.
    """
    for chunk in _chunks(text):
        if chunk.startswith("#"):
            macro = re.match(r"#\s*define\s+(\w+)", chunk)
            # "#define f f" only tells #ifdef that there is an f, which is defined elsewhere.
            if macro and chunk.split()[2:] != [macro[1]]:
                yield Definition("macro", (macro[1],), chunk, file)
            continue
        made = re.match(r"(\w+)\(\s*(\w+)", chunk)
        if made and makers and made[1] in makers:
            names = tuple(each.format(made[2]) for each in makers[made[1]])
            yield Definition("made", names, chunk, file)
            continue
        kind, names = _classify(chunk)
        if names:
            yield Definition(kind, names, chunk, file)


def _chunks(text: str) -> Iterator[str]:
    lines: list[str] = []
    depth = 0
    for line in re.sub(r"\\\n", "\x00", text).split("\n"):
        if not lines and line.startswith("#"):
            yield line.replace("\x00", "\\\n")
            continue
        if line.lstrip().startswith("#") or (not lines and not line.strip()):
            if line.lstrip().startswith("#"):
                yield line.lstrip().replace("\x00", "\\\n")
            continue
        lines.append(line.replace("\x00", "\\\n"))
        bare = re.sub(r"'(?:\\.|[^'\\])+'|\"(?:\\.|[^\"\\])*\"", "", line)
        depth += sum(bare.count(each) for each in "{(") - sum(bare.count(each) for each in ")}")
        if depth:
            continue
        chunk = "\n".join(lines).strip()
        if (
            chunk.endswith(";")
            or _INVOCATION.fullmatch(chunk)
            or (
                chunk.endswith("}")
                and not re.match(r"(typedef|struct|union|enum)\b[^()]*\{", chunk)
            )
        ):
            yield chunk
            lines = []


def _classify(chunk: str) -> tuple[str, tuple[str, ...]]:
    head, brace, _ = chunk.partition("{")
    head = re.sub(r"__attribute__\s*\(\(.*?\)\)", "", head)
    tag = re.match(
        r"(typedef\s+)?(struct|union|enum)\b\s*(?:\w+\s+)*?(\w*)\s*(?:__\w+\s*)?$", head.strip()
    )
    if brace and tag:
        names = [f"{tag[2]} {tag[3]}"] if tag[3] else []
        tail = chunk[chunk.rindex("}") + 1 :]
        if tag[1]:
            names += re.findall(r"\w+(?=\s*;)", tail)[:1]
        if tag[2] == "enum":
            body = chunk[chunk.index("{") + 1 : chunk.rindex("}")]
            names += re.findall(r"(?:^|,)\s*(\w+)", body)
        return "type", tuple(names)
    if chunk.startswith("typedef"):
        name = re.search(r"\(\s*\*\s*(\w+)\s*\)", chunk) or re.search(
            r"(\w+)\s*(?:\[[^]]*\])*\s*;$", chunk
        )
        return "type", (name[1],) if name else ()
    before = head.split("=")[0]
    called = [each for each in re.findall(r"(\w+)\s*\(", before) if each not in _ATTRIBUTES]
    if brace and called and "=" not in head:
        return "function", (called[0],)
    if called and "=" not in chunk:
        return "prototype", ()
    name = re.search(
        r"(\w+)\s*(?:\[[^]]*\]\s*)*(?:__\w+(?:\([^()]*\))?\s*)*$", before.rstrip("; \n\t")
    )
    if chunk.startswith(("extern", "struct ")) and "=" not in chunk and "static" not in chunk:
        return "prototype", ()
    return ("variable", (name[1],)) if name else ("prototype", ())


@dataclass(slots=True)
class Cutter:
    """The definitions of several files. If two of them have the same name, the first one counts."""

    configuration: Collection[str]
    makers: Mapping[str, Iterable[str]] = field(default_factory=dict)
    known: dict[str, Definition] = field(default_factory=dict)
    order: dict[Definition, int] = field(default_factory=dict)

    def add(self, root: Path, *files: str) -> None:
        """Read files. Raises :class:`CutError` if one is not there."""
        for file in files:
            path = root / file
            if not path.is_file():
                raise CutError(f"{root.name} has no {file}")
            text = selected(path.read_text(encoding="utf-8"), self.configuration)
            for each in definitions(text, file, self.makers):
                for name in each.names:
                    self.known.setdefault(name, each)
                self.order.setdefault(each, len(self.order))

    def cut(self, roots: Mapping[str, Iterable[str]], stop: Set[str]) -> list[Definition]:
        """The definitions of the roots and of all that they need, except those in ``stop``."""
        wanted: list[Definition] = []
        for file, names in roots.items():
            for name in names:
                found = self.known.get(name)
                if found is None or found.file != file:
                    where = "nowhere" if found is None else f"in {found.file}"
                    raise CutError(f"{name} should be in {file} and is {where}")
                wanted.append(found)
        taken: dict[Definition, None] = {}
        while wanted:
            each = wanted.pop()
            if each in taken:
                continue
            taken[each] = None
            for name in _named(each.text):
                found = self.known.get(name)
                if name not in stop and found is not None and stop.isdisjoint(found.names):
                    wanted.append(found)
        return self._ordered(taken)

    def _ordered(self, taken: Collection[Definition]) -> list[Definition]:
        """Sort: macros, then types, each after the types that it contains, then the rest."""
        sequence: dict[Definition, None] = {}

        def place(each: Definition) -> None:
            if each in sequence or each not in taken:
                return
            if each.kind == "type":
                names = _named(re.sub(r"\b(struct|union)\s+\w+\s*\*", "", each.text))
                for name in names:
                    found = self.known.get(name)
                    if found is not None and found.kind == "type" and found is not each:
                        place(found)
            sequence[each] = None

        kinds = ("macro", "type", "made", "variable", "function")
        for each in sorted(taken, key=lambda each: (kinds.index(each.kind), self.order[each])):
            place(each)
        return list(sequence)


def _named(text: str) -> set[str]:
    """Every name in a text, except for names of members."""
    # linux/args.h appends the number of arguments to the name of the macro to use.
    counted = re.findall(r"\bCONCATENATE\((\w+), COUNT_ARGS\(", text)
    found = {f"{name}{count}" for name in counted for count in range(4)}
    text = re.sub(r'"(?:\\.|[^"\\\n])*"', '""', text)
    text = re.sub(r"(?:->|(?<!\.)\.(?!\.))\s*\w+", "", text)
    for tag, name in _WORD.findall(text):
        found.add(f"{tag} {name}" if tag else name)
    return found


def source(cut: Iterable[Definition]) -> str:
    """One C source with the definitions. It declares each function before any function's body."""
    parts: list[str] = []
    functions = [each for each in cut if each.kind == "function"]
    declared = False
    for each in cut:
        if each.kind in ("variable", "function") and not declared:
            parts += [f"{function.text.partition('{')[0].strip()};" for function in functions]
            declared = True
        parts.append(each.text)
    return "\n".join(parts) + "\n"
