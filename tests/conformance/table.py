# SPDX-License-Identifier: Apache-2.0
"""The VMMs of vmm.c, and what each of them fails."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from snpcerts.conformance.vmm_check import CHECKS, Level

SOURCE = Path(__file__).with_name("vmm.c")

NO_LOCK = {"lock-kind", "lock-before-read", "lock-until-signed", "busy"}
NOT_READ_ANEW = {
    "table-delivered",
    "large-table",
    "too-small",
    "exact-pages",
    "lock-before-read",
    "busy",
    "file-replaced",
    "file-rewritten",
    "file-grown",
    "file-shrunk",
    "changed-before-lock",
    "missing-file",
    "unreadable-file",
    "empty-file",
    "permission-denied",
    "symbolic-link",
}
NO_FILE = {"missing-file", "unreadable-file", "empty-file", "permission-denied"}
# The next request takes the lock for held, too.
UNLOCKED_BY_ANOTHER = {"vcpus-keep-locks", "lock-before-read", "lock-until-signed"}
ADVICE = {check.id for check in CHECKS if check.level is Level.ADVICE}

# What each wrong VMM of vmm.c fails, or is advised against.
EXPECTED: dict[str, set[str]] = {
    "ATTRIBUTE_NOT_ASKED": {"attribute-asked", "enabled-where-supported"},
    "ONLY_HAS_ASKED": {"attribute-asked", "attribute-value"},
    "ENABLED_TOO_LATE": {"enabled"},
    "NEVER_ENABLED": {"enabled"},
    "NO_LOCK": NO_LOCK,
    "FLOCK_LOCK": NO_LOCK,
    "CLASSIC_LOCK": {"lock-kind", "vcpus-keep-locks"},
    "LOCK_ON_ANOTHER_FILE": NO_LOCK,
    "READS_BEFORE_LOCK": {"lock-before-read", "changed-before-lock"},
    "UNLOCKS_EARLY": {"lock-until-signed"},
    "NO_HANDSHAKE": {"lock-released"},
    "NO_INODE_CHECK": {"same-inode", "same-device"},
    "INODE_WITHOUT_DEVICE": {"same-device"},
    "WAITS_FOR_EVER": {"busy"},
    "BUSY_IS_EIO": {"busy"},
    "SHARED_DESCRIPTOR": {"vcpus-keep-locks", "lock-released"},
    "ONE_DESCRIPTOR_FOR_LIFE": {
        "same-inode",
        "same-device",
        "file-replaced",
        "symbolic-link",
        "vcpus-keep-locks",
        *NO_FILE,
    },
    "KEEPS_A_COPY": NOT_READ_ANEW,
    "POINTER_STAYS": {"short-read"},
    "PAGE_TOO_MANY": {"exact-pages", "large-table"},
    "NEGATIVE_RET": {"ret-supported"},
    "WRITES_BEFORE_CHECK": {"too-small"},
    "WRITES_WHOLE_PAGES": {"nothing-outside"},
    "EMPTY_IS_SUCCESS": {"no-buffer"},
    "SIZE_WRAPS": {"huge-npages"},
    "GPA_WRAPS": {"buffer-wraps"},
    "GPA_UNCHECKED": {"buffer-past-memory", "buffer-outside-memory", "buffer-wraps"},
    "ONE_SLOT_ONLY": {"buffer-across-slots"},
    "MISSING_ENDS_VM": {"missing-file", "permission-denied"},
    "MISSING_IS_EIO": NO_FILE,
    "MISSING_WRITES_NOTHING": NO_FILE,
    "UNREADABLE_ENDS_VM": {"unreadable-file", "read-fails"},
    "IMMEDIATE_EXIT_STAYS": {"immediate-exit-cleared"},
    "KICK_ERASED": {"kick-not-lost"},
    "STALE_EXIT_REASON": {"exit-reason-stale"},
    "LEAKS_DESCRIPTORS": {"descriptors"},
    "LAST_PAGE_REFUSED": {"buffer-at-slot-end"},
    "FIRST_VCPU_ONLY": {"vcpus-served"},
    "ONLY_THE_POSTED_EXIT": {"exit-number"},
    "PAGE_STATE_NOT_ENABLED": {"page-state"},
    "PAGE_STATE_REFUSED": {"page-state"},
    "PAGE_STATE_IGNORED": {"page-state"},
    "LARGE_PAGES_REFUSED": {"page-state"},
    "CHILD_KEEPS_LOCK": {"lock-released", "descriptors", "lock-ends-with-vmm"},
    "CACHED_BY_MTIME": {"lock-before-read", "file-rewritten"},
    "PROBES_THE_LOCK": {"lock-before-read", "lock-until-signed", "lock-kind"},
    "SIZE_BEFORE_LOCK": {"changed-before-lock"},
    "LOCK_TIMES_OUT": {"slow-firmware"},
    "LOCKS_AGAIN": {"lock-until-signed"},
    "INODE_CHECKED_ONCE": {"same-inode"},
    "MTIME_FOR_INODE": {"same-inode"},
    "LINKS_FOR_INODE": {"same-inode", "same-device"},
    "PATH_READ_AGAIN": {"replaced-after-lock"},
    "SIZE_OF_PATH": {"replaced-after-lock"},
    "LOCK_ERROR_IGNORED": {"lock-fails"},
    "READ_ERROR_IGNORED": {"read-fails"},
    "HANDSHAKE_ERROR_KEEPS_LOCK": {"handshake-fails"},
    "STALE_BYTES_BEHIND": {"no-stale-bytes"},
    "WORDS_ONLY": {"large-table"},
    "LIMIT_16_KIB": {"large-table"},
    "LIMIT_64_KIB": {"large-table"},
    "NO_BUFFER_WRITTEN": {"no-buffer"},
    "EMPTY_FILE_UNWRITTEN": {"empty-file"},
    "EMPTY_FILE_IS_EIO": {"empty-file"},
    "FORBIDDEN_IS_EIO": {"permission-denied"},
    "LINK_COMPARED": {"symbolic-link"},
    "LINK_REFUSED": {"symbolic-link"},
    "LEAKS_WHEN_BUSY": {"descriptors"},
    "LEAKS_WHEN_REPLACED": {"descriptors"},
    "LEAKS_ON_ERROR": {"descriptors"},
    "CREATES_FILE": {"missing-file", "read-only-file"},
    "OPENS_FOR_WRITING": {"read-only-file"},
    "PEEKS_AND_COPIES": {"lock-before-read"},
    "COPY_FOR_SECOND_VCPU": {"vcpus-served"},
    "GIVES_UP_WHEN_BUSY": {"busy"},
    "NEEDED_ONLY_GROWS": {"too-small"},
    "OPEN_ERROR_IS_EIO": {"open-fails"},
    "LEAKS_ON_EMPTY_FILE": {"descriptors"},
    "LEAKS_MAPPINGS": {"nothing-left"},
    "LEAKS_THREADS": {"nothing-left"},
    "LEAKS_CHILDREN": {"nothing-left"},
    "LEAKS_MEMORY": {"memory-bounded"},
    "LEAKS_MEMORY_WHEN_BUSY": {"memory-bounded"},
    "LEAKS_A_LITTLE": {"memory-bounded"},
    "WAITS_ADD_UP": {"busy"},
    "READS_TWICE": {"short-read"},
    "NEEDS_ONE_MORE": {"too-small"},
    "READ_ERROR_IS_EIO": {"read-fails", "lock-fails"},
    "KICK_ERASED_WHEN_BUSY": {"kick-not-lost"},
    "KICK_ERASED_WHEN_TOO_SMALL": {"kick-not-lost"},
    "KICK_ERASED_WITHOUT_FILE": {"kick-not-lost"},
    "CLOSES_ANOTHERS": {"vcpus-keep-locks"},
    "LATE_LOCK_STAYS": {"lock-released"},
    "GPA_TRUNCATED": {"buffer-outside-memory"},
    "WAITS_TOO_LONG": {"busy"},
    "VALUE_IGNORED": {"attribute-value"},
    "LOGS_EACH_TRY": {"log-bounded"},
    "LOGS_EACH_BUSY": {"log-bounded"},
    "SPINS": {"waits-asleep"},
    "INODE_CHECKED_TWICE": {"same-inode"},
    "REMOVED_IS_SAME": {"missing-file"},
    "REMOVED_IS_EIO": {"missing-file"},
    "LINK_RESOLVED_AT_START": {"symbolic-link"},
    "SIZE_WITHOUT_LOCK": {"busy"},
    "SIZE_KEPT": {"no-buffer"},
    "ONE_BUFFER": {"vcpus-served"},
    "SHARES_BUFFER": {"page-state"},
    "LOGS_EACH_EIO": {"log-bounded"},
    "LEAKS_TIMERS": {"nothing-left"},
    "LOCKS_FROM_END": {"lock-kind"},
    "LOCKS_FIRST_BYTE": {"lock-kind"},
    "OPENS_TWICE": {"replaced-after-lock"},
    "LOCKS_TWICE": {"changed-before-lock"},
    "READS_BESIDE_LOCK": {"lock-before-read"},
    "LOCK_STAYS_ON_ERROR": {"lock-released"},
    "LOCK_STAYS_ON_EMPTY_FILE": {"lock-released"},
    "UNCOUNTED_ON_READ_ERROR": {"vcpus-keep-locks"},
    "JOINS_WITHOUT_LOCK": {"vcpus-keep-locks"},
    "NAME_FOR_INODE": {"same-inode", "same-device"},
    "CTIME_FOR_INODE": {"same-inode"},
    "CACHED_BY_CTIME": {"file-rewritten"},
    "BLOCKS_FOR_SIZE": {"too-small"},
    "BUFFER_OF_NPAGES": {"memory-bounded"},
    "LEAKS_MEMORY_ON_EIO": {"memory-bounded"},
    "LEAKS_MEMORY_WITHOUT_FILE": {"memory-bounded"},
    "GIVES_UP_AFTER_SIX": {"busy"},
    "WAIT_GROWS": {"busy"},
    "INHERITABLE": {"lock-ends-with-vmm"},
    "READS_INTO_GUEST": {"read-fails"},
    "EMPTY_UNCHECKED": {"buffer-outside-memory"},
    "LEAKS_ON_SHORT_READ": {"descriptors"},
    "STALE_WHEN_BUSY": {"exit-reason-stale"},
    "JOINS_OLD_FILE": {"vcpus-served"},
    "PAGE_STATE_ONE_SLOT": {"page-state"},
    "ONE_DESCRIPTION": UNLOCKED_BY_ANOTHER,
    "UNCOUNTED_ON_ENOSPC": UNLOCKED_BY_ANOTHER,
}
# Styles of right VMMs, and what cannot be judged of each.
RIGHT: dict[str, set[str]] = {
    "NOTHING": set(),
    "RIGHT_DUPLICATE": set(),
    "RIGHT_HELPER": set(),
    "RIGHT_MAPPING": {"short-read", "read-fails"},
    "RIGHT_COUNTED": set(),
    "RIGHT_ONE_AT_A_TIME": set(),
    "RIGHT_EXCLUSIVE": set(),
    "RIGHT_CHECKS_AT_START": set(),
    "RIGHT_SIGWAIT_IN_MAIN": set(),
    "RIGHT_CHILD_RUNS": set(),
    "RIGHT_PIECES": set(),
    "RIGHT_PEEKS": set(),
    "RIGHT_MAIN_LOOP": set(),
    "RIGHT_KEPT_MAPPING": {"short-read", "read-fails"},
    "RIGHT_SIGNAL_MASK": set(),
    "RIGHT_LATE_CLOSE": set(),
    "RIGHT_SPLICES": {"short-read"},
    "RIGHT_JOINS": set(),
    "RIGHT_READS_AGAIN": set(),
    "RIGHT_SUBMITS": {"short-read"},
    "RIGHT_OWN_LINK": set(),
    "RIGHT_CONTROL": set(),
    "RIGHT_CLONES": set(),
    "RIGHT_TRIES_ONCE": set(),
    "RIGHT_THREADS": set(),
    "RIGHT_OWN_TABLES": {"short-read"},
}
# Never judged on this machine without the right to mount.
PRIVILEGED = set() if os.geteuid() == 0 else {"same-device"}
# What tells the styles apart: who holds the lock, by which descriptor, and who is stopped.
TELLING = ("lock-until-signed", "vcpus-keep-locks", "kick-not-lost", "busy", "same-device")


def compile_vmm(wrong: str, directory: Path) -> Path:
    """Compile vmm.c, right (``NOTHING``) or wrong in one way; return the program."""
    program = directory / wrong.lower()
    if not program.exists():
        argv = ["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized"]
        argv += ["-Wno-unused-result", "-pthread", f"-DWRONG={wrong}", "-o", str(program)]
        made = subprocess.run([*argv, str(SOURCE)], capture_output=True, text=True)
        assert made.returncode == 0, made.stderr
    return program


def only(*checks: str) -> tuple[str, ...]:
    return tuple(word for check in checks for word in ("--only", check))
