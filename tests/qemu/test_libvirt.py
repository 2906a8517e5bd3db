# SPDX-License-Identifier: Apache-2.0
"""Debian's libvirt with its QEMU 11, on the emulated host: a domain of type sev-snp attests.

An overlay over ``/usr`` in a mount namespace puts both where their packages install them. virsh
starts libvirt's session daemon, as it does for any user.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from snpcerts.vmm.preload import shim_library

from .rig import LIMIT, NAMESPACE, Tools, fetched
from .test_emulated import SNPCERTS, verified

USER = "65534"  # nobody: libvirt takes root for the system's daemon
INSTALLED = f"""
mount -t overlay -o lowerdir="$1":"$2":/usr none /usr
shift 2
exec unshare --user --map-user={USER} --map-group={USER} "$@"
"""
# The domain of docs/stock-vmms.md, with this processor's C-bit, because QEMU refuses any other.
DOMAIN = """
<domain type='kvm' xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'>
  <name>attests</name>
  <memory unit='MiB'>64</memory>
  <vcpu>1</vcpu>
  <os>
    <type arch='x86_64' machine='q35'>hvm</type>
    <loader type='rom' stateless='yes'>{rom}</loader>
  </os>
  <on_reboot>destroy</on_reboot>
  <devices>
    <controller type='usb' model='none'/>
    <memballoon model='none'/>
  </devices>
  <launchSecurity type='sev-snp'>
    <cbitpos>{c_bit}</cbitpos>
    <reducedPhysBits>1</reducedPhysBits>
    <policy>0x30000</policy>
  </launchSecurity>
  <qemu:commandline>
    <qemu:env name='LD_PRELOAD' value='{shim}'/>
    <qemu:env name='SNPCERTS_CERTS_FILENAME' value='{table}'/>
    <qemu:env name='SNPCERTS_CERTS_TIMEOUT' value='100'/>
  </qemu:commandline>
</domain>
"""
# 'create' makes a transient domain, which is gone when its QEMU has ended.
USE = """
trap 'kill "$(cat "$XDG_RUNTIME_DIR"/libvirt/libvirtd.pid)"' EXIT
virsh -q -c qemu:///session create "$1"
while virsh -q -c qemu:///session domstate attests >&2; do :; done
cat "$XDG_CACHE_HOME"/libvirt/qemu/log/attests.log
"""


def installed(arguments: list[str]) -> list[str]:
    """The command that runs ``arguments`` as an ordinary user, with libvirt and QEMU installed."""
    usr = [str(fetched() / each / "usr") for each in ("libvirt", "11")]
    return [*NAMESPACE, "sh", "-ec", INSTALLED, "sh", *usr, *arguments]


@pytest.fixture(scope="module", autouse=True)
def _libvirt() -> None:
    for name in ("libvirt", "11"):
        if not (fetched() / name / "complete").exists():
            pytest.skip(f"no {name} in {fetched()}: 'make test-qemu' fetches it")
    made = subprocess.run(installed(["virsh", "--version"]), capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"libvirt needs namespaces and an overlay: {made.stderr.strip()}")


@pytest.fixture
def home() -> Iterator[dict[str, str]]:
    """The environment, with new directories for libvirt's user.

    Their paths are short, because libvirt creates QEMU's sockets deep inside them, and the path of
    a socket must not be long.
    """
    names = {"HOME": "home", "XDG_RUNTIME_DIR": "run"}
    names |= {f"XDG_{each.upper()}_HOME": f"home/.{each}" for each in ("cache", "config")}
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        for each in names.values():
            Path(folder, each).mkdir(mode=0o700, exist_ok=True)
        yield os.environ | {name: str(Path(folder, each)) for name, each in names.items()}


@pytest.mark.parametrize("exit_number", [43, 42])
def test_a_domain_of_type_sev_snp_attests(
    tools: Tools, tmp_path: Path, home: dict[str, str], exit_number: int
) -> None:
    platform, certs = tmp_path / "platform", tmp_path / "certs"
    outcomes, domain = tmp_path / "outcomes.jsonl", tmp_path / "domain.xml"
    settings = {"rom": tools.rom(1, 1), "c_bit": tools.c_bit, "shim": shim_library()}
    domain.write_text(DOMAIN.format(table=certs / "table.bin", **settings))

    def snpcerts(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            installed([*SNPCERTS, "emulate", "--platform", str(platform), *map(str, arguments)]),
            capture_output=True,
            text=True,
            env=home,
            timeout=3 * LIMIT,
        )

    made = snpcerts("certificates", certs)
    assert made.returncode == 0, made.stderr
    options = ["--requests", "3", "--outcomes", str(outcomes), "--exit-number", str(exit_number)]
    made = snpcerts("host", *options, "--", "sh", "-ec", USE, "sh", domain)
    assert made.returncode == 0, made.stderr
    assert "libvirt version" in made.stdout
    assert "snpcerts shim" not in made.stdout, made.stdout
    verified(outcomes, certs, tmp_path)
