# SPDX-License-Identifier: Apache-2.0
"""One example for each command, shown at the end of its help and in its manual page."""

from __future__ import annotations

from typing import Final

import click

# Maps each command to the arguments of its example.
EXAMPLES: Final = {
    "table build": "--vcek vcek.der --ask ask.der --ark ark.der -o certs.bin",
    "table extract": "certs.bin certs/",
    "table show": "certs.bin",
    "verify": "report.bin --table table.bin",
    "policy bulletins": "",
    "policy corim": "policy.toml -o policy.cbor",
    "policy floors": "--bulletin AMD-SB-3023 --product genoa",
    "policy rvps": "policy.toml -o policy.json",
    "host check": "--online",
    "host commit": "--dry-run",
    "host install": "--group libvirt-qemu --dry-run",
    "host load-vlek": "hashstick.bin --vlek-cert vlek.der",
    "host prove": "-- ssh guest1 snpcerts guest report -o - --report-data {report_data}",
    "host prove-key": "-- ssh guest1 snpcerts guest report -o - --report-data {report_data}",
    "host set-config": "--reported-tcb ucode=213 --dry-run",
    "host status": "--json",
    "host sync": "--watch --metrics-port 9120",
    "host uninstall": "--dry-run",
    "report show": "report.bin",
    "lock": "certs.bin --seconds 5",
    "kds fetch chain": "--product milan --cache certs/",
    "kds fetch crl": "--product milan --cache certs/",
    "kds fetch vcek": "--report report.bin --cache certs/",
    "kds show": "--cache certs/",
    "mirror export": "copy/",
    "mirror forget": "rack1-host7",
    "mirror import": "copy/",
    "mirror roll": "--product genoa --tcb bl=10,tee=0,snp=27,ucode=86",
    "mirror serve": "--listen 0.0.0.0:8180 --agent-token-file agents.token",
    "run": "--certs-filename /var/lib/snpcerts/certs.bin -- qemu-system-x86_64 -machine q35",
    "guest report": "-o report.bin --table-out table.bin",
    "emulate certificates": "certs/ --platform ~/snp",
    "emulate firmware reload": "--platform ~/snp",
    "emulate firmware rows": "",
    "emulate firmware update": "--current snp=25,ucode=220 --platform ~/snp",
    "emulate firmware verify-mitigation": "0x1 --platform ~/snp",
    "emulate guest": "--platform ~/snp --certs certs/table.bin -- snpcerts guest report -o r.bin",
    "emulate host": "--platform ~/snp -- snpcerts host status",
    "emulate key-server": "--platform ~/snp --throttle 10",
    "emulate reboot": "--bios snp=26 --platform ~/snp",
    "emulate status": "--platform ~/snp",
    "conformance": "-- ./my-vmm --certs {certs}",
    "demo": "",
}


def add_examples(name: str, command: click.Command) -> click.Command:
    """Add the examples to a command and to its subcommands; return the command."""
    if isinstance(command, click.Group):
        for word, inner in command.commands.items():
            add_examples(f"{name} {word}", inner)
    elif command.epilog is None and (rest := EXAMPLES.get(name)) is not None:
        command.epilog = f"\b\nExample:\n  $ {' '.join(('snpcerts', name, rest)).rstrip()}"
    return command
