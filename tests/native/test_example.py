# SPDX-License-Identifier: Apache-2.0
"""The installed library, and the VMM in C of ``examples/``. The VMMs in Rust and Go are
built and judged by ``make test-clients``."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from snpcerts.emulator.frontdoor import seccomp

from ..example_vmms import EXAMPLES, ROOT, assert_passes, assert_short, installed_library, run
from ..sizes import FULL

# The checks that VMMs without the library are likely to fail. The full size runs all checks.
LIKELY_MISTAKES = (
    *("table-delivered", "exact-pages", "same-inode", "vcpus-keep-locks", "busy"),
    *("lock-until-signed", "missing-file", "kick-not-lost", "page-state"),
)


@pytest.fixture(scope="module")
def variables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment variables to build with the installed library."""
    for tool in ("make", "cc", "pkg-config"):
        if shutil.which(tool) is None:
            pytest.skip(f"no {tool} on this machine")
    return installed_library(tmp_path_factory.mktemp("prefix"))


def test_the_library_is_installed_with_all_that_a_build_needs(variables: dict[str, str]) -> None:
    prefix = Path(variables["LD_LIBRARY_PATH"]).parent
    assert (prefix / "include" / "snpcerts.h").read_bytes() == (
        ROOT / "native" / "include" / "snpcerts.h"
    ).read_bytes()
    flags = run(["pkg-config", "--cflags", "--libs", "snpcerts"], variables).split()
    assert {f"-I{prefix}/include", f"-L{prefix}/lib", "-lsnpcerts"} == set(flags)
    exported = subprocess.run(
        ["nm", "-D", "--defined-only", prefix / "lib" / "libsnpcerts.so"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert {line.split()[-1] for line in exported.splitlines()} == {
        f"snpcerts_{name}" for name in ("asks", "begin", "enable", "end", "serve", "supported")
    }


@pytest.mark.parametrize("compiler", ["cc", "c++"])
def test_the_header_stands_alone(compiler: str, variables: dict[str, str], tmp_path: Path) -> None:
    """It compiles as C and as C++, without a warning."""
    if shutil.which(compiler) is None:
        pytest.skip(f"no {compiler} on this machine")
    source = tmp_path / f"alone.{'c' if compiler == 'cc' else 'cpp'}"
    source.write_text(
        "#include <snpcerts.h>\nint main(void) { return snpcerts_supported(-1) ? 1 : 0; }\n"
    )
    flags = run(["pkg-config", "--cflags", "--libs", "snpcerts"], variables).split()
    program = str(tmp_path / "alone")
    run([compiler, "-Wall", "-Wextra", "-Werror", "-o", program, str(source), *flags], variables)
    run([program], variables)


def test_the_vmm_in_c_passes(variables: dict[str, str], tmp_path: Path) -> None:
    try:
        seccomp.check()
    except seccomp.FrontDoorUnavailableError as error:
        pytest.skip(str(error))
    source = EXAMPLES / "c" / "vmm.c"
    assert_short(source)
    flags = run(["pkg-config", "--cflags", "--libs", "snpcerts"], variables).split()
    program = tmp_path / "vmm"
    warnings = ["-Wall", "-Wextra", "-Werror"]
    run(["cc", *warnings, "-o", str(program), str(source), *flags, "-pthread"], variables)
    assert_passes(program, variables, () if FULL else LIKELY_MISTAKES)
