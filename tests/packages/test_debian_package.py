# SPDX-License-Identifier: Apache-2.0
"""The .deb on bare Debian systems: installed, used, upgraded and purged."""

from __future__ import annotations

import time

import pytest

from tests.packages.bare_root import BareRoot
from tests.packages.conftest import NEWEST, ROOT

# The commands of docs/operators.md, from the package to the first verified guest.
FIRST_GUEST = """
set -eu
dpkg --install /run/packages/snpcerts_0.1.0_amd64.deb >/dev/null
snpcerts --version
snpcerts emulate --platform snp certificates certs
snpcerts emulate --platform snp key-server >server.log 2>&1 &
until grep -o 'http://[^ ]*' server.log >url; do sleep 0.1; done
url=$(head -n 1 url)
sed -i 's|^# anchors = .*|anchors = ["/root/certs/ark.der"]|' /etc/snpcerts.toml
sed -i '0,/^# url = /s|^# url = .*|url = "'$url'"|' /etc/snpcerts.toml
snpcerts emulate --platform snp host -- snpcerts host sync
snpcerts emulate --platform snp host -- snpcerts host status
snpcerts emulate --platform snp guest --certs /var/lib/snpcerts/certs.bin -- \
    snpcerts guest report -o report.bin --table-out table.bin
snpcerts verify report.bin --table table.bin --anchor certs/ark.der
snpcerts run --certs-filename /var/lib/snpcerts/certs.bin --print-environment
stat -c %G:%a /var/lib/snpcerts/certs.bin
"""
# A program stands in for a VMM in the middle of a request: it holds the file's lock while the
# package commands run, and ends with the script, whose namespace kills all of its processes.
SERVING = """
set -eu
identity() {
    stat -c '%i %Y %Z %a %U:%G' /var/lib/snpcerts/certs.bin
    cksum </var/lib/snpcerts/certs.bin
}
identity >before
python3 - <<'END' &
import fcntl, os, signal, struct
fd = os.open("/var/lib/snpcerts/certs.bin", os.O_RDONLY)
fcntl.fcntl(fd, 37, struct.pack("hhqqi4x", fcntl.F_RDLCK, 0, 0, 0, 0))
open("/root/holding", "w").close()
signal.pause()
END
until [ -e holding ]; do sleep 0.1; done
"""


@pytest.mark.parametrize("bare", NEWEST, indirect=True)
def test_from_the_package_to_a_verified_guest_to_a_purge(bare: BareRoot) -> None:
    start = time.monotonic()
    made = bare.run(FIRST_GUEST)
    assert made.returncode == 0, made.stdout + made.stderr
    assert "in step" in made.stdout
    assert "\nverified" in made.stdout
    assert made.stdout.splitlines()[-1] == "kvm:640"
    # libvirt domains and AppArmor rules name this path: it must not depend on Python's version.
    (shim,) = (line for line in made.stdout.splitlines() if line.startswith("LD_PRELOAD="))
    assert f"\n{shim}\n" in (ROOT / "docs/stock-vmms.md").read_text()
    assert time.monotonic() - start < 60

    upgraded = bare.run(
        SERVING
        + """
sed -i 's/^# interval = 30/interval = 20/' /etc/snpcerts.toml
dpkg --install /run/packages/snpcerts_0.1.1_amd64.deb
identity | cmp - before
grep -q '^interval = 20' /etc/snpcerts.toml
snpcerts emulate --platform snp host -- snpcerts host status
"""
    )
    assert upgraded.returncode == 0, upgraded.stdout + upgraded.stderr
    assert "in step" in upgraded.stdout

    removed = bare.run(
        "rm holding;"
        + SERVING
        + """
dpkg --remove snpcerts
identity | cmp - before
test -e /etc/snpcerts.toml
dpkg --purge snpcerts
identity | cmp - before
test ! -e /etc/snpcerts.toml
test ! -e /usr/lib/snpcerts
test ! -e /usr/bin/snpcerts
test ! -e /var/cache/snpcerts
"""
    )
    assert removed.returncode == 0, removed.stdout + removed.stderr
    assert "kept /var/lib/snpcerts/certs.bin" in removed.stderr


def test_a_removal_without_certificates_leaves_nothing(bare: BareRoot) -> None:
    made = bare.run(
        """
set -eu
find / -xdev -not -path '/root*' -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' \
    -not -path '/tmp*' -not -path '/etc/*' | sort >before
dpkg --install /run/packages/snpcerts_0.1.0_amd64.deb
snpcerts --help >/dev/null
snpcerts --version
test -e /usr/share/man/man1/snpcerts-host.1.gz
test -e /usr/lib/systemd/system/snpcerts-sync.service
dpkg --purge snpcerts
find / -xdev -not -path '/root*' -not -path '/var/lib/dpkg/*' -not -path '/var/log/*' \
    -not -path '/tmp*' -not -path '/etc/*' | sort >after
diff before after
test ! -e /etc/snpcerts.toml
"""
    )
    assert made.returncode == 0, made.stdout + made.stderr


def test_two_installations_and_a_missing_device_are_reported(bare: BareRoot) -> None:
    made = bare.run(
        """
mkdir -p /etc/systemd/system && touch /etc/systemd/system/snpcerts-sync.service
dpkg --install /run/packages/snpcerts_0.1.0_amd64.deb
snpcerts host install; echo $?
snpcerts host check; echo $?
snpcerts host sync; echo $?
"""
    )
    assert "hides this" in made.stderr
    assert "use the package as it is, or remove it first" in made.stderr
    assert "/dev/sev" in made.stdout
    assert [line for line in made.stdout.splitlines() if len(line) == 1] == ["1", "1", "1"]
