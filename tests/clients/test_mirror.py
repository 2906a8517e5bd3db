# SPDX-License-Identifier: Apache-2.0
"""snpguest, snphost and go-sev-guest, unmodified, get their certificates from the mirror.

One command of snphost takes the mirror's URL. All others ask ``kdsintf.amd.com``, and the mirror
answers in its place, as docs/fleet.md describes. The mirror asks upstream for each certificate only
once.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.product import Product
from snpcerts.abi.report import Report
from snpcerts.abi.tcb import TcbVersion
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.machine.key_server import KeyServer, ProductLine
from snpcerts.endorsement.crl import load_crl
from snpcerts.endorsement.encoding import to_der
from snpcerts.kds.url import VcekResource
from tests.endorsement.small_ca import PINNED

from .amd_names import renamed_authority
from .conftest import Bench, Benches, run
from .mirror_front import AMD_NAME, MirrorFront, mirror_front

Tools = Callable[[str], Path]

PRODUCTS = pytest.mark.parametrize("product", PINNED, ids=lambda product: product.value)


@dataclass(frozen=True)
class Fleet:
    """A platform, the emulated AMD that certifies it, and the mirror between them."""

    bench: Bench
    amd: KeyServer
    front: MirrorFront

    @property
    def vcek(self) -> VcekResource:
        """The signing key's certificate, as a resource of the key server."""
        firmware = PlatformHome(self.bench.platform).firmware()
        reported = firmware.snp_platform_status().reported_tcb
        tcb = TcbVersion.unpack(reported, firmware.product.tcb_layout)
        return VcekResource(firmware.product, firmware.chip.hwid, tcb)

    def run(self, *program: object, check: bool = True) -> int:
        """Run a program that finds the mirror at AMD's name; return its exit code."""
        return run([*self.front.program, *program], self.bench.place, check=check).returncode

    def host(self, *program: object) -> None:
        """Run a program that finds the mirror at AMD's name, on the emulated host."""
        self.bench.host(*self.front.program, *program)

    def asked(self) -> dict[str, int]:
        """Return how often upstream was asked for each kind, such as ``vcek`` and ``vcek/crl``."""
        found: dict[str, int] = {}
        for path, count in self.amd.requests.items():
            kind, _, _, name = path.split("/")
            known = f"{kind}/{name}" if name in ("cert_chain", "crl") else kind
            found[known] = found.get(known, 0) + count
        return found


@contextlib.contextmanager
def fleet_of(bench: Bench, authority: EmulatedAuthority | None = None) -> Iterator[Fleet]:
    home = PlatformHome(bench.platform)
    known = authority or home.authority()
    anchor = bench.place / "root.der"
    anchor.write_bytes(known.ark.public_bytes(Encoding.DER))
    with (
        KeyServer([ProductLine(known, (home.firmware().chip,))]) as amd,
        mirror_front(bench.place / "mirror", amd.url, anchor) as front,
    ):
        yield Fleet(bench, amd, front)


Fleets = Callable[[Product], Fleet]


@pytest.fixture
def start(bench_of: Benches) -> Iterator[Fleets]:
    with contextlib.ExitStack() as stack:
        yield lambda product: stack.enter_context(fleet_of(bench_of(product)))


@pytest.fixture
def native_fleet(native: Bench) -> Iterator[Fleet]:
    with fleet_of(native) as fleet:
        yield fleet


@PRODUCTS
def test_snpguest_fetches_all_that_a_report_needs(
    start: Fleets, snpguest: Path, product: Product
) -> None:
    """A second guest on the same chip costs no request upstream."""
    fleet = start(product)
    bench = fleet.bench
    (bench.place / "none").write_bytes(bytes(24))
    bench.request()
    bench.guest("none", snpguest, "report", "report.bin", "request.bin")
    for name in ("first", "second"):
        fleet.run(snpguest, "fetch", "ca", "der", name, "--report", "report.bin")
        fleet.run(snpguest, "fetch", "vcek", "der", name, "report.bin")
        fleet.run(snpguest, "fetch", "crl", "der", name, "--report", "report.bin")
        run([snpguest, "verify", "certs", name], bench.place)
        run([snpguest, "verify", "attestation", name, "report.bin"], bench.place)
        found = bench.snpcerts(
            *("verify", "--anchor", "root.der", "--certs", name, "report.bin"), check=False
        )
        assert found.returncode == 0, found.stderr
    assert load_crl((bench.place / "first" / "crl.der").read_bytes()).issuer
    assert fleet.asked() == {"vcek": 1, "vcek/cert_chain": 1, "vcek/crl": 1}
    assert fleet.front.connected == {f"{AMD_NAME}:443": 6}


