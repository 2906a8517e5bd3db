# SPDX-License-Identifier: Apache-2.0
"""``snpcerts run``: what it starts, and its messages about programs that it cannot serve."""

from __future__ import annotations

import os
import shutil
import signal
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from snpcerts.cli.main import main
from snpcerts.errors import SnpCertsError
from snpcerts.vmm import preload

SHOWS = """
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
int main(int argc, char **argv)
{
	struct sigaction pipe;

	sigaction(SIGPIPE, 0, &pipe);
	ioctl(-1, 0);
	for (int i = 0; i < argc; i++)
		puts(argv[i]);
	puts(getenv("LD_PRELOAD"));
	puts(getenv("SNPCERTS_CERTS_FILENAME"));
	puts(getenv("SNPCERTS_CERTS_TIMEOUT"));
	puts(pipe.sa_handler == SIG_DFL ? "SIGPIPE as it was" : "SIGPIPE ignored");
	return 7;
}
"""
SILENT = '#include <stdio.h>\nint main(void) { return puts("x"); }\n'
RUN = [sys.executable, "-m", "snpcerts", "run"]


@pytest.fixture(autouse=True)
def _shim() -> None:
    try:
        preload.shim_library()
    except SnpCertsError as error:
        pytest.skip(str(error))


def compile_c(output: Path, text: str, *flags: str) -> Path:
    if shutil.which("cc") is None:
        pytest.skip("no C compiler on this machine")
    source = output.with_suffix(".c")
    source.write_text(text)
    made = subprocess.run(["cc", "-o", output, source, *flags], capture_output=True, text=True)
    if made.returncode and "-static" in flags:
        pytest.skip("this machine has no static C library")
    assert made.returncode == 0, made.stderr
    return output


@pytest.fixture(scope="module")
def shows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_c(tmp_path_factory.mktemp("shows") / "shows", SHOWS)


@pytest.fixture
def certs(tmp_path: Path) -> Path:
    (tmp_path / "certs.bin").write_bytes(bytes(24))
    return tmp_path / "certs.bin"


def refusal(capsys: pytest.CaptureFixture[str], certs: Path, *arguments: object) -> tuple[int, str]:
    code = main(["run", "--certs-filename", str(certs), "--", *map(str, arguments)])
    err = capsys.readouterr().err
    assert err.startswith("snpcerts: ")
    assert err.count("\n") == 1
    return code, err


def test_the_program_runs_with_the_shim(shows: Path, certs: Path) -> None:
    own = f"{shutil.which('true')}.so"  # missing: the loader reports it and continues
    argv: list[str | Path] = [*RUN, "--certs-filename", "certs.bin", "--certs-timeout", "250"]
    made = subprocess.run(
        [*argv, shows, "--help", "-x"],
        capture_output=True,
        text=True,
        cwd=certs.parent,
        env=os.environ | {"LD_PRELOAD": own},
    )
    assert made.returncode == 7
    assert made.stdout.splitlines() == [
        str(shows),
        "--help",
        "-x",
        f"{preload.shim_library()}:{own}",
        str(certs),
        "250",
        "SIGPIPE as it was",
    ]


def test_a_signal_ends_the_program_as_it_would_without(certs: Path, tmp_path: Path) -> None:
    program = compile_c(
        tmp_path / "aborts",
        "#include <stdlib.h>\n#include <sys/ioctl.h>\nint main(void) { ioctl(-1, 0); abort(); }\n",
    )
    made = subprocess.run([*RUN, "--certs-filename", certs, "--", program], capture_output=True)
    assert made.returncode == -signal.SIGABRT


def test_the_environment_for_others(certs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--certs-filename", str(certs), "--print-environment"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"LD_PRELOAD={preload.shim_library()}",
        f"SNPCERTS_CERTS_FILENAME={certs}",
        "SNPCERTS_CERTS_TIMEOUT=100",
    ]


def test_an_environment_that_would_be_more_lines_than_variables_is_not_printed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The path has a line break; a service manager would read its second line as a variable."""
    certs = tmp_path / "certs\nLD_PRELOAD=evil.so"
    certs.write_bytes(b"")
    assert main(["run", "--certs-filename", str(certs), "--print-environment"]) != 0
    said = capsys.readouterr()
    assert said.out == ""
    assert len(said.err.splitlines()) == 1


def test_no_file_yet_is_a_warning(shows: Path, tmp_path: Path) -> None:
    argv: list[str | Path] = [*RUN, "--certs-filename", tmp_path / "missing", "--", shows]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode == 7
    assert f"snpcerts: warning: {tmp_path / 'missing'}: No such file" in made.stderr


@pytest.mark.parametrize("kind", ["directory", "huge"])
def test_a_file_that_cannot_be_served_is_a_warning(shows: Path, tmp_path: Path, kind: str) -> None:
    file = tmp_path / "certs"
    if kind == "directory":
        file.mkdir()
    else:
        file.write_bytes(bytes((1 << 20) + 1))
    argv: list[str | Path] = [*RUN, "--certs-filename", file, "--", shows]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode == 7
    assert f"snpcerts: warning: {file}: " in made.stderr


def test_a_script_is_run_with_a_warning(shows: Path, certs: Path, tmp_path: Path) -> None:
    """Debian's ``kvm``, for example, is a script."""
    script = tmp_path / "kvm"
    script.write_text(f'#!/bin/sh\nexec {shows} "$@"\n')
    script.chmod(0o755)
    argv: list[str | Path] = [*RUN, "--certs-filename", certs, "--", script, "x"]
    made = subprocess.run(argv, capture_output=True, text=True)
    assert made.returncode == 7
    assert preload.shim_library() in made.stdout.splitlines()
    assert "is a script" in made.stderr


