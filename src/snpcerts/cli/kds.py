# SPDX-License-Identifier: Apache-2.0
"""``snpcerts kds``: certificates from AMD's key server, and a cache of verified certificates."""

from __future__ import annotations

import functools
import importlib
import json
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from snpcerts.abi.product import CHIP_ID_SIZE, Product, hwid_of_chip_id
from snpcerts.abi.tcb import TcbVersion
from snpcerts.cli.evidence_files import EvidenceFiles
from snpcerts.cli.files import make_directory, write_output
from snpcerts.cli.hex_option import hex_bytes
from snpcerts.cli.product_option import product_option
from snpcerts.cli.say import counted, present, say, say_line, shows_progress
from snpcerts.cli.source_options import (
    ANCHOR,
    CACHE,
    SourceOptions,
    anchors_of,
    cache_directory,
    source_options,
)
from snpcerts.errors import FormatError, InputError, SnpCertsError, UsageError
from snpcerts.printable import printable

if TYPE_CHECKING:
    from snpcerts.endorsement.vek import VekKind
    from snpcerts.kds.source import CertificateSource, Endorsement

# How many seconds a command may work without output.
_QUIET = 1.0

# A product, the hwID of one of its chips, and a TCB.
_Key = tuple[Product, bytes, TcbVersion]


@click.group()
def command() -> None:
    """Fetch certificates from AMD's key server, and show what the cache holds.

    The key server throttles and is sometimes unreachable, so snpcerts keeps verified certificates
    in a cache and requests each of them only once. Certificates from the cache are verified again
    at each use.
    """


@dataclass(frozen=True, slots=True)
class _Where:
    """The options that all ``fetch`` commands share."""

    output: str | None
    server: SourceOptions
    refresh: bool
    as_json: bool

    @contextmanager
    def source(self, doing: str) -> Iterator[CertificateSource]:
        """Open the certificate source, and show progress on standard error while the block runs."""
        anchors = anchors_of(self.server.anchors)
        # Import this before the timer starts, so that only a slow fetch prints ``doing``.
        importlib.import_module("snpcerts.kds.source")
        with _progress(doing) as tell, self.server.open(anchors, tell) as source:
            try:
                yield source
            except SnpCertsError as error:
                if self.as_json:
                    say(json.dumps(_error_json(error), indent=2))
                raise

    def write(self, files: Mapping[str, bytes], facts: Mapping[str, Any], line: str) -> None:
        """Write the files to the directory that ``-o`` names, if any. Print ``line`` and the files'
        names, or one JSON object.
        """
        written: dict[str, str] = {}
        if self.output is not None:
            make_directory(self.output)
            for name, data in files.items():
                written[name] = os.path.join(self.output, name)
                write_output(written[name], data)
        if self.as_json:
            say(json.dumps({"ok": True, **facts, "files": list(written.values())}, indent=2))
            return
        say_line(line)
        for name, path in written.items():
            say_line(f"{path}: {len(files[name])} bytes")


def _common(function: Callable[..., None]) -> Callable[..., None]:
    """Add the options of :class:`_Where` to a command, which gets them as its first argument."""

    @functools.wraps(function)
    @source_options
    def wrapped(
        output: str | None, refresh: bool, as_json: bool, *, server: SourceOptions, **options: Any
    ) -> None:
        function(_Where(output, server, refresh, as_json), **options)

    wrapped = click.option(
        "-o",
        "output",
        metavar="DIR",
        help="Also write the certificates or the revocation list into DIR, in DER.",
    )(wrapped)
    refresh = click.option(
        "--refresh", is_flag=True, help="Ask the key server even if the answer is in the cache."
    )
    return refresh(_JSON(wrapped))


_JSON = click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
_PRODUCT = product_option(required=True)
_VLEK = click.option(
    "--vlek", is_flag=True, help="Fetch the chain or revocation list for VLEKs, not for VCEKs."
)


@command.group(short_help="Get certificates or revocation lists.")
def fetch() -> None:
    """Get certificates or revocation lists from the cache or, if it lacks them, the key server.

    Exit codes: 0 done, 1 refused (the answer does not verify, or the server answers 404), 2 wrong
    usage or unreadable input, 3 the server is unreachable or throttles: try again later.
    """


