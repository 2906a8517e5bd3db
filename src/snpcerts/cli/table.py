# SPDX-License-Identifier: Apache-2.0
"""``snpcerts table``: build, show and extract certificate tables."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterable, Mapping

import click

from snpcerts.abi import cert_table
from snpcerts.abi.cert_table import CertTable, TableEntry, TableProblem
from snpcerts.cli.file_group import FileGroup
from snpcerts.cli.files import make_directory, read_input, write_output
from snpcerts.cli.say import counted, present, say, say_line
from snpcerts.errors import FormatError, InputError, RefusedError, UsageError
from snpcerts.printable import printable

_GUIDS = {name: guid for guid, name in cert_table.GUID_NAMES.items()}
_DESCRIBED = 1024  # characters of an entry's description
# VLEK before ASK, because snphost's export names the ASK entry "asvk" only in that order.
_SLOTS = ("vcek", "vlek", "ask", "ark", "crl")


@click.group(cls=FileGroup)
def command() -> None:
    """Build, show and extract certificate tables.

    A guest gets a certificate table from its host together with an attestation report. The table
    begins with GUIDs, offsets and lengths, and the certificates follow, as the GHCB specification
    defines.
    """


@command.command()
@click.option("-o", "--output", required=True, metavar="FILE", help="File to write the table to.")
@click.option("--vcek", metavar="F", help="File with the VCEK certificate.")
@click.option("--vlek", metavar="F", help="File with the VLEK certificate.")
@click.option(
    "--ask", metavar="F", help="File with the ASK certificate or, for a VLEK, the ASVK certificate."
)
@click.option("--ark", metavar="F", help="File with the ARK certificate.")
@click.option("--crl", metavar="F", help="File with the certificate revocation list (CRL).")
@click.option(
    "--chain",
    metavar="F",
    help=(
        "File with several of these certificates, such as the key server's "
        "cert_chain (ASK and ARK)."
    ),
)
@click.option(
    "--entry",
    "entries",
    multiple=True,
    metavar="GUID=F",
    help=(
        "Add an entry with this GUID, which holds the bytes of file F unchanged. May be given "
        "several times."
    ),
)
@click.option(
    "--force",
    is_flag=True,
    help=(
        "Build the table even if no verifier could use it, and replace the output file even "
        "if it is not a table."
    ),
)
@click.option(
    "--oversize", is_flag=True, help="Allow a table larger than a Linux guest can fetch (16 KiB)."
)
def build(
    output: str,
    entries: tuple[str, ...],
    chain: str | None,
    force: bool,
    oversize: bool,
    **slots: str | None,
) -> None:
    """Build a certificate table from certificates in DER or PEM.

    The table's certificates are in DER. The command replaces FILE while it holds the file's lock,
    so VMMs can serve FILE at the same time. It refuses certificates that no verifier could use
    together, such as swapped ASK and ARK certificates.
    """
    found = _certificates(slots, chain, force)
    parts = [TableEntry(_GUIDS[slot], found[slot]) for slot in _SLOTS if slot in found]
    parts += [_entry(text) for text in entries]
    if not parts:
        raise UsageError(
            "no certificate for the table was given",
            hint="give at least one of --vcek, --vlek, --ask, --ark, --crl, --chain and --entry",
        )
    table = CertTable(tuple(parts))
    data = table.encode()
    if len(data) > cert_table.LINUX_GUEST_LIMIT and not oversize:
        raise RefusedError(
            f"the table would have {len(data)} bytes, but a Linux guest fetches at most "
            f"{cert_table.LINUX_GUEST_LIMIT} bytes",
            hint="omit an entry, or allow the size with --oversize",
        )
    from snpcerts.certfile.file import CertFile

    CertFile(output).publish(table, force=force)
    say_line(f"{output}: {_size(table, data)}")


@command.command()
@click.argument("file")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
@click.option(
    "--lenient", is_flag=True, help="Also accept a malformed table, and show its readable entries."
)
def show(file: str, as_json: bool, lenient: bool) -> None:
    """List the entries of a certificate table."""
    data = read_input(file)
    problems: tuple[TableProblem, ...] = ()
    if lenient:
        table, problems = CertTable.decode_lenient(data)
    else:
        table = _decode(file, data)
    rows = [(entry, _describe(entry)) for entry in table]
    if as_json:
        say(json.dumps(_to_json(table, data, rows, problems)))
    else:
        say_line(f"{file}: {_size(table, data)}")
        for entry, text in rows:
            present(f"  {entry.name:<8} {len(entry.data):>6} bytes  {text}")
        for warning in table.warnings:
            present(f"  warning: {warning}", err=True)
        for problem in problems:
            present(f"  problem: {problem}", err=True)
    if problems:
        raise InputError(
            f"{file}: the table is malformed ({counted(len(problems), 'problem')}); only its "
            "readable entries are shown"
        )


@command.command()
@click.argument("file")
@click.argument("directory")
@click.option(
    "--encoding",
    type=click.Choice(["der", "pem"]),
    default="der",
    show_default=True,
    help="Encoding in which to write certificates and revocation lists.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def extract(file: str, directory: str, encoding: str, as_json: bool) -> None:
    """Write each entry of a table to its own file in a directory.

    Certificates and CRLs are written in the chosen encoding. An entry with an unknown GUID is
    written unchanged, to a file named after the GUID.
    """
    table = _decode(file, read_input(file))
    # Convert everything before writing anything, so that a bad entry leaves no files behind.
    outputs = [_output(file, table, entry, encoding) for entry in table]
    make_directory(directory)
    for name, data in outputs:
        write_output(os.path.join(directory, name), data)
    if as_json:
        say(json.dumps({"directory": directory, "files": [name for name, _ in outputs]}))
    else:
        for name, data in outputs:
            say_line(f"{os.path.join(directory, name)}: {len(data)} bytes")


def _decode(file: str, data: bytes) -> CertTable:
    try:
        table = CertTable.decode(data)
    except FormatError as error:
        from snpcerts.cli.evidence_files import not_a_table

        if (wrong := not_a_table(data)) is not None:
            raise InputError(f"{file}: {wrong.message}") from None
        raise InputError(
            f"{file}: {error.message}",
            hint="see the readable entries with 'snpcerts table show --lenient'",
        ) from None
    return table


def _certificates(
    slots: Mapping[str, str | None], chain: str | None, force: bool
) -> dict[str, bytes]:
    """Return the certificates that the options name, in DER, by slot.

    Raises an error if a file holds no certificate, does not fit its slot, or is useless to a
    verifier.
    """
    from snpcerts.endorsement.table_certificates import (
        certificate_for,
        certificates_in,
        list_in,
        slot_of,
        useless,
    )

    found: dict[str, bytes] = {}
    vlek = slots.get("vlek") is not None and slots.get("vcek") is None
    for slot, path in slots.items():
        if path is None:
            continue
        data = read_input(path)
        if slot == "crl":
            found[slot] = list_in(data, path)
        else:
            found[slot] = certificate_for(slot, data, path, vlek=vlek, force=force)
    if chain is not None:
        data = read_input(chain)
        inside = dict.fromkeys(slot_of(each) for each in certificates_in(data, chain))
        for name in inside:
            if name is not None and name not in found:
                found[name] = certificate_for(name, data, chain, vlek=vlek, force=force)
    reasons = useless({slot: data for slot, data in found.items() if slot != "crl"})
    if reasons and not force:
        said = "; ".join(map(str, reasons))
        raise RefusedError(
            f"no verifier could use a table with these certificates: {said}",
            hint="correct the options, or build the table anyway with --force",
        )
    return found


def _entry(text: str) -> TableEntry:
    guid, equals, path = text.partition("=")
    try:
        parsed = uuid.UUID(guid)
    except ValueError:
        parsed = None
    if not equals or parsed is None or not path:
        raise UsageError(f"--entry {text}: expected GUID=FILE")
    return TableEntry(parsed, read_input(path))


def _output(file: str, table: CertTable, entry: TableEntry, encoding: str) -> tuple[str, bytes]:
    if entry.guid not in cert_table.GUID_NAMES:
        return f"{entry.guid}.bin", entry.data
    from snpcerts.endorsement.encoding import to_der, to_pem

    crl = entry.guid == cert_table.CRL_GUID
    what = f"{file}, entry {entry.name}"
    data = to_der(entry.data, crl=crl, what=what)
    if encoding == "pem":
        data = to_pem(data, crl=crl)
    return f"{_file_name(table, entry)}.{encoding}", data


def _file_name(table: CertTable, entry: TableEntry) -> str:
    """Return the name of the file for an entry, without its extension.

    ASK and ASVK share one GUID. In a table with a VLEK and no VCEK, it stands for the ASVK.
    """
    if entry.guid == cert_table.ASK_GUID:
        has_vlek = table.get(cert_table.VLEK_GUID) is not None
        has_vcek = table.get(cert_table.VCEK_GUID) is not None
        return "asvk" if has_vlek and not has_vcek else "ask"
    return entry.name


def _describe(entry: TableEntry) -> str:
    if entry.guid not in cert_table.GUID_NAMES:
        return cert_table.OTHER_NAMES.get(entry.guid, "unknown GUID, not interpreted")
    from snpcerts.endorsement.encoding import describe

    return printable(describe(entry.data, crl=entry.guid == cert_table.CRL_GUID), _DESCRIBED)


def _size(table: CertTable, data: bytes) -> str:
    entries = counted(len(table), "entry", "entries")
    return f"{entries}, {counted(len(data), 'byte')}, {counted(table.pages, 'page')}"


def _to_json(
    table: CertTable,
    data: bytes,
    rows: Iterable[tuple[TableEntry, str]],
    problems: Iterable[TableProblem],
) -> dict[str, object]:
    return {
        "size": len(data),
        "pages": table.pages,
        "entries": [
            {
                "guid": str(entry.guid),
                "name": cert_table.GUID_NAMES.get(entry.guid),
                "size": len(entry.data),
                "description": text,
            }
            for entry, text in rows
        ],
        "warnings": list(table.warnings),
        "problems": [
            {"entry": each.entry, "offset": each.offset, "message": each.message}
            for each in problems
        ],
    }
