# SPDX-License-Identifier: Apache-2.0
"""``snpcerts kds`` and ``snpcerts emulate key-server`` as real processes and in this one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from snpcerts.abi.product import Product
from snpcerts.cli import kds as kds_command
from snpcerts.cli import source_options
from snpcerts.cli.main import main
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.amd.key_server_faults import Fault
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.machine.key_server import ProductLine
from snpcerts.emulator.psp.chip import Chip
from tests.documented_json import documented
from tests.emulated import SNPCERTS
from tests.endorsement.small_ca import CPUID, PINNED, SmallCa
from tests.keys import authority_of, prepare_platform

from .conftest import Host

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Return a function that runs ``kds`` against the emulated server.

    It returns the exit code, the standard output and the standard error.
    """
    monkeypatch.chdir(tmp_path)
    return _runner(host, tmp_path, capsys)


def _runner(host: Host, folder: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    for product, line in host.server.lines.items():
        ark = line.authority.ark.public_bytes(Encoding.PEM)
        (folder / f"{product.value.lower()}.pem").write_bytes(ark)

    def command(
        *arguments: str, product: str = "milan", server: bool = True
    ) -> tuple[int, str, str]:
        options = ["--cache", str(host.cache), "--anchor", f"{product}.pem"]
        if server:
            options += ["--kds", host.server.url]
        capsys.readouterr()
        code = main(["kds", *arguments, *options])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def named(host: Host, product: Product = Product.MILAN) -> list[str]:
    tcb = host.resource(product).tcb
    text = f"bl={tcb.bootloader},tee={tcb.tee},snp={tcb.snp},ucode={tcb.microcode}"
    if tcb.fmc is not None:
        text += f",fmc={tcb.fmc}"
    hwid = host.resource(product).hwid.hex()
    return ["--product", product.value.lower(), "--hwid", hwid, "--tcb", text]


@pytest.mark.parametrize("product", [Product.MILAN, Product.TURIN])
def test_a_vcek_is_fetched_shown_and_served_offline(host: Host, run: Run, product: Product) -> None:
    name = product.value.lower()
    code, out, err = run("fetch", "vcek", *named(host, product), "-o", "out", product=name)
    assert (code, err) == (0, "")
    assert "verified" in out
    assert sorted(os.listdir("out")) == ["ark.der", "ask.der", "vcek.der"]
    code, out, _ = run(
        "fetch", "vcek", *named(host, product), "--offline", "--json", product=name, server=False
    )
    assert code == 0
    assert documented("kds fetch vcek", out)["tcb"] == host.resource(product).tcb.components()
    code, out, _ = run("show", product=name, server=False)
    assert code == 0
    assert out.count("verifies") == 2
    assert host.leaf_requests(product) == 1


def test_a_report_names_its_vcek(host: Host, run: Run) -> None:
    ca = SmallCa(Product.TURIN, chip_id=host.resource(Product.TURIN).hwid.ljust(64, b"\0"))
    family, model = CPUID[Product.TURIN]
    report = ca.report(
        reported_tcb=host.resource(Product.TURIN).tcb.pack(),
        cpuid_family=family,
        cpuid_model=model,
    )
    Path("report").write_bytes(report)
    code, out, _ = run("fetch", "vcek", "--report", "report", "--json", product="turin")
    assert code == 0
    assert documented("kds fetch vcek", out)["hwid"] == host.resource(Product.TURIN).hwid.hex()
    code, _, err = run("fetch", "vcek", "--report", "report", "--product", "milan", product="turin")
    assert (code, "found a report for Turin" in err) == (2, True)


@pytest.fixture(scope="module")
def genoa() -> EmulatedAuthority:
    return authority_of(Product.GENOA)


@pytest.mark.parametrize("product", PINNED)
def test_a_report_of_version_2_is_tried_as_every_product_it_may_be_of(
    host: Host,
    run: Run,
    genoa: EmulatedAuthority,
    monkeypatch: pytest.MonkeyPatch,
    product: Product,
) -> None:
    """The report names no product, and the chip IDs of Milan and Genoa look alike.

    ``verify --fetch`` tries the same products.
    """
    host.server.lines[Product.GENOA] = ProductLine(genoa, (Chip.create(Product.GENOA),))
    monkeypatch.setattr(kds_command, "anchors_of", lambda _paths: host.anchors)
    chip = host.server.lines[product].chips[0]
    ca = SmallCa(product, chip_id=chip.hwid.ljust(64, b"\0"))
    Path("old").write_bytes(ca.report(version=2, reported_tcb=host.resource(product).tcb.pack()))
    code, out, _ = run("fetch", "vcek", "--report", "old", "--json")
    assert code == 0
    assert documented("kds fetch vcek", out)["product"] == product.value
    wrong = Product.GENOA if product is Product.TURIN else Product.TURIN
    assert run("fetch", "vcek", "--report", "old", "--product", wrong.value.lower())[0] != 0


def test_a_report_of_version_2_of_an_unknown_chip_names_all_that_was_tried(
    host: Host, run: Run, genoa: EmulatedAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    host.server.lines[Product.GENOA] = ProductLine(genoa, ())
    monkeypatch.setattr(kds_command, "anchors_of", lambda _paths: host.anchors)
    Path("old").write_bytes(SmallCa(chip_id=bytes(range(64))).report(version=2))
    code, _, err = run("fetch", "vcek", "--report", "old")
    assert (code, "Milan VCEK" in err, "Genoa VCEK" in err) == (1, True, True)


def test_only_products_whose_root_is_trusted_are_tried(
    host: Host, run: Run, genoa: EmulatedAuthority
) -> None:
    host.server.lines[Product.GENOA] = ProductLine(genoa, (Chip.create(Product.GENOA),))
    Path("genoa.pem").write_bytes(genoa.ark.public_bytes(Encoding.PEM))
    chip = host.server.lines[Product.GENOA].chips[0]
    report = SmallCa(Product.GENOA, chip_id=chip.hwid).report(version=2)
    Path("old").write_bytes(report)
    assert run("fetch", "vcek", "--report", "old", product="genoa")[0] == 0
    assert not [path for path in host.server.requests if "/Milan/" in path]


def test_a_report_that_says_too_little_is_refused(host: Host, run: Run) -> None:
    ca = SmallCa(chip_id=host.resource().hwid)
    Path("unknown").write_bytes(ca.report(version=3, cpuid_family=0x99, cpuid_model=1))
    code, _, err = run("fetch", "vcek", "--report", "unknown")
    assert (code, "--product" in err) == (2, True)
    Path("vlek").write_bytes(ca.report(flags=1 << 2))
    code, _, err = run("fetch", "vcek", "--report", "vlek")
    assert (code, "cloud provider" in err) == (2, True)
    Path("masked").write_bytes(ca.report(chip_id=bytes(64)))
    code, _, err = run("fetch", "vcek", "--report", "masked")
    assert (code, "MASK_CHIP_ID" in err) == (2, True)
    Path("short").write_bytes(b"x")
    assert run("fetch", "vcek", "--report", "short")[0] == 2


@pytest.mark.parametrize(("vlek", "label"), [((), "ask"), (("--vlek",), "asvk")])
def test_chains_and_lists_are_fetched(
    host: Host, run: Run, vlek: tuple[str, ...], label: str
) -> None:
    assert run("fetch", "chain", "--product", "milan", *vlek, "-o", "out")[0] == 0
    code, out, _ = run("fetch", "crl", "--product", "milan", *vlek, "-o", "out", "--json")
    assert code == 0
    assert documented("kds fetch crl", out)["ok"]
    assert sorted(os.listdir("out")) == sorted(["ark.der", f"{label}.der", "crl.der"])
    code, out, _ = run("show", "--json", server=False)
    assert code == 0
    entries = documented("kds show", out)["entries"]
    assert [entry["problem"] for entry in entries] == [None, None]
    assert all(entry["not_after"] for entry in entries)


def test_revocations_in_the_cached_list_are_shown(
    host: Host, run: Run, milan: EmulatedAuthority
) -> None:
    chip = host.server.lines[Product.MILAN].chips[0]
    revoked = (milan.ask.serial_number,)
    host.server.lines[Product.MILAN] = ProductLine(milan, (chip,), revoked)
    source = host.source()
    host.fetch_from(source)
    source.crl(Product.MILAN)
    code, out, _ = run("show", "--json", server=False)
    entries = documented("kds show", out)["entries"]
    problems = {each["file"].partition("/")[0]: each["problem"] for each in entries}
    assert code == 1
    assert problems["crl"] is None, "must show no problem of the list itself"
    assert "ask-revoked" in problems["chain"]
    assert "ask-revoked" in problems["vcek"]


def test_a_file_named_as_the_cache_is_not_an_empty_cache(host: Host, run: Run) -> None:
    host.cache.write_bytes(b"a certificate, say")
    code, out, err = run("show", server=False)
    assert (code, out) == (2, "")
    assert "expected a directory" in err
    assert host.cache.read_bytes() == b"a certificate, say"


def test_a_damaged_cache_shows(host: Host, run: Run) -> None:
    run("fetch", "vcek", *named(host))
    host.kept().write_bytes(b"\x30\x00")
    (host.cache / "vcek" / "stray").mkdir()
    (host.cache / "vcek" / "stray" / "file").touch()
    code, out, _ = run("show", server=False)
    assert code == 1
    assert "not a readable X.509 certificate" in out
    assert "not a cache file" in out
    code, _, err = run("fetch", "vcek", *named(host))
    assert code == 0
    assert "warning" in err
    assert ": the file is damaged" in err


@pytest.mark.parametrize(
    ("fault", "code", "name"),
    [
        (Fault.NOT_FOUND, 1, "kds-not-found"),
        (Fault.WRONG_CHIP, 1, "kds-untrusted"),
        (Fault.TOO_MANY, 3, "kds-unavailable"),
        (Fault.FORBIDDEN, 3, "kds-unavailable"),
    ],
)
def test_exit_codes_say_what_to_do_next(
    host: Host,
    run: Run,
    fault: Fault,
    code: int,
    name: str,
) -> None:
    host.source().chain(Product.MILAN)
    host.server.faults.set(fault)
    found, out, err = run("fetch", "vcek", *named(host), "--json", "--timeout", "3")
    assert found == code
    said = documented("kds fetch vcek", out)
    assert (said["ok"], said["code"]) == (False, name)
    assert err.startswith("snpcerts: ")
    if fault is Fault.TOO_MANY:
        assert 10 <= said["retry_after"] <= 12
        assert f"try again in {said['retry_after']:.0f} s" in err


@pytest.mark.parametrize(
    "arguments",
    [
        ["fetch", "vcek"],
        ["fetch", "vcek", "--product", "milan", "--hwid", "zz", "--tcb", "bl=1"],
        ["fetch", "vcek", "--product", "milan", "--hwid", "ab", "--tcb", "bl=1"],
        ["fetch", "vcek", "--product", "milan", "--hwid", "ab", "--tcb", "bl=1,bl=2"],
        [
            "fetch",
            "vcek",
            "--product",
            "milan",
            "--hwid",
            "ab",
            "--tcb",
            "bl=1,tee=1,snp=1,ucode=256",
        ],
        [
            "fetch",
            "vcek",
            "--product",
            "milan",
            "--hwid",
            "ab",
            "--tcb",
            "bl=1,tee=1,snp=1,ucode=1",
        ],
        ["fetch", "vcek", "--report", "missing"],
        ["fetch", "vcek", "--report", "x", "--hwid", "ab"],
        ["fetch", "chain", "--product", "rome"],
        ["fetch", "chain", "--product", "milan", "--offline"],
    ],
)
def test_wrong_usage_is_exit_code_2(run: Run, arguments: list[str]) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, "")
    assert err


def test_the_cache_is_the_users_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert source_options.cache_directory(None) == Path("/elsewhere/snpcerts")
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", "/home/me")
    assert source_options.cache_directory(None) == Path("/home/me/.cache/snpcerts")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert source_options.cache_directory(None) == Path("/var/cache/snpcerts")


def test_a_slow_server_is_announced(host: Host, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kds_command, "_QUIET", 0.01)
    host.server.faults.set(Fault.SLOW)
    code, _, err = run("fetch", "chain", "--product", "milan")
    assert (code, err) == (0, "snpcerts: fetching the ASK and ARK of Milan\n")


@dataclass
class Served:
    """``snpcerts emulate key-server`` for a platform of its own."""

    url: str
    folder: Path

    def fetch(self, *arguments: str) -> list[str]:
        certs = self.folder / "certs"
        options = ["--kds", self.url, "--cache", str(self.folder / "cache")]
        return [*SNPCERTS, "kds", "fetch", *arguments, *options, "--anchor", str(certs / "ark.der")]

    def stats(self) -> dict[str, object]:
        found = httpx2.get(f"{self.url}/stats", trust_env=False).json()
        assert isinstance(found, dict)
        return found


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("served")
    prepare_platform(folder / "platform")
    emulate = [*SNPCERTS, "emulate", "--platform", str(folder / "platform")]
    subprocess.run(
        [*emulate, "certificates", str(folder / "certs")],
        check=True,
        timeout=120,
        stdout=subprocess.DEVNULL,
    )
    with subprocess.Popen(
        [*emulate, "key-server", "--fault", "slow", "--delay", "0.5"],
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        try:
            yield Served(process.stdout.readline().strip(), folder)
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(30) == 130


@pytest.mark.slow
def test_processes_that_share_a_cache_make_one_request(served: Served) -> None:
    hwid = PlatformHome(served.folder / "platform").firmware().chip.hwid.hex()
    argv = ["--product", "milan", "--hwid", hwid, "--tcb", "bl=1,tee=0,snp=2,ucode=3", "--json"]
    running = [
        subprocess.Popen(
            served.fetch("vcek", *argv, "-o", str(served.folder / f"out{index}")),
            stdout=subprocess.DEVNULL,
        )
        for index in range(4)
    ]
    assert [process.wait(120) for process in running] == [0] * 4
    leaves = {(served.folder / f"out{index}" / "vcek.der").read_bytes() for index in range(4)}
    assert len(leaves) == 1
    assert served.stats()["total"] == 2, "must request the chain once, and the certificate once"


def test_help_imports_no_http_library() -> None:
    program = (
        "import sys; from snpcerts.cli.main import main; main(['kds', 'fetch', 'vcek', '--help']);"
        "sys.exit('httpx2' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.DEVNULL, timeout=60)
    assert done.returncode == 0
