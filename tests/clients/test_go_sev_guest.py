# SPDX-License-Identifier: Apache-2.0
"""google/go-sev-guest's attest, check and show, unmodified, in an emulated guest.

attest prefers configfs-tsm. With ``--door trap``, or if the machine has no /dev/fuse, it uses
/dev/sev-guest.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import CertTable
from snpcerts.abi.product import Product
from snpcerts.abi.report import REPORT_SIZE, Report
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.verify.evidence import Evidence
from tests.endorsement.small_ca import PINNED

from .amd_names import renamed_chain
from .conftest import Bench, Benches, Ran, run

Tools = Callable[[str], Path]

# By default, attest waits two seconds between calls; switch that off.
ATTEST = ("-infile", "request.bin", "-inform", "bin", "-self_throttle_duration", "0s")
EXTENDED = (*ATTEST, "-extended", "-out", "evidence.bin")
POLICY = ("-guest_policy", "0x30000")  # allows SMT, as in guests that the reference VMM launches
SIGNATURE_REFUSED, POLICY_REFUSED = 2, 5  # exit codes of check

PRODUCTS = pytest.mark.parametrize("product", PINNED, ids=lambda product: product.value)


@pytest.fixture
def genoa(bench_of: Benches) -> Bench:
    return bench_of(Product.GENOA)


def check(bench: Bench, tools: Tools, *options: object) -> Ran:
    """Run ``check`` without the network. It may fail: the caller looks at the exit code."""
    argv = [tools("check"), "-network=false", "-product", bench.product.value, *options]
    return run(argv, bench.place, check=False)


@PRODUCTS
def test_attest_extended_is_a_report_and_the_table_of_the_vmm(
    bench_of: Benches, go_sev_guest: Tools, product: Product
) -> None:
    bench = bench_of(product)
    issued, asked = bench.certificates(), bench.request()
    bench.guest(issued / "table.bin", go_sev_guest("attest"), *EXTENDED)
    evidence = (bench.place / "evidence.bin").read_bytes()
    fields = Report.unpack(evidence[:REPORT_SIZE]).fields
    assert (fields.report_data, fields.vmpl) == (asked, 0)
    served = CertTable.decode((issued / "table.bin").read_bytes())
    received = CertTable.decode(evidence[REPORT_SIZE:])
    assert [received.get(entry.guid) for entry in served.entries] == [
        entry.data for entry in served.entries
    ]
    assert "verified" in bench.verify("evidence.bin", issued).stdout


def test_attest_extended_by_configfs_tsm(genoa: Bench, go_sev_guest: Tools) -> None:
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("this user may not open /dev/fuse, which the emulated configfs-tsm needs")
    issued, asked = genoa.certificates(), genoa.request()
    reports = "/sys/kernel/config/tsm/report"
    argv = " ".join((str(go_sev_guest("attest")), *EXTENDED))
    ran = genoa.guest(issued / "table.bin", "sh", "-c", f"{argv} && ls {reports}")
    # The tool removes the entry of its request, but not the one with which it tries the interface.
    assert ran.stdout.startswith("entry")
    assert len(ran.stdout.split()) == 1
    genoa.verify("evidence.bin", issued, "--report-data", asked.hex())


def test_attest_extended_by_ioctls(genoa: Bench, go_sev_guest: Tools) -> None:
    if Path("/sys/kernel/config/tsm/report").exists():
        pytest.skip("this machine has configfs-tsm, which attest prefers")
    issued, asked = genoa.certificates(), genoa.request()
    argv = ("--certs", issued / "table.bin", "--kernel", genoa.kernel, "--door", "trap")
    genoa.emulate("guest", *argv, "--", go_sev_guest("attest"), *EXTENDED)
    genoa.verify("evidence.bin", issued, "--report-data", asked.hex())


def test_attest_at_a_vmpl_without_certificates(genoa: Bench, go_sev_guest: Tools) -> None:
    issued, asked = genoa.certificates(), genoa.request()
    argv = (*ATTEST, "-vmpl", "3", "-out", "report.bin")
    genoa.guest(issued / "table.bin", go_sev_guest("attest"), *argv)
    fields = Report.unpack((genoa.place / "report.bin").read_bytes()).fields
    assert (fields.report_data, fields.vmpl) == (asked, 3)
    genoa.verify("report.bin", issued, "--certs", issued)


def test_attest_with_its_own_throttle(genoa: Bench, go_sev_guest: Tools) -> None:
    issued = genoa.certificates()
    genoa.request()
    argv = ("-infile", "request.bin", "-extended", "-out", "evidence.bin")
    genoa.guest(issued / "table.bin", go_sev_guest("attest"), *argv)
    genoa.verify("evidence.bin", issued)


def test_attest_by_the_path_of_the_device(genoa: Bench, go_sev_guest: Tools) -> None:
    issued = genoa.certificates()
    genoa.request()
    path = ("-sev_guest_device_path", "/dev/sev-guest")
    genoa.guest(issued / "table.bin", go_sev_guest("attest"), *EXTENDED, *path)
    genoa.verify("evidence.bin", issued)


def test_attest_where_the_host_has_no_certificates(genoa: Bench, go_sev_guest: Tools) -> None:
    """An empty table is not an error: the output has only the entry that the tool adds."""
    issued = genoa.certificates()
    genoa.request()
    (genoa.place / "table").write_bytes(bytes(24))
    genoa.guest("table", go_sev_guest("attest"), *EXTENDED)
    evidence = (genoa.place / "evidence.bin").read_bytes()
    assert len(CertTable.decode(evidence[REPORT_SIZE:]).entries) == 1
    (genoa.place / "report.bin").write_bytes(evidence[:REPORT_SIZE])
    genoa.verify("report.bin", issued, "--certs", issued)


def test_show(genoa: Bench, go_sev_guest: Tools) -> None:
    issued = genoa.certificates()
    genoa.request()
    genoa.guest(issued / "table.bin", go_sev_guest("attest"), *EXTENDED)
    argv = [go_sev_guest("show"), "-in", "evidence.bin"]
    text = run(argv, genoa.place).stdout
    assert "vcek_cert:" in text
    assert "ask_cert:" in text
    shown = run([*argv, "-outform", "tcb"], genoa.place).stdout
    (current,) = struct.unpack("<Q", bytes.fromhex(genoa.status()["current_tcb"]))
    assert f"current_tcb={current:#x}" in shown


def test_a_report_survives_textproto_and_back(genoa: Bench, go_sev_guest: Tools) -> None:
    """``show`` writes the evidence as textproto, and makes the same report from that."""
    issued = genoa.certificates()
    genoa.request()
    genoa.guest(issued / "table.bin", go_sev_guest("attest"), *EXTENDED)
    argv = [go_sev_guest("show"), "-in", "evidence.bin", "-out", "evidence.textproto"]
    run(argv, genoa.place)
    argv = [go_sev_guest("show"), "-in", "evidence.textproto", "-inform", "textproto"]
    run([*argv, "-outform", "bin", "-out", "again.bin"], genoa.place)
    evidence, again = (
        (genoa.place / name).read_bytes()[:REPORT_SIZE] for name in ("evidence.bin", "again.bin")
    )
    assert evidence == again
    genoa.verify("again.bin", issued)


@PRODUCTS
@pytest.mark.parametrize("extended", [True, False], ids=["extended", "report"])
def test_attest_as_protocol_buffers(
    bench_of: Benches, go_sev_guest: Tools, product: Product, extended: bool
) -> None:
    """From Attestation and Report messages, snpcerts gets the report as the firmware made it."""
    bench = bench_of(product)
    issued, asked = bench.certificates(), bench.request()
    argv: tuple[str, ...] = (*ATTEST, "-outform", "proto", "-out", "evidence.pb")
    argv += ("-extended",) if extended else ()
    bench.guest(issued / "table.bin", go_sev_guest("attest"), *argv)
    given = () if extended else ("--certs", issued)
    ran = bench.verify("evidence.pb", issued, "--report-data", asked.hex(), *given)
    assert "verified" in ran.stdout


def test_every_form_it_writes_holds_the_same_report(genoa: Bench, go_sev_guest: Tools) -> None:
    issued = genoa.certificates()
    genoa.request()
    genoa.guest(issued / "table.bin", go_sev_guest("attest"), *EXTENDED)
    argv = [go_sev_guest("show"), "-in", "evidence.bin", "-outform", "proto"]
    run([*argv, "-out", "evidence.pb"], genoa.place)
    read = [
        Evidence.from_bytes((genoa.place / name).read_bytes())
        for name in ("evidence.bin", "evidence.pb")
    ]
    assert read[0].report == read[1].report
    assert read[0].collateral == read[1].collateral
    assert read[0].table is not None
    assert read[1].table is not None
    assert set(read[0].table.entries) == set(read[1].table.entries)


def test_check_refuses_the_emulated_names(genoa: Bench, go_sev_guest: Tools) -> None:
    """Even if it trusts the root, ``check`` wants AMD's name in every certificate, as it should."""
    issued = genoa.certificates()
    genoa.request()
    genoa.guest(issued / "table.bin", go_sev_guest("attest"), *EXTENDED)
    bundle = PlatformHome(genoa.platform).authority().chain_pem()
    (genoa.place / "bundle.pem").write_bytes(bundle)
    options = ("-in", "evidence.bin", "-product_key_path", "bundle.pem", *POLICY)
    ran = check(genoa, go_sev_guest, *options)
    assert ran.returncode == SIGNATURE_REFUSED
    assert "not expected for AMD" in ran.stderr


