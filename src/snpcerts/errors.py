# SPDX-License-Identifier: Apache-2.0
"""Every error that snpcerts raises on purpose.

The errors are one tree, rooted at :class:`SnpCertsError` and grouped by what the caller does next.
An error says what was expected, what was found, where, and what to do.

- :class:`RefusedError`, exit code 1: do nothing; the same call would be refused again.
- :class:`InputError` and :class:`UsageError`, exit code 2: correct the input or the call.
- :class:`RetryLaterError`, exit code 3: the same call may work later.
"""

from __future__ import annotations

from typing import ClassVar

from snpcerts.printable import printable


class SnpCertsError(Exception):
    """The root of all snpcerts errors.

    ``code`` is for programs and stable across releases. The message and the hint are for people and
    may change. Each is escaped into one printable line, because it may quote untrusted text.
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
    """The request is valid, but it was refused or failed."""

    code = "refused"


class UsageError(SnpCertsError):
    """The call itself is wrong: an option, an argument, or the order of calls."""

    exit_code = 2
    code = "usage"


class InputError(SnpCertsError):
    """The input cannot be used: it is missing, unreadable, or not what was expected."""

    exit_code = 2
    code = "input"


class FormatError(InputError):
    """Bytes do not have the expected layout.

    ``offset`` counts bytes from the start of the structure named by ``what``. ``field`` is the
    field's name in the specification.
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
    """The request is valid but cannot be served now. The same call may work later."""

    exit_code = 3
    code = "retry-later"
