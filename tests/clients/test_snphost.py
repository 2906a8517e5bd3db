# SPDX-License-Identifier: Apache-2.0
"""virtee/snphost, unmodified, on an emulated host.

Most of its commands execute CPUID to learn the TCB's layout. The emulated platform is therefore of
the same product as this machine's processor; on other processors, these tests are skipped.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, CertTable
from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.machine.key_server import KeyServer
from snpcerts.endorsement.encoding import to_der

from .conftest import Bench, Benches, run

VCEK_SET = ("vcek", "ask", "ark")


def tcb(bench: Bench, which: str) -> TcbVersion:
    """Return ``current_tcb`` or ``reported_tcb``, as ``snpcerts emulate status`` shows it."""
    return TcbVersion.unpack(bytes.fromhex(bench.status()[which]), bench.product.tcb_layout)


def levels(version: TcbVersion, mask: int = 0, **changed: int) -> tuple[int, ...]:
    """The arguments of ``config set``: levels, mask bits, and the FMC's level, if there is one."""
    part = {**version.components(), **changed}
    argv = (part["bootloader"], part["tee"], part["snp"], part["microcode"], mask)
    return (*argv, part["fmc"]) if "fmc" in part else argv


def shown(version: TcbVersion) -> list[str]:
    """The lines in which snphost shows a TCB."""
    part = version.components()
    names = {"Microcode": "microcode", "SNP": "snp", "TEE": "tee", "Boot Loader": "bootloader"}
    lines = [f"{label}: {part[name]}" for label, name in names.items()]
    return [*lines, f"FMC: {part.get('fmc', 'None')}"]


def plain(text: str) -> list[str]:
    """Return the lines of ``text``, with each run of blanks reduced to one."""
    return [" ".join(line.split()) for line in text.splitlines()]


def test_show(native: Bench, snphost: Path) -> None:
    """What ``show`` prints (identifier, tcb, version and three URLs) describes the platform."""
    status, reported = native.status(), tcb(native, "reported_tcb")
    show = {
        name: native.host(snphost, "show", name).stdout.strip()
        for name in ("identifier", "tcb", "version", "vcek-url", "vlek-url", "hashsticks-url")
    }
    hwid = status["chip_id"][: 2 * native.product.hwid_size].upper()
    assert show["identifier"] == hwid
    lines = plain(show["tcb"])
    assert lines[lines.index("Reported TCB: TCB Version:") + 1 :][:5] == shown(reported)
    assert lines[lines.index("Platform TCB: TCB Version:") + 1 :][:5] == shown(reported)
    major, minor = show["version"].split(".")
    assert (int(major), int(minor) >= 51) == (1, True)
    part = reported.components()
    query = "&".join(
        f"{field}SPL={part[name]:02}"
        for field, name in (
            *([("fmc", "fmc")] if "fmc" in part else []),
            *(("bl", "bootloader"), ("tee", "tee"), ("snp", "snp"), ("ucode", "microcode")),
        )
    )
    product = native.product.kds_name
    assert show["vcek-url"] == f"https://kdsintf.amd.com/vcek/v1/{product}/{hwid}?{query}"
    assert show["vlek-url"].endswith(f"/vlek/v1/{product}/cert?{query}")
    assert show["hashsticks-url"].endswith(f"/vlek/v1/{product}/hash_sticks?{query}")


def test_show_guests_counts_the_guests_there_are(native: Bench, snphost: Path) -> None:
    table = native.certificates() / "table.bin"
    assert native.host(snphost, "show", "guests").stdout.strip() == "0"
    with native.guest_running(table):
        assert native.host(snphost, "show", "guests").stdout.strip() == "1"


def test_config_set_and_reset(native: Bench, snphost: Path) -> None:
    """The reported TCB follows the commands, and cannot be set above the current one."""
    current = tcb(native, "current_tcb")
    lower = levels(current, microcode=current.components()["microcode"] - 1)
    native.host(snphost, "config", "set", *lower)
    assert tcb(native, "reported_tcb").microcode == current.components()["microcode"] - 1
    assert tcb(native, "current_tcb") == current

    higher = levels(current, microcode=current.components()["microcode"] + 1)
    ran = native.host(snphost, "config", "set", *higher, check=False)
    assert ran.returncode == 1
    assert "InvalidParam" in ran.stderr
    assert tcb(native, "reported_tcb").microcode == current.components()["microcode"] - 1

    native.host(snphost, "config", "reset")
    assert tcb(native, "reported_tcb") == current