def test_a_library_may_make_the_calls(certs: Path, tmp_path: Path) -> None:
    library = compile_c(
        tmp_path / "libkvm.so",
        "#include <sys/ioctl.h>\nint go(void) { return ioctl(-1, 0) == 0; }\n",
        "-shared",
        "-fPIC",
    )
    program = compile_c(
        tmp_path / "vmm",
        "int go(void);\nint main(void) { return go(); }\n",
        str(library),
        f"-Wl,-rpath,{tmp_path}",
    )
    made = subprocess.run([*RUN, "--certs-filename", certs, "--", program], capture_output=True)
    assert made.returncode == 0, made.stderr


def test_a_static_program_is_refused(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refusal(capsys, certs, compile_c(tmp_path / "vmm", SHOWS, "-static"))
    assert (code, "statically linked" in said) == (1, True)


def test_a_program_with_system_calls_of_its_own_is_refused(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = refusal(capsys, certs, compile_c(tmp_path / "vmm", SILENT))
    assert (code, "does not call the C library's ioctl" in said) == (1, True)


def test_another_c_library_is_refused(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    musl = "-Wl,--dynamic-linker=/lib/ld-musl-x86_64.so.1"
    code, said = refusal(capsys, certs, compile_c(tmp_path / "vmm", SHOWS, musl))
    assert (code, "musl" in said) == (1, True)


def test_a_missing_loader_is_reported(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    nowhere = "-Wl,--dynamic-linker=/nowhere/ld.so"
    code, said = refusal(capsys, certs, compile_c(tmp_path / "vmm", SHOWS, nowhere))
    assert (code, "cannot run the program's loader, /nowhere/ld.so" in said) == (2, True)


def test_a_missing_library_is_reported(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    library = compile_c(tmp_path / "libx.so", "int x(void) { return 1; }\n", "-shared", "-fPIC")
    program = compile_c(
        tmp_path / "vmm", "int x(void);\nint main(void) { return x(); }\n", str(library)
    )
    library.unlink()
    code, said = refusal(capsys, certs, program)
    assert (code, "libx.so" in said) == (2, True)


def test_another_architecture_is_refused(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "vmm"
    header = bytearray(64)
    header[:6] = b"\x7fELF\x02\x01"
    struct.pack_into("<H", header, 18, 183)
    program.write_bytes(header)
    program.chmod(0o755)
    code, said = refusal(capsys, certs, program)
    assert (code, "ELF machine 183" in said) == (1, True)


@pytest.mark.parametrize("bit", [0o4000, 0o2000])
def test_a_program_that_raises_privileges_is_refused(
    shows: Path, certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], bit: int
) -> None:
    if os.getuid() != 0:
        pytest.skip("needs root, to give a file to another user")
    program = Path(shutil.copy(shows, tmp_path / "vmm"))
    os.chown(program, 65534, 65534)
    program.chmod(0o755 | bit)
    code, said = refusal(capsys, certs, program)
    assert (code, "is setuid" in said or "is setgid" in said) == (1, True)


def test_a_program_with_capabilities_is_refused(
    shows: Path,
    certs: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    program = Path(shutil.copy(shows, tmp_path / "vmm"))
    net_admin = struct.pack("<IIIII", 0x02000001, 1 << 12, 0, 0, 0)
    try:
        os.setxattr(program, "security.capability", net_admin)
    except OSError as error:
        pytest.skip(f"cannot give a file capabilities: {error}")
    # For root, file capabilities add nothing, so pretend to be another user.
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    code, said = refusal(capsys, certs, program)
    assert (code, "file capabilities" in said) == (1, True)


@pytest.mark.parametrize("content", [b"", b"random", b"#!\n", b"#!/nowhere\n", b"\x7fELF\x02\x01"])
def test_a_file_that_is_not_a_program_is_reported(
    content: bytes, certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "vmm"
    program.write_bytes(content)
    program.chmod(0o755)
    code, said = refusal(capsys, certs, program)
    assert (code, str(program) in said or "/nowhere" in said) == (2, True)


def test_a_script_that_interprets_itself_is_reported(
    certs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = tmp_path / "vmm"
    script.write_text(f"#!{script}\n")
    script.chmod(0o755)
    assert refusal(capsys, certs, script)[0] == 2


def test_an_installation_without_the_shim_says_what_is_missing(
    shows: Path,
    certs: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(preload, "_SHIM", certs.parent / "libsnpcerts_shim.so")
    code, said = refusal(capsys, certs, shows)
    assert (code, "install a C compiler" in said) == (1, True)
