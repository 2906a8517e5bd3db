# SPDX-License-Identifier: Apache-2.0
"""Every command that reads certificates, or files that contain them, given hostile files.

If a command cannot use the file, it prints one line and exits with 2; if it can judge the evidence
without the file, it refuses the evidence. Nothing in a hostile file verifies, and memory stays
within a bound.
"""

from __future__ import annotations

import base64
import json
import os
import resource
from collections.abc import Callable
from pathlib import Path

import cbor2
import pytest

from snpcerts.abi.cert_table import ARK_GUID, ASK_GUID, VCEK_GUID, CertTable, TableEntry
from snpcerts.cli import files
from snpcerts.cli.main import main
from snpcerts.endorsement.bundle import read_bundle
from tests.endorsement.small_ca import NOON
from tests.sizes import sized
from tests.verify.shapes import ARK, ASK, CA, DERS, LEAF, TABLE, b64, packed, pem, pkcs7

REPORT = CA.report()
_DEEP = 50_000
_NOISE = bytes((index * 73 + 11) % 251 for index in range(3000))
_MEMORY = 256 << 20  # bytes that a command may add to the process


def _nested_der(depth: int) -> bytes:
    """Return DER elements that are nested ``depth`` levels deep; the innermost is empty."""
    out = bytearray(b"\x30\x00")
    body = 2
    parts = [bytes(out)]
    for _ in range(depth):
        size = body.to_bytes(4, "big")
        head = b"\x30\x84" + size
        parts.append(head)
        body += len(head)
    return b"".join(reversed(parts))


def _table(*entries: bytes) -> bytes:
    guids = (VCEK_GUID, ASK_GUID, ARK_GUID)
    return CertTable(
        tuple(TableEntry(guid, each) for guid, each in zip(guids, entries, strict=False))
    ).encode()


