# SPDX-License-Identifier: Apache-2.0
"""Fixtures: other projects' programs, and an emulated platform to run them on.

Building the programs needs cargo, go and the network, and takes ten minutes the first time, so
these tests run only when asked for.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

import pytest

from snpcerts.abi.product import Product, product_of_cpuid
from snpcerts.emulator.frontdoor import seccomp
from snpcerts.emulator.machine.home import PlatformHome
from snpcerts.emulator.psp.choices import PUBLISHED, choices_of

from ..emulated_hosts import HOSTS, name
from .build import CLIENTS, BuildFailedError, Client, ToolMissingError, ensure
from .published import Published, published_evidence

ASKED: Final = "SNPCERTS_CLIENTS"
LIMIT: Final = 120.0  # seconds that one command may take at most

Ran = subprocess.CompletedProcess[str]


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker of these tests."""
    config.addinivalue_line("markers", f"clients: builds and runs others' programs ({ASKED}=1)")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test in this directory, so that ``-m`` can select it. Expect a test to fail if its
    tool must refuse the host's reports.
    """
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.clients)
            if _is_refused(item):
                item.add_marker(pytest.mark.xfail(reason=VERSION_2, strict=True))


# Reports of Genoa's published firmware lack the CPU's family and model, which came with version 3.
# Without them, other projects' verifiers do not know the product, and refuse.
VERSION_2: Final = "these tools need the product, which the host's reports (version 2) do not name"
_REFUSED: Final = frozenset(
    (
        "test_config_set_of_the_mask_bits",
        "test_a_new_reported_tcb_needs_new_certificates",
        "test_it_attests_and_every_verifier_agrees",
        "test_a_vlek_signs_and_its_certificates_are_named_after_it",
        "test_its_verifier_refuses_another_certificate_and_a_changed_report",
        "test_check_accepts_the_same_chain_under_amds_names",
    )
)


def _is_refused(item: pytest.Item) -> bool:
    """Whether this is a test in ``_REFUSED``, on a host with Genoa's published firmware."""
    if not isinstance(item, pytest.Function) or item.originalname not in _REFUSED:
        return False
    parameters: dict[str, Any] = item.callspec.params if hasattr(item, "callspec") else {}
    _, firmware = parameters.get("bench_of", ("", ""))
    usual = product_of_cpu() if "native" in item.fixturenames else Product.GENOA
    return firmware == PUBLISHED and parameters.get("product", usual) is Product.GENOA


class _NotAskedFor(pytest.Module):
    """A test module that is skipped without being imported."""

    def collect(self) -> NoReturn:
        pytest.skip(f"other projects' programs are built and run only with {ASKED}=1")


def pytest_pycollect_makemodule(
    module_path: Path, parent: pytest.Collector
) -> pytest.Module | None:
    """If these tests were not asked for, skip each module as a whole."""
    if os.environ.get(ASKED) == "1":
        return None
    module: pytest.Module = _NotAskedFor.from_parent(parent, path=module_path)
    return module


@pytest.fixture(scope="session")
def front_door() -> None:
    """Skip the test if this kernel cannot give programs an emulated platform."""
    try:
        seccomp.check()
    except seccomp.FrontDoorUnavailableError as error:
        pytest.skip(str(error))


def _built(name: str) -> Client:
    try:
        return ensure(CLIENTS[name])
    except ToolMissingError as error:
        pytest.skip(str(error))
    except BuildFailedError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def snpguest() -> Path:
    """virtee's guest tool."""
    return _built("snpguest").program("snpguest")


@pytest.fixture(scope="session")
def snphost() -> Path:
    """virtee's host tool."""
    return _built("snphost").program("snphost")


@pytest.fixture(scope="session")
def veraison() -> Path:
    """Veraison's libraries, in a program of ours."""
    return _built("veraison").program("veraison")


@pytest.fixture(scope="session")
def sevguest() -> Path:
    """Google's library, in a program of ours that judges much evidence at once."""
    return _built("sevguest").program("sevguest")


@pytest.fixture(scope="session")
def published() -> tuple[Published, ...]:
    """Genuine evidence that the Go module go-sev-guest and the crate sev ship."""
    try:
        return published_evidence()
    except ToolMissingError as error:
        pytest.skip(str(error))
    except BuildFailedError as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def go_sev_guest() -> Callable[[str], Path]:
    """Return a function that gives the path of each of Google's three tools."""
    return _built("go-sev-guest").program


def product_of_cpu() -> Product | None:
    """Return the product that a tool would find on this machine by executing CPUID.

    This reads /proc/cpuinfo, which shows the same family and model.
    """
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    found = dict(re.findall(r"^(vendor_id|cpu family|model)\s*: (\S+)$", text, re.MULTILINE))
    if found.get("vendor_id") != "AuthenticAMD":
        return None
    return product_of_cpuid(int(found.get("cpu family", 0)), int(found.get("model", 0)))