def test_config_set_of_the_mask_bits(native: Bench, snphost: Path, snpguest: Path) -> None:
    """MASK_CHIP_ID makes the chip ID zero, MASK_CHIP_KEY leaves reports unsigned.

    snpguest accepts a report without a chip ID. snpcerts does not, because nothing ties such a
    report to the VCEK's chip.
    """
    issued, current = native.certificates(), tcb(native, "current_tcb")
    native.request()
    seen = {}
    for mask in (1, 2):
        native.host(snphost, "config", "set", *levels(current, mask))
        native.guest(issued / "table.bin", snpguest, "report", "report.bin", "request.bin")
        fields = Report.unpack((native.place / "report.bin").read_bytes()).fields
        argv = [snpguest, "verify", "attestation", issued, "report.bin"]
        theirs = run(argv, native.place, check=False).returncode
        ours = native.verify("report.bin", issued, "--certs", issued, "--json", check=False)
        assert ours.returncode == 1
        reasons = [reason["code"] for reason in json.loads(ours.stdout)["reasons"]]
        seen[mask] = (any(fields.chip_id), theirs, reasons)
    assert seen == {1: (False, 0, ["chip-id-masked"]), 2: (True, 1, ["report-unsigned"])}


def test_commit(native: Bench, snphost: Path) -> None:
    """Commit a provisional firmware update: committed and reported TCB become the current TCB."""
    # Edit the state file before any command: the first one starts the emulated machine, which then
    # keeps the state itself.
    path = native.platform / "platform.json"
    state = json.loads(path.read_text(encoding="ascii"))
    current = TcbVersion.unpack(bytes.fromhex(state["current_tcb"]), native.product.tcb_layout)
    before = replace(current, microcode=current.components()["microcode"] - 1).pack().hex()
    state |= {"committed_tcb": before, "config_tcb": before, "vcek_tcb": before}
    path.write_text(json.dumps(state), encoding="ascii")
    native.host(snphost, "commit")
    state = json.loads(path.read_text(encoding="ascii"))
    found = {state[f"{which}_tcb"] for which in ("current", "committed")}
    assert found == {current.pack().hex()}
    assert state["config_tcb"] is None  # nothing lowers the reported TCB any more


def test_vlek_load(native: Bench, snphost: Path, snpguest: Path) -> None:
    """After the load, the firmware signs with the VLEK, and the VLEK's certificates match."""
    issued = native.certificates("issued", "--vlek", "example-csp")
    stick = issued / "hashstick.bin"
    said = native.host(snphost, "verify", "vlek-hashstick", stick).stdout
    assert "matches reported TCB version" in said
    native.host(snphost, "vlek-load", stick)
    native.request()
    table = issued / "table-vlek.bin"
    native.guest(table, snpguest, "report", "report.bin", "request.bin")
    assert "signed by VLEK" in native.verify("report.bin", issued, "--table", table).stdout

    current = tcb(native, "current_tcb")
    native.host(
        snphost, "config", "set", *levels(current, microcode=current.components()["microcode"] - 1)
    )
    assert native.host(snphost, "verify", "vlek-hashstick", stick, check=False).returncode == 1


def test_vlek_load_of_anything_else(native: Bench, snphost: Path, snpguest: Path) -> None:
    """A changed or short hashstick is refused, and the VCEK still signs."""
    issued = native.certificates("issued", "--vlek", "example-csp")
    stick = bytearray((issued / "hashstick.bin").read_bytes())
    stick[0x20] ^= 1
    (native.place / "changed").write_bytes(stick)
    (native.place / "short").write_bytes(stick[:400])
    for name in ("changed", "short"):
        assert native.host(snphost, "vlek-load", name, check=False).returncode == 1
    native.request()
    table = issued / "table.bin"
    native.guest(table, snpguest, "report", "report.bin", "request.bin")
    assert "signed by VCEK" in native.verify("report.bin", issued, "--table", table).stdout