def test_snpguest_fetches_the_vleks_authorities_and_list(start: Fleets, snpguest: Path) -> None:
    fleet = start(Product.GENOA)
    fleet.run(snpguest, "fetch", "ca", "pem", "given", "genoa", "--endorser", "vlek")
    fleet.run(snpguest, "fetch", "crl", "pem", "given", "genoa", "--endorser", "vlek")
    authority = PlatformHome(fleet.bench.platform).authority()
    asvk = (fleet.bench.place / "given" / "asvk.pem").read_bytes()
    assert to_der(asvk, crl=False, what="ASVK") == authority.asvk.der
    # The mirror verifies the list with the chain's root, which it already has.
    assert fleet.asked() == {"vlek/cert_chain": 1, "vlek/crl": 1}


def test_snpguest_says_that_a_chip_which_amd_does_not_know_has_no_certificate(
    start: Fleets, snpguest: Path
) -> None:
    """Through the mirror, snpguest fails as it would with AMD's server, which answers 404."""
    fleet = start(Product.GENOA)
    bench = fleet.bench
    (bench.place / "none").write_bytes(bytes(24))
    bench.request()
    bench.guest("none", snpguest, "report", "report.bin", "request.bin")
    report = bytearray((bench.place / "report.bin").read_bytes())
    chip = Report.unpack(bytes(report)).fields.chip_id
    at = report.index(chip)
    report[at] ^= 1
    (bench.place / "other.bin").write_bytes(report)
    assert fleet.run(snpguest, "fetch", "vcek", "der", "given", "other.bin", check=False) == 1
    assert not (bench.place / "given").exists()
    assert fleet.asked()["vcek"] == 1
    assert 404 in fleet.amd.statuses


def test_snphost_fetches_all_that_a_table_needs(native_fleet: Fleet, snphost: Path) -> None:
    """snphost makes the URLs itself, from what the firmware says."""
    fleet, place = native_fleet, native_fleet.bench.place
    for name in ("first", "second"):
        fleet.host(snphost, "fetch", "vek", "der", name)
        fleet.host(snphost, "fetch", "ca", "der", name)
        fleet.host(snphost, "fetch", "crl", "lists")
        run([snphost, "verify", "certs", name], place)
    fleet.bench.request()
    run([snphost, "import", "first", "table.bin"], place)
    product = fleet.bench.product
    assert load_crl((place / "lists" / f"{product.kds_name}.crl").read_bytes()).issuer
    assert fleet.asked() == {"vcek": 1, "vcek/cert_chain": 1, "vcek/crl": 1}
    assert fleet.front.connected == {f"{AMD_NAME}:443": 6}


def test_snphost_fetches_a_vcek_by_the_mirrors_url(native_fleet: Fleet, snphost: Path) -> None:
    """This command takes a URL, so it needs no proxy, only the mirror's CA."""
    fleet, place = native_fleet, native_fleet.bench.place
    environment = fleet.front.environment
    plain = ("env", f"SSL_CERT_FILE={environment['SSL_CERT_FILE']}", "HTTPS_PROXY=")
    url = f"{fleet.front.url}/{fleet.vcek.path}"
    for encoding in ("der", "pem"):
        fleet.bench.host(*plain, snphost, "fetch", "vek", encoding, encoding, url)
    found = (place / "der" / "vcek.der").read_bytes()
    pem = (place / "pem" / "vcek.pem").read_bytes()
    assert to_der(pem, crl=False, what="VCEK") == found
    assert fleet.asked() == {"vcek": 1, "vcek/cert_chain": 1}
    assert not fleet.front.connected


@pytest.mark.parametrize("product", [Product.MILAN, Product.GENOA], ids=lambda item: item.value)
def test_go_sev_guest_checks_a_report_and_the_revocation_list(
    bench_of: Benches, go_sev_guest: Tools, product: Product
) -> None:
    """The report comes without certificates, so ``check`` fetches chain, VCEK and revocation list.

    It compares names, so the emulated certificates have AMD's names here.
    """
    bench = bench_of(product)
    authority = renamed_authority(PlatformHome(bench.platform).authority())
    (bench.place / "none").write_bytes(bytes(24))
    (bench.place / "bundle.pem").write_bytes(authority.chain_pem())
    bench.request()
    attest = ("-infile", "request.bin", "-inform", "bin", "-self_throttle_duration", "0s")
    bench.guest("none", go_sev_guest("attest"), *attest, "-out", "report.bin")
    with fleet_of(bench, authority) as fleet:
        argv: list[object] = [go_sev_guest("check"), "-in", "report.bin", "-network=true"]
        argv += ["-product", product.value, "-product_key_path", "bundle.pem"]
        argv += ["-guest_policy", "0x30000", "-check_crl=true", "-timeout", "30s"]
        for _ in range(2):
            fleet.run(*argv)
        assert fleet.asked() == {"vcek": 1, "vcek/cert_chain": 1, "vcek/crl": 1}
        assert set(fleet.front.connected) == {f"{AMD_NAME}:443"}
