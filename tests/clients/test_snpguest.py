# SPDX-License-Identifier: Apache-2.0
"""virtee/snpguest, unmodified, in a guest whose VMM answers KVM_EXIT_SNP_REQ_CERTS."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import CRL_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.endorsement.certificate import load_certificate
from tests.endorsement.small_ca import PINNED

from .conftest import Bench, Benches, run

PRODUCTS = pytest.mark.parametrize("product", PINNED, ids=lambda product: product.value)
VCEK_SET = ("vcek", "ask", "ark")
VLEK_SET = ("vlek", "asvk", "ark")


def written(directory: Path) -> dict[str, bytes]:
    """Return the content of every file in a directory, by name."""
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def originals(issued: Path, names: tuple[str, ...]) -> dict[str, bytes]:
    """Return the named certificates as they were issued, by file name."""
    return {f"{name}.der": (issued / f"{name}.der").read_bytes() for name in names}


@pytest.fixture
def genoa(bench_of: Benches) -> Bench:
    """A Genoa platform: snpguest executes no CPUID, so any machine will do."""
    return bench_of(Product.GENOA)


@PRODUCTS
def test_it_attests_and_every_verifier_agrees(
    bench_of: Benches, snpguest: Path, product: Product
) -> None:
    """snpguest gets a report and the VMM's certificates, and verifies the report with them.

    The products cover report versions 3 and 5, and both TCB layouts.
    """
    bench = bench_of(product)
    issued, asked = bench.certificates(), bench.request()
    table = issued / "table.bin"
    bench.guest(table, snpguest, "report", "report.bin", "request.bin")
    bench.guest(table, snpguest, "certificates", "der", "given")

    report = Report.unpack((bench.place / "report.bin").read_bytes())
    assert report.fields.report_data == asked
    assert report.fields.vmpl == 1, "snpguest must ask for its default VMPL"
    assert written(bench.place / "given") == originals(issued, VCEK_SET)

    chain = run([snpguest, "verify", "certs", "given"], bench.place).stdout
    assert "The VCEK was signed by the AMD ASK!" in chain
    said = run([snpguest, "verify", "attestation", "given", "report.bin"], bench.place).stdout
    assert "VEK signed the Attestation Report!" in said
    assert ("Reported TCB FMC" in said) == (product is Product.TURIN)
    assert "verified" in bench.verify("report.bin", issued, "--certs", "given").stdout


def test_certificates_in_pem_are_the_same_ones(genoa: Bench, snpguest: Path) -> None:
    issued = genoa.certificates()
    genoa.guest(issued / "table.bin", snpguest, "certificates", "pem", "given")
    found = {
        f"{Path(name).stem}.der": load_certificate(pem, name).der
        for name, pem in written(genoa.place / "given").items()
    }
    assert found == originals(issued, VCEK_SET)
    run([snpguest, "verify", "certs", "given"], genoa.place)


def test_a_report_at_each_vmpl(genoa: Bench, snpguest: Path) -> None:
    table = genoa.certificates() / "table.bin"
    for vmpl in range(4):
        argv = ("report", "--vmpl", vmpl, "--random", "report.bin", "random.bin")
        genoa.guest(table, snpguest, *argv)
        report = Report.unpack((genoa.place / "report.bin").read_bytes())
        assert report.fields.vmpl == vmpl
        assert report.fields.report_data == (genoa.place / "random.bin").read_bytes()


def test_its_verifier_refuses_another_certificate_and_a_changed_report(
    genoa: Bench, snpguest: Path
) -> None:
    """Otherwise its agreement in the other tests would prove nothing."""
    issued = genoa.certificates()
    genoa.request()
    genoa.guest(issued / "table.bin", snpguest, "report", "report.bin", "request.bin")
    run([snpguest, "verify", "attestation", issued, "report.bin"], genoa.place)

    changed = bytearray((genoa.place / "report.bin").read_bytes())
    changed[0x50] ^= 1
    (genoa.place / "changed.bin").write_bytes(changed)
    argv = [snpguest, "verify", "attestation", issued, "changed.bin"]
    assert run(argv, genoa.place, check=False).returncode == 1

    (issued / "vcek.der").write_bytes((issued / "ask.der").read_bytes())
    argv = [snpguest, "verify", "attestation", issued, "report.bin"]
    assert run(argv, genoa.place, check=False).returncode == 1


def test_derived_keys(genoa: Bench, snpguest: Path) -> None:
    """A guest gets the same key for the same request, and another key for another request."""
    table = genoa.certificates() / "table.bin"
    script = " && ".join(
        f"{snpguest} key {name} {options}"
        for name, options in (
            ("first", "vcek"),
            ("again", "vcek"),
            ("fields", "vcek --guest_field_select 0x3f"),
            ("vmrk", "vmrk"),
        )
    )
    genoa.guest(table, "sh", "-c", script)
    keys = {name: (genoa.place / name).read_bytes() for name in ("first", "again", "fields")}
    assert keys["first"] == keys["again"] != keys["fields"]
    assert len(keys["first"]) == 32
    assert keys["first"] != (genoa.place / "vmrk").read_bytes()
    shown = run([snpguest, "display", "key", "first"], genoa.place).stdout
    assert bytes.fromhex(shown) == keys["first"]


def test_a_key_with_a_mitigation_vector_is_refused_by_the_firmware(
    genoa: Bench, snpguest: Path
) -> None:
    """snpguest asks with message version 2, but Linux sends only 32 of the 40 bytes."""
    table = genoa.certificates() / "table.bin"
    argv = (snpguest, "key", "key.bin", "vcek", "--launch_mit_vector", "1")
    ran = genoa.guest(table, *argv, check=False)
    assert ran.returncode == 1
    assert "0x16: Given parameter is invalid" in ran.stderr
    genoa.guest(table, snpguest, "key", "key.bin", "vcek")


def test_it_shows_what_the_report_says(genoa: Bench, snpguest: Path) -> None:
    issued, asked = genoa.certificates(), genoa.request()
    genoa.guest(issued / "table.bin", snpguest, "report", "report.bin", "request.bin")
    fields = Report.unpack((genoa.place / "report.bin").read_bytes()).fields
    shown = json.loads(
        run([snpguest, "display", "report", "--output", "json", "report.bin"], genoa.place).stdout
    )
    assert bytes(shown["report_data"]) == asked
    assert bytes(shown["chip_id"]).hex() == genoa.status()["chip_id"]
    assert bytes(shown["measurement"]) == fields.measurement
    assert shown["policy"] == fields.policy
    assert shown["reported_tcb"]["microcode"] == fields.reported_tcb[7]
    text = run([snpguest, "display", "report", "report.bin"], genoa.place).stdout
    assert "signing key:        vcek" in text


def test_ok_finds_an_snp_guest(genoa: Bench, snpguest: Path) -> None:
    table = genoa.certificates() / "table.bin"
    said = genoa.guest(table, snpguest, "ok").stdout
    for name in ("SEV", "SEV-ES", "SNP"):
        assert f"- {name}: ENABLED" in said
    assert "FAIL" not in said


def test_on_the_machine_itself_there_is_no_guest_device(genoa: Bench, snpguest: Path) -> None:
    """This shows that the device in the other tests is the emulated one."""
    if Path("/dev/sev-guest").exists():
        pytest.skip("this machine is an SNP guest")
    genoa.request()
    ran = run([snpguest, "report", "report.bin", "request.bin"], genoa.place, check=False)
    assert ran.returncode == 1


def test_a_vlek_signs_and_its_certificates_are_named_after_it(genoa: Bench, snpguest: Path) -> None:
    issued = genoa.certificates("issued", "--vlek", "example-csp")
    home = PlatformHome(genoa.platform)
    firmware = home.firmware()
    firmware.snp_vlek_load((issued / "hashstick.bin").read_bytes())
    home.save(firmware)
    genoa.request()
    table = issued / "table-vlek.bin"
    genoa.guest(table, snpguest, "report", "report.bin", "request.bin")
    genoa.guest(table, snpguest, "certificates", "der", "given")
    assert written(genoa.place / "given") == originals(issued, VLEK_SET)
    chain = run([snpguest, "verify", "certs", "given"], genoa.place).stdout
    assert "The VLEK was signed by the AMD ASVK!" in chain
    run([snpguest, "verify", "attestation", "given", "report.bin"], genoa.place)
    assert "signed by VLEK" in genoa.verify("report.bin", issued, "--table", table).stdout


@pytest.mark.parametrize("served", ["empty", "gone"])
def test_without_certificates_it_says_so_and_reports_still_come(
    genoa: Bench, snpguest: Path, served: str
) -> None:
    """The table is empty, or its file no longer exists when the guest asks."""
    issued = genoa.certificates()
    genoa.request()
    table = genoa.place / "table"
    table.write_bytes(bytes(24))
    remove = f"rm {table};" if served == "gone" else ""
    script = f"{remove} {snpguest} certificates der given && {snpguest} report r.bin request.bin"
    ran = genoa.guest(table, "sh", "-c", script)
    assert "No certificates were loaded by the host" in ran.stdout + ran.stderr
    assert not (genoa.place / "given").exists() or not written(genoa.place / "given")
    genoa.verify("r.bin", issued, "--certs", issued)


def test_a_crl_in_the_table_is_more_than_it_can_read(genoa: Bench, snpguest: Path) -> None:
    """snpguest takes every entry for a certificate, and fails. The report still verifies."""
    issued = genoa.certificates()
    genoa.request()
    crl = PlatformHome(genoa.platform).authority().crl().der
    entries = CertTable.decode((issued / "table.bin").read_bytes()).entries
    table = genoa.place / "with-crl.bin"
    table.write_bytes(CertTable((*entries, TableEntry(CRL_GUID, crl))).encode())
    ran = genoa.guest(table, snpguest, "certificates", "der", "given", check=False)
    assert ran.returncode == 1
    genoa.guest(table, snpguest, "report", "report.bin", "request.bin")
    genoa.verify("report.bin", issued, "--table", table)


def test_a_table_beyond_16_kib_cannot_be_fetched_by_a_linux_guest(
    genoa: Bench, snpguest: Path
) -> None:
    """The driver refuses the buffer that the host asks for; the guest can still attest."""
    issued = genoa.certificates()
    genoa.request()
    (genoa.place / "filler").write_bytes(bytes(range(256)) * 64)
    genoa.snpcerts(
        *("table", "build", "--oversize", "--output", "large.bin"),
        *(f"--{name}={issued / name}.der" for name in VCEK_SET),
        "--entry=00000000-1111-2222-3333-444444444444=filler",
    )
    script = f"{snpguest} certificates der given; echo $?; {snpguest} report r.bin request.bin"
    ran = genoa.guest("large.bin", "sh", "-c", script)
    assert ran.stdout.splitlines()[-1] == "1"
    genoa.verify("r.bin", issued, "--certs", issued)