# Files that no command can use; READ lists the exceptions.
BAD: dict[str, bytes] = {
    "empty": b"",
    "one zero byte": b"\0",
    "zeros": bytes(5000),
    "noise": _NOISE,
    "blanks": b" \n\t\r\n" * 500,
    "bad UTF-8": b"\xc3\x28\xa0\xa1 certificate \xff\xfe" * 40,
    "half a UTF-16 character": b"\xff\xfe" + "x".encode("utf-16-le") * 400 + b"\x41",
    "text with NUL": b"-----BEGIN\0CERTIFICATE-----\n" * 20,
    "truncated DER": LEAF[: len(LEAF) // 2],
    "DER with a huge length": b"\x30\x84\xff\xff\xff\xff" + LEAF[6:],
    "DER of indefinite length": b"\x30\x80" + LEAF[4:] + b"\0\0",
    "nested DER": _nested_der(_DEEP),
    "nested PKCS #7": pem(_nested_der(_DEEP), "PKCS7").encode(),
    "PEM without an end": pem(LEAF).encode()[:-30],
    "PEM of noise": pem(_NOISE).encode(),
    "PEM with a broken body": pem(LEAF).replace("A", "*").encode(),
    "PEM of a key": pem(LEAF, "PRIVATE KEY").encode(),
    "marks of PEM": b"-----BEGIN CERTIFICATE-----\n" * 5000,
    "ends of PEM": b"-----END CERTIFICATE-----\n" * 5000,
    "nested arrays": b"[" * _DEEP + b"]" * _DEEP,
    "nested objects": b'{"vcekCert":' * _DEEP + b"1" + b"}" * _DEEP,
    "open brackets": b"[" * _DEEP,
    "a JSON string without an end": b'{"vcekCert": "' + b"A" * 5000,
    "a huge number": b'{"vcekCert": ' + b"9" * 100_000 + b"}",
    "NaN": b'{"vcekCert": NaN, "certificateChain": Infinity}',
    "numbers for certificates": json.dumps({"vcekCert": 7, "certificateChain": [1, -1]}).encode(),
    "arrays that are not bytes": json.dumps({"vcekCert": [256, -1, "x", None] * 100}).encode(),
    "lone surrogates": b'{"vcekCert": "\\ud800' + b"\\udfff" * 300 + b'"}',
    "base64 of noise": base64.b64encode(_NOISE),
    "base64 in base64": base64.b64encode(base64.b64encode(base64.b64encode(_NOISE))),
    "nested MessagePack": b"\x91" * _DEEP + b"\0",
    "MessagePack with a huge array": b"\xdd\xff\xff\xff\xff" + bytes(2000),
    "Dstack without a report": packed({"version": 1, "platform": {"kind": "sev-snp", "data": {}}}),
    "nested CBOR": b"\x81" * _DEEP + b"\0",
    "CBOR with a huge array": b"\x9b\x00\xff\xff\xff\xff\xff\xff\xff" + bytes(100),
    "CBOR of wrong types": cbor2.dumps({"outblob": 1, "auxblob": "x", "provider": b"sev_guest"}),
    "tsm-report of wrong types": json.dumps(
        {"provider": "sev_guest", "outblob": 1, "auxblob": {}}
    ).encode(),
    "Trustee of wrong types": json.dumps({"attestation_report": [], "cert_chain": "x"}).encode(),
    "a table without an end": TABLE[:40],
    "a table whose entries lie outside": TABLE[:100] + b"\xff" * 8,
    "a table of noise": _table(_NOISE, _NOISE[:1000], _NOISE[:500]),
    "an HTML page": b"<!DOCTYPE html><html><body>404</body></html>" * 10,
    "a gzip file": b"\x1f\x8b\x08" + _NOISE,
    "a program": b"\x7fELF" + _NOISE,
}

Special = Callable[[Path], None]


def _link_to(target: str) -> Special:
    return lambda path: path.symlink_to(target)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(100 << 20)


SPECIAL: dict[str, Special] = {
    "missing": lambda _: None,
    "a directory": lambda path: path.mkdir(),
    "a pipe": os.mkfifo,
    "a device without an end": _link_to("/dev/zero"),
    "an empty device": _link_to("/dev/null"),
    "a link to itself": _link_to("BAD"),
    "a broken link": _link_to("nothing"),
    "100 MiB": _sparse,
}

# Commands with BAD in the place of one of their files.
READERS: dict[str, list[str]] = {
    "verify": ["verify", "BAD", "--anchor", "ARK"],
    "verify --certs": ["verify", "REPORT", "--anchor", "ARK", "--certs", "BAD"],
    "verify --table": ["verify", "REPORT", "--anchor", "ARK", "--table", "BAD"],
    "verify --crl": ["verify", "WHOLE", "--anchor", "ARK", "--crl", "vcek=BAD"],
    "verify --anchor": ["verify", "WHOLE", "--anchor", "BAD"],
    "verify --policy": ["verify", "WHOLE", "--anchor", "ARK", "--policy", "BAD"],
    "report show": ["report", "show", "BAD"],
    "table show": ["table", "show", "BAD"],
    "table extract": ["table", "extract", "BAD", "OUT"],
    "table build --vcek": ["table", "build", "-o", "OUT", "--vcek", "BAD"],
    "table build --ark": ["table", "build", "-o", "OUT", "--ark", "BAD"],
    "table build --crl": ["table", "build", "-o", "OUT", "--crl", "BAD"],
    "table build --chain": ["table", "build", "-o", "OUT", "--chain", "BAD"],
    "kds fetch": [
        "kds",
        "fetch",
        "vcek",
        "--report",
        "BAD",
        "--offline",
        "--cache",
        "C",
        "-o",
        "OUT",
    ],
    "policy rvps": ["policy", "rvps", "BAD", "-o", "OUT"],
    "policy corim": ["policy", "corim", "BAD", "-o", "OUT"],
}
# Bad files that a command can read after all: a table without entries or with useless ones, a
# directory without certificates, and a policy that demands nothing.
_REFUSED, _DONE = 1, 0
READ: dict[tuple[str, str], int] = {
    ("verify --certs", "a directory"): _REFUSED,
    ("verify --table", "zeros"): _REFUSED,
    ("verify --table", "a table of noise"): _REFUSED,
    ("verify --policy", "blanks"): _DONE,
    ("table show", "zeros"): _DONE,
    ("table show", "a table of noise"): _DONE,
    ("table extract", "zeros"): _DONE,
}
# Commands that read certificates in different ways; the full run tries all commands.
_FIRST = ("verify --certs", "verify --crl", "table build --chain")

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Command:
    """Return a function that runs a command in a directory of valid files. The command waits only
    briefly for data from a pipe.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "WAIT_FOR_DATA", 5)
    Path("REPORT").write_bytes(REPORT)
    Path("WHOLE").write_bytes(REPORT + TABLE)
    Path("ARK").write_bytes(ARK)

    def command(*arguments: str) -> tuple[int, str, str]:
        at = ("--at", NOON.isoformat()) if arguments[0] == "verify" else ()
        code = main([*arguments, *at])
        out, err = capsys.readouterr()
        return code, out, err

    return command


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        path.rmdir()
    else:
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("reader", sized(_FIRST, tuple(READERS)))
def test_a_bad_file_is_one_line_and_exit_code_2(reader: str, run: Command) -> None:
    bad, out_file = Path("BAD"), Path("OUT")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for name in (*BAD, *SPECIAL):
        _remove(bad)
        if name in BAD:
            bad.write_bytes(BAD[name])
        else:
            SPECIAL[name](bad)
        code, out, err = run(*READERS[reader])
        expected = READ.get((reader, name), 2)
        assert code == expected, (name, out, err)
        assert "Traceback" not in err, (name, err)
        if code == 2:
            assert err.startswith("snpcerts: "), (name, err)
            assert err.count("\n") == 1, (name, err)
            assert not out_file.exists(), name
        if out_file.is_dir():
            out_file.rmdir()
        out_file.unlink(missing_ok=True)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    assert grown << 10 < _MEMORY, f"memory must not grow by {grown} KiB"


@pytest.mark.parametrize("name", sized(tuple(BAD)[::4], tuple(BAD)))
def test_a_bad_part_in_a_right_envelope_never_verifies(name: str, run: Command) -> None:
    """In each envelope, first the leaf and then the ASK is replaced; none may verify."""
    bad = BAD[name] or b"\0"
    for at in range(2):  # the ARK stays: --anchor names it
        ders = list(DERS)
        ders[at] = bad
        leaf, ask, ark = ders
        for data in (
            _json(vcekCert=_text(leaf), certificateChain=_text(ask) + _text(ark)),
            json.dumps([b64(each) for each in ders]).encode(),
            "".join(map(pem, ders)).encode(),
        ):
            Path("BAD").write_bytes(data)
            code, out, err = run("verify", "REPORT", "--anchor", "ARK", "--certs", "BAD")
            assert code in (1, 2), (at, out)
            assert "Traceback" not in err
        if len(bad) < 60_000:
            Path("BAD").write_bytes(REPORT + _table(*ders))
            assert run("verify", "BAD", "--anchor", "ARK")[0] in (1, 2)


def _json(**fields: str) -> bytes:
    return json.dumps(fields).encode()


def _text(der: bytes) -> str:
    return pem(der) if der in DERS else der.decode("latin-1")


def test_json_with_a_key_twice_is_not_read(run: Command) -> None:
    """JSON readers differ in which of the two values they use."""
    leaf, rest = json.dumps(b64(LEAF)), json.dumps(b64(ASK + ARK))
    for second in (json.dumps("x"), leaf):
        text = f'{{"vcek": {leaf}, "chain": {rest}, "vcek": {second}}}'
        Path("BAD").write_text(text)
        code, out, err = run("verify", "REPORT", "--anchor", "ARK", "--certs", "BAD")
        assert (code, out) == (2, ""), out
        assert err.count("\n") == 1
        report = json.dumps(b64(REPORT))
        Path("BAD").write_text(f'{{"report": {report}, "aux_blob": "", "report": {report}}}')
        code, out, err = run("verify", "BAD", "--anchor", "ARK", "--certs", "ARK")
        assert (code, out) == (2, ""), out
        assert "twice" in err


def test_bad_files_in_a_directory_do_not_hide_its_certificates(run: Command) -> None:
    folder = Path("certs")
    folder.mkdir()
    for index, data in enumerate(BAD.values()):
        (folder / f"{index}.pem").write_bytes(data)
    for index, (name, make) in enumerate(SPECIAL.items()):
        if name != "missing":
            make(folder / f"special{index}.crt")
    arguments = ("verify", "REPORT", "--anchor", "ARK", "--certs", "certs")
    code, out, err = run(*arguments)
    assert code in (1, 2), out
    assert "Traceback" not in err
    for title, der in zip(("a.pem", "zz.crt", "m.txt"), DERS, strict=True):
        (folder / title).write_bytes(der)
    code, out, err = run(*arguments)
    assert code == 0, (out, err)


LONG: dict[str, bytes] = {
    "small elements": b"\x30\x82\x00\x00" * (1 << 18),
    "elements in elements": _nested_der(1 << 17),
    "PKCS #7 of small elements": pkcs7(b"\x30\x00" * (1 << 19)),
    "PKCS #7 of sets": pkcs7(b"\x31\x81\x80" + bytes(128)) * 1000,
    "certificates": LEAF * 500,
    "blanks before a letter": b"MII" + b" " * (1 << 20) + b"A",
    "certificates in arrays": json.dumps([[b64(LEAF)]] * 400).encode(),
}


@pytest.mark.parametrize("name", LONG)
def test_a_long_file_is_read_once(name: str) -> None:
    """It would take minutes to try each element as a certificate, or to describe each one."""
    found = read_bundle(LONG[name])
    assert set(found.certificates) <= {LEAF}
    assert not found.lists


@pytest.mark.parametrize(
    "make",
    [
        lambda count: (b"\x30\x81\x80" + bytes(128)) * count,
        lambda count: pkcs7(b"\x30\x00" * count),
    ],
    ids=["in the file", "in a PKCS #7"],
)
def test_elements_that_are_not_read_are_named(make: Callable[[int], bytes]) -> None:
    limit = "more than 4096 DER elements; the rest is not read"
    assert limit not in read_bundle(make(4096)).others
    assert limit in read_bundle(make(4097)).others
