# SPDX-License-Identifier: Apache-2.0
"""``snpcerts report``: print an attestation report in readable form."""

from __future__ import annotations

import json

import click

from snpcerts.cli.evidence_files import EvidenceFiles
from snpcerts.cli.file_group import FileGroup
from snpcerts.cli.say import present, say


@click.group(cls=FileGroup)
def command() -> None:
    """Print attestation reports, without verifying them."""


@command.command()
@click.argument("report")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def show(report: str, as_json: bool) -> None:
    """Show every field of a report, and explain its bits.

    The file REPORT holds one of these: a report of 1184 bytes, with or without a certificate table
    after it; a protocol buffer of go-sev-guest; the HCL report of an Azure VM. The command does not
    verify the fields; 'snpcerts verify' does.
    """
    from snpcerts.verify.explain import explain, explained_json

    evidence = EvidenceFiles(report).read()
    runtime = None if evidence.runtime_data is None else evidence.runtime_data.data
    entries = () if evidence.table is None else evidence.table.entries
    if as_json:
        beside = {
            "shape": evidence.shape.value,
            "table": [{"name": entry.name, "size": len(entry.data)} for entry in entries],
            "runtime_data": None if runtime is None else runtime.hex(),
        }
        say(json.dumps(explained_json(evidence.report) | beside, indent=2))
        return
    section = ""
    for line in explain(evidence.report):
        if line.section != section:
            present(f"{'' if not section else chr(10)}{line.section}")
            section = line.section
        value = f"  {line.name:<26} {line.value}"
        present(f"{value:<46}  {line.meaning}" if line.meaning else value)
    if entries:
        present("\ncertificate table")
        for entry in entries:
            present(f"  {entry.name:<26} {len(entry.data)} bytes")
    if evidence.runtime_data is not None and runtime is not None:
        bound = evidence.runtime_data.report_data() == evidence.report.fields.report_data
        state = "REPORT_DATA is its digest" if bound else "REPORT_DATA is not its digest"
        present(f"\nruntime data\n  {len(runtime)} bytes, {evidence.runtime_data.digest}: {state}")