def _nested(tests: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for test in tests:
        yield test
        yield from _nested(test.get("sub", test.get("tests", [])))


def test_ok_as_far_as_cpuid_lets_it(native: Bench, snphost: Path) -> None:
    """In ``snphost ok``, each test that uses system calls must pass, unless snphost skips it.

    CPUID leaf 8000001F is the real machine's. If a test of this leaf fails, snphost skips the tests
    that depend on it, so this does not assert the overall result.
    """
    ran = native.host(snphost, "ok", "--output", "json", check=False)
    answer = json.loads(ran.stdout)
    found = {test["name"]: test["status"] for test in _nested(answer["tests"])}
    found |= dict.fromkeys(answer["skipped"], "skip")
    always = (
        "KVM supported",
        "SEV enabled in KVM",
        "SEV-ES enabled in KVM",
        "SEV-SNP enabled in KVM",
        "Comparing TCB values",
    )
    assert {name: found.get(name) for name in always} == dict.fromkeys(always, "pass")
    below_cpuid = (
        "SEV Firmware Version",
        "SEV-ES initialized",
        "SEV initialized",
        "SNP initialized",
        "Read RMP tables",
        "RMP table initialized",
        "Alias check",
        "/dev/sev readable",
        "/dev/sev writable",
    )
    assert {found.get(name) for name in below_cpuid} <= {"pass", "skip"}, found
    cpuid = {name for name, status in found.items() if status == "fail"}
    assert all("(SEV" in name or "(SME)" in name for name in cpuid), cpuid


@pytest.fixture
def anywhere(bench_of: Benches) -> Bench:
    """A Genoa platform as a source of certificates, for commands that only read and write files."""
    return bench_of(Product.GENOA)


def test_a_table_that_it_imports_can_be_read_and_served(
    anywhere: Bench, snphost: Path, snpguest: Path
) -> None:
    issued = anywhere.certificates()
    chain = anywhere.place / "chain"
    chain.mkdir()
    for name in VCEK_SET:
        shutil.copy(issued / f"{name}.der", chain)
    run([snphost, "import", chain, "imported.bin"], anywhere.place)

    table = CertTable.decode((anywhere.place / "imported.bin").read_bytes())
    for name, guid in zip(VCEK_SET, (VCEK_GUID, ASK_GUID, ARK_GUID), strict=True):
        assert table.get(guid) == (issued / f"{name}.der").read_bytes()
    said = anywhere.snpcerts("table", "show", "imported.bin").stdout
    assert "imported.bin: 3 entries" in said
    anywhere.guest("imported.bin", snpguest, "certificates", "der", "given")
    assert (anywhere.place / "given" / "vcek.der").read_bytes() == table.get(VCEK_GUID)


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
@pytest.mark.parametrize("encoding", ["der", "pem"])
def test_it_exports_the_tables_that_we_build(
    anywhere: Bench, snphost: Path, kind: str, encoding: str
) -> None:
    issued = anywhere.certificates("issued", "--vlek", "example-csp")
    intermediate = "ask" if kind == "vcek" else "asvk"
    anywhere.snpcerts(
        *("table", "build", "--output", "built.bin"),
        *(f"--{kind}", issued / f"{kind}.der", "--ask", issued / f"{intermediate}.der"),
        *("--ark", issued / "ark.der"),
    )
    run([snphost, "export", encoding, "built.bin", "exported"], anywhere.place)
    exported = anywhere.place / "exported"
    assert {path.name for path in exported.iterdir()} == {
        f"{name}.{encoding}" for name in (kind, intermediate, "ark")
    }
    if encoding == "der":
        for path in exported.iterdir():
            assert path.read_bytes() == (issued / path.name).read_bytes()
    else:
        # A table that is built from the exported PEM files is the same as before.
        anywhere.snpcerts(
            *("table", "build", "--output", "again.bin", f"--{kind}", exported / f"{kind}.pem"),
            *("--ask", exported / f"{intermediate}.pem", "--ark", exported / "ark.pem"),
        )
        built, again = (anywhere.place / f"{name}.bin" for name in ("built", "again"))
        assert built.read_bytes() == again.read_bytes()


AGENT = (sys.executable, "-m", "snpcerts", "host")


def agent_options(bench: Bench, url: str) -> list[str]:
    """Return the options of an agent that updates one file and uses the key server at ``url``."""
    place = bench.place
    ark = place / "ark.der"
    ark.write_bytes(PlatformHome(bench.platform).authority().ark.public_bytes(Encoding.DER))
    options = {"file": place / "certs.bin", "cache": place / "cache", "anchor": ark, "kds": url}
    return [f"--{name}={value}" for name, value in options.items()]


@pytest.fixture
def key_server(anywhere: Bench) -> Iterator[KeyServer]:
    """The emulated AMD's key server."""
    with KeyServer.of_homes([PlatformHome(anywhere.platform)]) as server:
        yield server


def test_it_exports_and_imports_the_file_that_the_agent_made(
    anywhere: Bench, key_server: KeyServer, snphost: Path
) -> None:
    """Export writes the same certificates, and import makes a file with the same entries.

    Two things differ. snphost writes the entries in the order in which the directory lists the
    files, the agent in the order VCEK, ASK, ARK. And from PEM files, snphost makes entries in PEM,
    while the agent's are in DER. Our readers look up GUIDs, and accept both encodings.
    """
    anywhere.host(*AGENT, "sync", *agent_options(anywhere, key_server.url))
    table = CertTable.decode((anywhere.place / "certs.bin").read_bytes())
    for encoding in ("der", "pem"):
        run([snphost, "export", encoding, "certs.bin", encoding], anywhere.place)
        files = {path.stem: path.read_bytes() for path in (anywhere.place / encoding).iterdir()}
        found = {name: to_der(data, crl=False, what=name) for name, data in files.items()}
        assert found == {each.name: each.data for each in table}

        run([snphost, "import", encoding, f"{encoding}.bin"], anywhere.place)
        again = CertTable.decode((anywhere.place / f"{encoding}.bin").read_bytes())
        assert {each.name: each.data for each in again} == files
        said = anywhere.snpcerts("table", "show", f"{encoding}.bin").stdout
        assert "3 entries" in said
        assert said.count(f"{encoding.upper()}, ") == 3
    assert {each.data for each in table} == {
        path.read_bytes() for path in (anywhere.place / "der").iterdir()
    }

    # The agent accepts such a file: it is in step and stays unchanged.
    (anywhere.place / "certs.bin").write_bytes((anywhere.place / "der.bin").read_bytes())
    said = anywhere.host(*AGENT, "sync", *agent_options(anywhere, key_server.url)).stdout
    assert "in step" in said
    imported = (anywhere.place / "der.bin").read_bytes()
    assert (anywhere.place / "certs.bin").read_bytes() == imported


def test_its_commit_behind_the_agents_back_is_noticed(native: Bench, snphost: Path) -> None:
    """The agent reports drift, and then publishes the right table."""
    current = tcb(native, "current_tcb")
    with contextlib.ExitStack() as stack:
        home = PlatformHome(native.platform)
        server = stack.enter_context(KeyServer.of_homes([home]))
        # Without a record of this host, the agent would not know which VCEK signs when the reported
        # TCB is below the current one.
        native.host(*AGENT, "sync", *agent_options(native, server.url))
        native.host(
            snphost,
            "config",
            "set",
            *levels(current, microcode=current.components()["microcode"] - 1),
        )
        argv = [*AGENT, "sync", "--watch", "--interval=0.2", "--log=json"]
        argv += agent_options(native, server.url)
        watch = stack.enter_context(native.running(*argv))
        assert watch.stdout is not None
        seen: list[dict[str, Any]] = []

        def until(event: str) -> None:
            for line in watch.stdout or ():
                seen.append(json.loads(line))
                if seen[-1]["event"] == event:
                    return
            raise AssertionError(seen)

        until("published")
        native.host(snphost, "commit")
        until("drift")
        assert seen[-1]["level"] == "warning"
        until("published")
        assert tcb(native, "reported_tcb") == current
        native.host(*AGENT, "status", *agent_options(native, server.url))


def verdicts(said: str) -> str:
    """Return the output of ``verify certs`` without the legend in its first line."""
    return said.strip().partition("\n")[2]


BAD = "\u0338"  # snphost strikes out the sign for a signature that does not verify


def test_verify_certs(anywhere: Bench, snphost: Path) -> None:
    issued = anywhere.certificates()
    said = verdicts(run([snphost, "verify", "certs", issued], anywhere.place).stdout)
    assert said.count("⬑") == 2
    assert BAD not in said


def test_verify_certs_succeeds_whatever_it_finds(
    anywhere: Bench, snphost: Path, snpguest: Path
) -> None:
    """The exit code is 0 even if a signature is bad; only the output shows that. Other tools refuse
    the same chain.
    """
    issued = anywhere.certificates("issued", "--vlek", "example-csp")
    chain = anywhere.place / "chain"
    chain.mkdir()
    for name, source in (("ark", "ark"), ("ask", "asvk"), ("vcek", "vcek")):
        shutil.copy(issued / f"{source}.der", chain / f"{name}.der")
    said = verdicts(run([snphost, "verify", "certs", chain], anywhere.place).stdout)
    assert said.count(BAD) == 1

    assert run([snpguest, "verify", "certs", chain], anywhere.place, check=False).returncode == 1
    anywhere.request()
    anywhere.guest(issued / "table.bin", snpguest, "report", "report.bin", "request.bin")
    anywhere.verify("report.bin", issued, "--certs", issued)
    assert anywhere.verify("report.bin", issued, "--certs", chain, check=False).returncode == 1


def test_a_new_reported_tcb_needs_new_certificates(
    native: Bench, snphost: Path, snpguest: Path
) -> None:
    """snphost changes the key; then snpguest and snpcerts refuse the old certificate."""
    before = native.certificates("before")
    current = tcb(native, "current_tcb")
    native.host(
        snphost, "config", "set", *levels(current, microcode=current.components()["microcode"] - 1)
    )
    native.request()
    native.guest(before / "table.bin", snpguest, "report", "report.bin", "request.bin")
    argv = [snpguest, "verify", "attestation", before, "report.bin"]
    assert run(argv, native.place, check=False).returncode == 1
    refused = native.verify("report.bin", before, "--certs", before, check=False)
    assert refused.returncode == 1
    fields = Report.unpack((native.place / "report.bin").read_bytes()).fields
    assert fields.reported_tcb.hex() == native.status()["reported_tcb"]

    after = native.certificates("after")
    run([snpguest, "verify", "attestation", after, "report.bin"], native.place)
    native.verify("report.bin", after, "--certs", after)