@dataclass(frozen=True)
class Bench:
    """An emulated platform, and a directory to work in."""

    product: Product
    platform: Path
    place: Path
    kernel: str

    def snpcerts(self, *arguments: object, check: bool = True) -> Ran:
        """Run ``snpcerts`` with ``arguments``."""
        return run([sys.executable, "-m", "snpcerts", *arguments], cwd=self.place, check=check)

    def emulate(self, *arguments: object, check: bool = True) -> Ran:
        """Run ``snpcerts emulate`` with this platform."""
        return self.snpcerts("emulate", "--platform", self.platform, *arguments, check=check)

    def host(self, *program: object, check: bool = True) -> Ran:
        """Run a program on the host."""
        return self.emulate("host", "--kernel", self.kernel, "--", *program, check=check)

    @contextmanager
    def running(self, *program: object) -> Iterator[subprocess.Popen[str]]:
        """Run a program on the host, with its output in a pipe, and kill it when the block ends."""
        argv = ["emulate", "--platform", self.platform, "host", "--kernel", self.kernel, "--"]
        argv += program
        process = subprocess.Popen(
            [sys.executable, "-m", "snpcerts", *map(str, argv)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.place,
        )
        limit = threading.Timer(LIMIT, process.kill)  # in case the output never comes
        limit.start()
        try:
            yield process
        finally:
            limit.cancel()
            process.kill()
            process.communicate()

    def guest(self, certs: Path | str, *program: object, check: bool = True) -> Ran:
        """Run a program in a guest whose VMM serves the file ``certs``."""
        served = ("--certs", certs, "--kernel", self.kernel)
        return self.emulate("guest", *served, "--", *program, check=check)

    @contextmanager
    def guest_running(self, certs: Path) -> Iterator[None]:
        """Keep a guest running during the block."""
        argv = ["emulate", "--platform", self.platform, "guest", "--certs", certs]
        argv += ["--kernel", self.kernel, "--", "sh", "-c", "echo here; read _"]
        with subprocess.Popen(
            [sys.executable, "-m", "snpcerts", *map(str, argv)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=self.place,
        ) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            assert process.stdout.readline() == "here\n"
            yield
            process.stdin.close()

    def certificates(self, name: str = "issued", *options: object) -> Path:
        """Write the signing key's certificates into the directory ``name``; return its path."""
        self.emulate("certificates", self.place / name, *options)
        return self.place / name

    def status(self) -> dict[str, Any]:
        """Return what ``snpcerts emulate status`` prints."""
        answer = json.loads(self.emulate("status", "--json").stdout)
        assert isinstance(answer, dict)
        return answer

    def request(self) -> bytes:
        """Write random report data for a request into ``request.bin``; return the data."""
        data = os.urandom(64)
        (self.place / "request.bin").write_bytes(data)
        return data

    def verify(self, report: str, issued: Path, *options: object, check: bool = True) -> Ran:
        """Run ``snpcerts verify`` with the emulated root as the anchor."""
        anchor = ("--anchor", issued / "ark.der")
        return self.snpcerts("verify", *anchor, *options, report, check=check)


def run(arguments: Sequence[object], cwd: Path, *, check: bool = True) -> Ran:
    """Run a program; with ``check`` it must succeed."""
    environment = {**os.environ, "RUST_BACKTRACE": "0"}
    ran = subprocess.run(
        [str(word) for word in arguments],
        cwd=cwd,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=LIMIT,
    )
    if check:
        assert ran.returncode == 0, (
            f"{arguments}: exit code {ran.returncode}\n{ran.stdout}{ran.stderr}"
        )
    return ran


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Product, str], Path]:
    """Return a function that makes one platform for each product and firmware, because making the
    three RSA keys takes a second or two. Copy the platform before you use it.
    """
    made: dict[tuple[Product, str], Path] = {}

    def platform(product: Product, firmware: str) -> Path:
        if (product, firmware) not in made:
            path = tmp_path_factory.mktemp("pristine") / product.value
            PlatformHome(path).prepare(product, choices_of(firmware))
            made[product, firmware] = path
        return made[product, firmware]

    return platform


Benches = Callable[[Product], Bench]


@pytest.fixture(params=HOSTS, ids=name)
def bench_of(
    front_door: None,
    request: pytest.FixtureRequest,
    pristine: Callable[[Product, str], Path],
    tmp_path: Path,
) -> Benches:
    """Return a function that makes a fresh platform of a product, with a directory to work in."""
    kernel, firmware = request.param

    def fresh(product: Product) -> Bench:
        shutil.copytree(pristine(product, firmware), tmp_path / "platform")
        (tmp_path / "place").mkdir()
        return Bench(product, tmp_path / "platform", tmp_path / "place", kernel)

    return fresh


@pytest.fixture
def native(bench_of: Benches) -> Bench:
    """A platform of the product that this machine's CPUID instruction names."""
    product = product_of_cpu()
    if product is None:
        pytest.skip(
            "the tool executes CPUID, which cannot be emulated; this CPU is not an SNP product"
        )
    return bench_of(product)
