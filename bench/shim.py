# SPDX-License-Identifier: Apache-2.0
"""Measures the cost of the shim: for a request that it serves, and for a VM's other exits.

A served request is compared with its system calls in C; on both sides, getppid(2) stands for
KVM_RUN. The other exits are port writes of a guest on the real KVM, with and without the shim:
first in a VM that is not an SNP VM, then in one that the shim takes for an SNP VM.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from bench.compare import Skip, compare

REQUESTS = 20_000
EXITS = 20_000
ROUNDS = 15
HERE = Path(__file__).parent


def _seconds(program: Path, arguments: list[str], preload: list[Path], certs: Path) -> float:
    environment = os.environ | {
        "LD_PRELOAD": ":".join(map(str, preload)),
        "SNPCERTS_CERTS_FILENAME": str(certs),
    }
    made = subprocess.run(
        [program, *arguments], capture_output=True, text=True, env=environment, check=True
    )
    return float(made.stdout) / 1e9


def main() -> None:
    """Print microseconds, and the ratios."""
    compiler = shutil.which("cc")
    if compiler is None:
        raise Skip("no C compiler")
    library = ["-std=c11", "-fPIC", "-shared", "-pthread", "-ldl"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        program, fake, shim = folder / "shim", folder / "fake.so", folder / "shim.so"
        native = HERE.parent / "native"
        sources: dict[Path, list[Path | str]] = {
            program: [HERE / "shim.c"],
            fake: [HERE / "shim_kvm.c", *library],
            shim: [native / "shim.c", native / "snpcerts.c", *library, "-fvisibility=hidden"],
        }
        for output, arguments in sources.items():
            argv = [compiler, "-O2", "-o", output, *arguments]
            subprocess.run(argv, check=True)
        certs = folder / "certs.bin"
        certs.write_bytes(b"\x01" * 8192)

        def take(arguments: list[str], *preload: Path) -> Callable[[], float]:
            return partial(_seconds, program, arguments, list(preload), certs)

        compare(
            "one served request, a table of 8 KiB",
            {
                "its system calls in C": take(["calls", str(certs), str(REQUESTS)]),
                "the shim": take(["requests", str(certs), str(REQUESTS)], shim, fake),
            },
            unit="us",
            scale=1e6,
            rounds=ROUNDS,
        )
        if not os.access("/dev/kvm", os.R_OK | os.W_OK):
            raise Skip("no /dev/kvm for the exits")
        for title, word, behind in (("a VM", "exits", []), ("an SNP VM", "snp", [fake])):
            compare(
                f"one exit of {title}, a port write",
                {
                    "without the shim": take([word, str(EXITS)], *behind),
                    "with the shim": take([word, str(EXITS)], shim, *behind),
                },
                unit="us",
                scale=1e6,
                rounds=ROUNDS,
            )


if __name__ == "__main__":
    main()
