# SPDX-License-Identifier: Apache-2.0
"""Every error this package raises on purpose.

One tree, rooted at :class:`SnpCertsError`, grouped by what the caller does
next. An error says what was expected, what was found, where, and what to do.

========================  =========  =======================================
class                     exit code  what to do next
========================  =========  =======================================
RefusedError              1          the answer is no; asking again is no use
InputError, UsageError    2          mend the input or the call
RetryLaterError           3          the same call may work later
========================  =========  =======================================
"""

from __future__ import annotations

from typing import ClassVar

from snpcerts.printable import printable


class SnpCertsError(Exception):
    """Root of the tree.

    ``code`` is stable across releases and meant for programs; the message and
    the hint are meant for people and may change. Both are one printable line:
    messages quote foreign text.
    """

    exit_code: ClassVar[int] = 1
    code: str = "error"

    def __init__(self, message: str, *, hint: str | None = None, code: str | None = None) -> None:
        self.message = printable(message)
        self.hint = None if hint is None else printable(hint)
        super().__init__(self.message)
        if code is not None:
            self.code = code

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})" if self.hint else self.message


class RefusedError(SnpCertsError):
    """The request was understood and the answer is no."""

    code = "refused"


class UsageError(SnpCertsError):
    """The call itself is wrong: an option, an argument, an order of calls."""

    exit_code = 2
    code = "usage"


class InputError(SnpCertsError):
    """Input cannot be read: missing, unreadable, or not what it should be."""

    exit_code = 2
    code = "input"


class FormatError(InputError):
    """Bytes do not have the layout they should have.

    ``offset`` counts bytes from the start of the structure named by ``what``;
    ``field`` is the name the structure's specification uses.
    """

    code = "format"

    def __init__(
        self,
        what: str,
        problem: str,
        *,
        offset: int | None = None,
        field: str | None = None,
        hint: str | None = None,
        code: str | None = None,
    ) -> None:
        where = what
        if field is not None:
            where += f", {field}"
        if offset is not None:
            where += f" at offset {offset:#x}"
        super().__init__(f"{where}: {problem}", hint=hint, code=code)
        self.what = what
        self.problem = problem
        self.offset = offset
        self.field = field


class RetryLaterError(SnpCertsError):
    """Nothing is wrong with the request; the moment is wrong."""

    exit_code = 3
    code = "retry-later"
