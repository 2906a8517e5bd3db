# SPDX-License-Identifier: Apache-2.0
"""On a bare system, rpm itself installs, upgrades and erases the .rpm, and its commands work."""

from __future__ import annotations

from tests.packages.bare_root import BareRoot


def test_the_rpm_is_installed_used_upgraded_and_erased(bare: BareRoot) -> None:
    """The bare system is Debian, so rpm's database lists no Python, and rpm needs --nodeps."""
    made = bare.run(
        """
set -eu
rpm --query --requires --package /run/packages/snpcerts-0.1.0-1.x86_64.rpm
rpm --install --nodeps /run/packages/snpcerts-0.1.0-1.x86_64.rpm
rpm --verify --nodeps snpcerts
snpcerts --version
test -e /usr/lib/systemd/system/snpcerts-sync.service
snpcerts emulate --platform snp certificates certs
cp certs/table.bin /var/lib/snpcerts/certs.bin
snpcerts emulate --platform snp guest --certs /var/lib/snpcerts/certs.bin -- \
    snpcerts guest report -o report.bin --table-out table.bin
snpcerts verify report.bin --table table.bin --anchor certs/ark.der
identity() { stat -c '%i %Y %Z %a %U:%G' /var/lib/snpcerts/certs.bin; }
identity >before
sed -i 's/^# interval = 30/interval = 20/' /etc/snpcerts.toml
rpm --upgrade --nodeps /run/packages/snpcerts-0.1.1-1.x86_64.rpm
rpm --query snpcerts
snpcerts --version
grep -q '^interval = 20' /etc/snpcerts.toml
identity | cmp - before
rpm --erase snpcerts
identity | cmp - before
test ! -e /usr/lib/snpcerts
test ! -e /usr/bin/snpcerts
"""
    )
    assert made.returncode == 0, made.stdout + made.stderr
    assert "python3 >= 3.11" in made.stdout
    assert "snpcerts-0.1.1-1.x86_64" in made.stdout
    assert "\nverified" in made.stdout
    assert "kept /var/lib/snpcerts/certs.bin" in made.stderr