@fetch.command(short_help="Get the VCEK certificate for a chip and a TCB.")
@product_option("Product of the chip.")
@click.option(
    "--hwid",
    metavar="HEX",
    help="Chip ID in hexadecimal: 64 bytes, or 8 on Turin and Venice.",
)
@click.option(
    "--tcb", metavar="TCB", help="Reported TCB, as in bl=4,tee=0,snp=24,ucode=219[,fmc=1]."
)
@click.option(
    "--report",
    metavar="FILE",
    help="Take the product, the chip ID and the TCB from the attestation report in FILE.",
)
@_common
def vcek(
    where: _Where, product: Product | None, hwid: str | None, tcb: str | None, report: str | None
) -> None:
    """Get the VCEK certificate for a chip and a TCB, and the certificates above it. With -o, write
    vcek.der, ask.der and ark.der.
    """
    if report is not None:
        if hwid is not None or tcb is not None:
            raise UsageError("--report cannot be combined with --hwid or --tcb")
        candidates = _from_report(report, product)
    elif product is None or hwid is None or tcb is None:
        raise UsageError(
            "the options do not say which VCEK to fetch",
            hint="give --report, or all of --product, --hwid and --tcb",
        )
    else:
        candidates = [(product, _hwid(hwid, product), _tcb(tcb, product))]
    products = " or ".join(chip.value for chip, _, _ in candidates)
    shown = candidates[0][1].hex()[:16]
    with where.source(f"fetching the VCEK of {products} {shown}…") as source:
        found, (chip, chip_id, level) = _first_of(source, candidates, refresh=where.refresh)
    where.write(
        {"vcek.der": found.leaf, "ask.der": found.intermediate, "ark.der": found.root},
        {
            "product": chip.value,
            "hwid": chip_id.hex(),
            "tcb": level.components(),
            "not_after": _utc(found.not_after),
        },
        f"{chip.value} VCEK of chip {chip_id.hex()} at {level}, verified, "
        f"valid until {_utc(found.not_after)}",
    )


@fetch.command(short_help="Get the certificates above the leaf.")
@_PRODUCT
@_VLEK
@_common
def chain(where: _Where, product: Product, vlek: bool) -> None:
    """Get the certificates above the leaf. With -o, write ask.der (with --vlek, asvk.der) and
    ark.der.
    """
    kind, label = _kind(vlek), "ASVK" if vlek else "ASK"
    with where.source(f"fetching the {label} and ARK of {product.value}") as source:
        intermediate, root = source.chain(product, kind, refresh=where.refresh)
    where.write(
        {f"{label.lower()}.der": intermediate, "ark.der": root},
        {"product": product.value, "kind": kind.value},
        f"{product.value} {label} and ARK, verified",
    )


@fetch.command()
@_PRODUCT
@_VLEK
@_common
def crl(where: _Where, product: Product, vlek: bool) -> None:
    """Get the ARK's revocation list. With -o, write crl.der."""
    from snpcerts.endorsement.crl import load_crl

    kind = _kind(vlek)
    with where.source(f"fetching the revocation list of {product.value}") as source:
        found = source.crl(product, kind, refresh=where.refresh)
    read = load_crl(found)
    count = len(read)
    where.write(
        {"crl.der": found},
        {
            "product": product.value,
            "kind": kind.value,
            "revoked": count,
            "next_update": _utc(read.next_update),
        },
        f"{product.value} revocation list, verified, {count} revoked, "
        f"next update {_utc(read.next_update)}",
    )


@command.command(short_help="Show what is in the cache and whether it verifies.")
@CACHE
@ANCHOR
@_JSON
def show(cache: str | None, anchors: tuple[str, ...], as_json: bool) -> None:
    """Show which files are in the cache, how long each is valid, and whether it verifies.

    Exit codes: 0 everything verifies, 1 a file does not verify, 2 wrong usage or the cache is not a
    directory.
    """
    from snpcerts.kds.inventory import inventory
    from snpcerts.kds.store import Store

    where = cache_directory(cache)
    if where.exists() and not where.is_dir():
        raise InputError(
            f"{where}: expected a directory, found another kind of file",
            hint="give the cache directory with --cache",
        )
    found = inventory(Store(where), anchors_of(anchors), datetime.now(UTC))
    if as_json:
        entries = [entry.to_json() for entry in found]
        say(json.dumps({"cache": str(where), "entries": entries}, indent=2))
    else:
        say_line(f"{where}: {counted(len(found), 'file')}" if found else f"{where}: empty")
        for entry in found:
            until = "" if entry.not_after is None else f", until {_utc(entry.not_after)}"
            say_line(f"  {entry.place}")
            say_line(f"    {entry.title}{until}: {entry.problem or 'verifies'}")
    if any(entry.problem for entry in found):
        click.get_current_context().exit(1)


