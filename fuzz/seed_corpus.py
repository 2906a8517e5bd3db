# SPDX-License-Identifier: Apache-2.0
"""``python -m fuzz.seed_corpus``: make all seeds anew. All of them are synthetic.

A certificate authority of the test suite signs them. Its keys are new each time, so this replaces
the whole corpus.
"""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
import struct
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import cbor2
from tests.endorsement.small_ca import START, CrlRecipe, SmallCa
from tests.verify.messages import attestation, blob, extra, number, report_message
from tests.verify.shapes import b64, response, scale

from snpcerts.abi.cert_table import (
    ARK_GUID,
    ASK_GUID,
    CRL_GUID,
    VCEK_GUID,
    VLEK_GUID,
    CertTable,
    TableEntry,
)
from snpcerts.abi.product import Product
from snpcerts.abi.report import REPORT_SIZE
from snpcerts.endorsement.vek import VekKind

CORPUS = Path(__file__).parent / "corpus"

_POLICY = """\
report_data = "01"
user_data = "02"
vmpls = [0, 1]
measurements = ["{m}", "{m}"]
host_data = "{h}"
signing_key = "vcek"
csp_ids = ["CN=cloud"]
minimum_guest_svn = 1
minimum_firmware = "1.55.29"
minimum_policy_abi = "1.51"
launch_mitigations = 0x3f
refuse_provisional_firmware = true
revocation = "require"

[guest_policy]
debug = false
smt = "any"
[platform_info]
alias_check_complete = true

[minimum_tcb.milan]
bootloader = 4
tee = 0
snp = 24
microcode = 219
[minimum_launch_tcb.turin]
fmc = 1
bootloader = 1
tee = 1
snp = 4
microcode = 81
"""


def main() -> None:
    """Replace the corpus."""
    shutil.rmtree(CORPUS, ignore_errors=True)
    milan, turin = SmallCa(), SmallCa(Product.TURIN)
    vlek = SmallCa(kind=VekKind.VLEK)
    crl = CrlRecipe(milan, revoked=(0x20001,)).make()
    _write("root.der", milan.ark.make())
    _write("revoked.crl", CrlRecipe(milan, revoked=(1,)).make())
    reports = [milan.report(2), milan.report(3), turin.report(5), vlek.report(4)]
    last_year = CrlRecipe(milan, next_update=START + timedelta(days=365)).make()
    foreign = CrlRecipe(milan, issuer="ARK-Milan \x1b[2J\nverified").make()
    tables = [_table(milan), _table(vlek), _table(milan, crl), bytes(24)]
    with_lists = [_table(milan, each) for each in (last_year, foreign)]
    _all("report", reports)
    _all("table", tables)
    _all("certificate", [milan.leaf.make(), turin.leaf.make(), vlek.leaf.make()])
    _all("crl", [crl, CrlRecipe(milan).make(), last_year, foreign])
    _all("policy", [_POLICY.format(m="00" * 48, h="11" * 32).encode(), b"vmpls = 0\n"])
    claims = json.dumps({"keys": [], "user-data": "00ff"}).encode()
    report, leaf = milan.report(), milan.leaf.make()
    text = json.dumps({"report": b64(report), "aux": b64(leaf)}).encode()
    as_cbor = cbor2.dumps({"outblob": report, "provider": "sev_guest"})
    wrapped = [response(report, 0), report.hex().encode(), scale(report, leaf), text, as_cbor]
    _all("evidence", [_hcl(claims), reports[0] + tables[0], reports[1], *wrapped])
    _all("bundle", list(_bundles(milan, crl)))
    chain = blob(1, milan.leaf.make()) + extra(str(CRL_GUID), crl) + blob(6, vlek.leaf.make())
    product = number(1, 1) + blob(3, number(1, 2))
    _all("message", [attestation(reports[1], chain, product), report_message(reports[2])])
    # The verdict target trusts the root of ``milan``, and its policy demands this report data.
    whole = [milan.report(report_data=b"\1".ljust(64, b"\0")) + table for table in tables[:3]]
    listed = [whole[0][:REPORT_SIZE] + table for table in with_lists]
    _all("verdict", [whole[0], whole[2], vlek.report() + tables[1], *listed])
    parts = (milan.leaf.make(), milan.ask.make(), milan.ark.make(), crl)
    seeds = [bytes([index]) + part for index, part in enumerate(parts)]
    # Names with escape sequences and line breaks, which must not reach a terminal.
    hostile = "SEV-Milan \x1b[2J\r\nverified"
    seeds += [b"\0" + milan.leaf.but(subject=hostile, issuer=hostile).make()]
    seeds += [b"\1" + milan.ask.but(subject=hostile).make(), b"\3" + foreign]
    _all("collateral", seeds)


def _bundles(ca: SmallCa, crl: bytes) -> Iterator[bytes]:
    """Yield a leaf in several encodings; a revocation list follows the first."""
    leaf = ca.leaf.make()
    body = base64.b64encode(leaf)
    pem = b"-----BEGIN CERTIFICATE-----\n" + body + b"\n-----END CERTIFICATE-----\n"
    yield leaf + crl
    yield b"text before\n" + pem + b"between\n" + pem
    yield json.dumps({"vcekCert": pem.decode(), "tcbm": "DB18"}).encode()
    yield body


def _table(ca: SmallCa, crl: bytes | None = None) -> bytes:
    guid = VCEK_GUID if ca.kind is VekKind.VCEK else VLEK_GUID
    entries = [(guid, ca.leaf.make()), (ASK_GUID, ca.ask.make()), (ARK_GUID, ca.ark.make())]
    if crl is not None:
        entries.append((CRL_GUID, crl))
    return CertTable(tuple(TableEntry(*entry) for entry in entries)).encode()


def _hcl(claims: bytes) -> bytes:
    bound = hashlib.sha256(claims).digest().ljust(64, b"\0")
    header = b"HCLA" + struct.pack("<7I", 2, 1184, 2, 0, 0, 0, 0)
    runtime = struct.pack("<5I", 20 + len(claims), 1, 2, 1, len(claims))
    return header + SmallCa().report(report_data=bound) + runtime + claims + bytes(64)


def _all(target: str, seeds: list[bytes]) -> None:
    for index, seed in enumerate(seeds):
        _write(f"{target}/seed-{index}", seed)


def _write(name: str, data: bytes) -> None:
    path = CORPUS / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


if __name__ == "__main__":
    main()