@pytest.mark.parametrize("product", [Product.MILAN, Product.GENOA], ids=lambda item: item.value)
def test_check_accepts_the_same_chain_under_amds_names(
    bench_of: Benches, go_sev_guest: Tools, product: Product
) -> None:
    """Apart from the names, ``check`` finds the emulated certificates right: extensions, chain and
    signatures.

    It still refuses a changed report, another policy, other report data, and a chain to a root
    that it does not trust.
    """
    bench = bench_of(product)
    chain, asked = renamed_chain(bench.platform), bench.request()
    (bench.place / "table.bin").write_bytes(chain.table)
    (bench.place / "bundle.pem").write_bytes(chain.bundle)
    bench.guest("table.bin", go_sev_guest("attest"), *EXTENDED)
    trusting = ("-product_key_path", "bundle.pem")
    options = ("-in", "evidence.bin", *trusting, *POLICY)

    ran = check(bench, go_sev_guest, *options, "-report_data", asked.hex())
    assert ran.returncode == 0, ran.stderr
    ran = check(bench, go_sev_guest, *options, "-report_data", bytes(64).hex())
    assert ran.returncode == POLICY_REFUSED
    ran = check(bench, go_sev_guest, "-in", "evidence.bin", *trusting)
    assert ran.returncode == POLICY_REFUSED, "must refuse: its default policy allows no SMT"
    ran = check(bench, go_sev_guest, "-in", "evidence.bin", *POLICY)
    assert ran.returncode == SIGNATURE_REFUSED, "must refuse a root that it does not trust"

    changed = bytearray((bench.place / "evidence.bin").read_bytes())
    changed[0x50] ^= 1
    (bench.place / "changed.bin").write_bytes(changed)
    ran = check(bench, go_sev_guest, "-in", "changed.bin", *trusting, *POLICY)
    assert ran.returncode == SIGNATURE_REFUSED


def test_check_does_not_know_a_turin_vcek(bench_of: Benches, go_sev_guest: Tools) -> None:
    """This release does not know the extension fmcSPL, which genuine Turin VCEKs also have."""
    bench = bench_of(Product.TURIN)
    chain = renamed_chain(bench.platform)
    bench.request()
    (bench.place / "table.bin").write_bytes(chain.table)
    (bench.place / "bundle.pem").write_bytes(chain.bundle)
    bench.guest("table.bin", go_sev_guest("attest"), *EXTENDED)
    options = ("-in", "evidence.bin", "-product_key_path", "bundle.pem", *POLICY)
    ran = check(bench, go_sev_guest, *options)
    assert ran.returncode == SIGNATURE_REFUSED
    assert "not an AMD KDS OID: 1.3.6.1.4.1.3704.1.3.9" in ran.stderr