def _first_of(
    source: CertificateSource, candidates: Sequence[_Key], *, refresh: bool
) -> tuple[Endorsement, _Key]:
    """Return the certificates for the first candidate whose VCEK the key server has.

    If some candidates are for products with a trusted root, only these are tried.
    """
    from snpcerts.kds.errors import KdsNotFoundError

    trusted = {anchor.product for anchor in source.anchors}
    absent: list[KdsNotFoundError] = []
    for key in [key for key in candidates if key[0] in trusted] or candidates:
        try:
            return source.vcek(*key, refresh=refresh), key
        except KdsNotFoundError as error:
            absent.append(error)
    raise KdsNotFoundError("; ".join(each.message for each in absent), hint=absent[0].hint)


def _from_report(path: str, product: Product | None) -> list[_Key]:
    """Return each product that the report may be for, with the report's chip ID and TCB.

    A version 2 report does not name its product, so all products whose TCB layout fits are
    returned, as for 'verify --fetch'.
    """
    from snpcerts.abi.report import SigningKey

    report = EvidenceFiles(path).read().report
    products = report.products
    if product is not None:
        if report.product not in (None, product):
            said = "" if report.product is None else report.product.value
            raise UsageError(
                f"{path}: expected a report for {product.value}, found a report for {said}",
                hint="omit --product, or give the report's product",
            )
        products = (product,)
    if not products:
        raise UsageError(
            f"{path}: the report names no product that snpcerts knows",
            hint="name the product with --product",
        )
    if report.signing_key is not SigningKey.VCEK:
        raise InputError(
            f"{path}: expected a report signed by a VCEK, found a report signed by another key",
            hint="if a VLEK signed the report, get the VLEK's certificate from the cloud provider",
        )
    if report.chip_id_masked:
        raise InputError(
            (
                f"{path}: the report hides its chip ID (MASK_CHIP_ID), so the report does not say "
                "which chip's VCEK signed it"
            ),
            hint="give --hwid, --tcb and --product; the host's operator knows the chip ID",
        )
    found: list[_Key] = []
    unfit: list[FormatError] = []
    for each in products:
        try:
            tcb = TcbVersion.unpack(report.fields.reported_tcb, each.tcb_layout)
        except FormatError as error:
            unfit.append(error)
            continue
        found.append((each, hwid_of_chip_id(report.fields.chip_id, each), tcb))
    if not found:
        raise InputError(f"{path}: REPORTED_TCB: {unfit[0].message}", hint=unfit[0].hint)
    return found


def _kind(vlek: bool) -> VekKind:
    from snpcerts.endorsement.vek import VekKind

    return VekKind.VLEK if vlek else VekKind.VCEK


def _hwid(text: str, product: Product) -> bytes:
    """Parse a chip ID. For products with a shorter chip ID, also accept a report's 64-byte
    field, in which the remaining bytes are zero.
    """
    data = hex_bytes("--hwid", text)
    if len(data) == CHIP_ID_SIZE and not any(data[product.hwid_size :]):
        return hwid_of_chip_id(data, product)
    return data


def _tcb(text: str, product: Product) -> TcbVersion:
    try:
        return TcbVersion.parse(text, product.tcb_layout)
    except InputError as error:
        raise UsageError(f"--tcb {text[:80]!r}: {error.message}", hint=error.hint) from None


def _utc(when: datetime) -> str:
    return f"{when:%Y-%m-%dT%H:%M:%SZ}"


def _error_json(error: SnpCertsError) -> dict[str, object]:
    return {
        "ok": False,
        "code": error.code,
        "message": error.message,
        "retry_after": getattr(error, "retry_after", None),
        "reasons": list(getattr(error, "reasons", ())),
    }


@contextmanager
def _progress(doing: str) -> Iterator[Callable[[str], None]]:
    """Show on standard error what a fetch is doing, and what it waits for.

    Unless standard output and standard error are terminals, ``doing`` is printed only if the fetch
    takes longer than a second.
    """
    if shows_progress():
        from rich.console import Console
        from rich.text import Text

        # As plain text, because a server's message must not be interpreted as markup.
        with Console(stderr=True).status(Text(doing)) as status:
            yield lambda text: status.update(Text(printable(text)))
        return

    def tell(text: str) -> None:
        present(f"snpcerts: {printable(text)}", err=True)

    timer = threading.Timer(_QUIET, tell, (doing,))
    timer.daemon = True
    timer.start()
    try:
        yield tell
    finally:
        timer.cancel()
