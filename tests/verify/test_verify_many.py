# SPDX-License-Identifier: Apache-2.0
"""``snpcerts verify`` with many reports, policies, revocation lists and key servers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snpcerts.abi.cert_table import VLEK_GUID, CertTable, TableEntry
from snpcerts.abi.product import Product
from snpcerts.cli.main import main
from snpcerts.endorsement.vek import VekKind
from snpcerts.kds.store import Store
from snpcerts.kds.url import ChainResource, CrlResource, VcekResource
from tests.documented_json import documented
from tests.endorsement.small_ca import TCBS, CrlRecipe, SmallCa, flipped
from tests.verify.test_evidence import bound, full_table, hcl, pem

CA = SmallCa()
VLEK = SmallCa(kind=VekKind.VLEK)
SOUND = ("--anchor", "root.der", "--at", "2025-06-01T12:00:00Z")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command in a directory that has only the root."""
    (tmp_path / "root.der").write_bytes(CA.ark.make())
    monkeypatch.chdir(tmp_path)

    def command(*arguments: str) -> tuple[int, str, str]:
        code = main(["verify", *arguments, *SOUND])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return command


def lay(folder: str, files: dict[str, bytes]) -> Path:
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


def chain(ca: SmallCa = CA, form: str = "der") -> dict[str, bytes]:
    leaf, ask = ("vcek", "ask") if ca.kind is VekKind.VCEK else ("vlek", "asvk")
    made = {leaf: ca.leaf.make(), ask: ca.ask.make(), "ark": ca.ark.make()}
    return {f"{n}.{form}": pem(d) if form == "pem" else d for n, d in made.items()}


def test_a_directory_as_snpguest_leaves_it_is_one_piece_of_evidence(run: Run) -> None:
    lay("guest", {"report.bin": CA.report(), "request.txt": b"x", "req": bytes(64)})
    lay("guest", chain(form="pem"))
    code, out, _ = run("guest")
    assert code == 0
    assert out.startswith("verified, with a root that is not AMD's")
    lay("vlek", {"attestation-report.bin": VLEK.report(), **chain(VLEK)})
    assert run("vlek")[0] == 0


def test_a_directory_of_configfs_is_one_piece_of_evidence(run: Run) -> None:
    lay("tsm", {"outblob": CA.report(), "auxblob": full_table(), "generation": b"1\n"})
    assert run("tsm")[0] == 0
    assert run("tsm/outblob")[0] == 0
    lay("tsm", {"auxblob": b""})
    code, out, _ = run("tsm", "--certs", str(lay("certs", chain())))
    assert code == 0
    assert out.startswith("verified, with a root that is not AMD's")


def _many() -> None:
    lay(
        "many",
        {
            "a.bin": CA.report() + full_table(),
            "b.bin": CA.report(),
            "b.table": full_table(),
            "c.bin": flipped(CA.report(), 0x90) + full_table(),
            "README.md": b"not evidence",
        },
    )
    lay("many/d", {"report": CA.report(), **chain()})


@pytest.mark.parametrize("jobs", ["1", "2"])
def test_many_reports_have_a_line_each_and_a_summary(run: Run, jobs: str) -> None:
    _many()
    code, out, err = run("many", "--jobs", jobs)
    assert (code, err) == (1, "")
    lines = out.splitlines()
    assert [line.split()[:2] for line in lines[:4]] == [
        ["verified", "many/a.bin:"],
        ["verified", "many/b.bin:"],
        ["refused", "many/c.bin:"],
        ["verified", "many/d/report:"],
    ]
    assert lines[4:] == ["4 in all: 3 verified, 1 refused", "         1  report-signature"]


def test_json_is_one_object_a_line(run: Run) -> None:
    _many()
    code, out, _ = run("many", "many/a.bin", "--json")
    assert code == 1
    verdicts = [documented("verify", line) for line in out.splitlines()]
    assert [v["verdict"] for v in verdicts] == [
        "verified",
        "verified",
        "refused",
        "verified",
        "verified",
    ]
    assert verdicts[2]["evidence"] == "many/c.bin"
    assert verdicts[0]["checks"][0] == {
        "name": "report-layout",
        "state": "passed",
        "expected": "the report has a version from 2 to 5, and that version's layout",
        "found": None,
    }
    assert run("many/a.bin", "--json")[1].count("\n") == 1


def test_a_person_at_a_terminal_sees_a_bar_and_others_do_not(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _many()
    assert run("many")[2] == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert run("many")[2] == "", "must show no bar if standard output is a pipe"
    monkeypatch.setattr("snpcerts.cli.verify_run.shows_progress", lambda: True)
    code, out, err = run("many")
    assert code == 1
    assert "4/4" in err
    assert "4 in all" in out


def test_one_unreadable_report_does_not_stop_the_others(run: Run) -> None:
    _many()
    Path("many/c.bin").write_bytes(b"short")
    code, out, _ = run("many")
    assert code == 2
    assert "unreadable  many/c.bin: " in out
    assert "3 verified, 1 unreadable" in out
    _, out, _ = run("many", "--json")
    assert [json.loads(line)["verdict"] for line in out.splitlines()].count("unreadable") == 1


def test_a_vlek_alone_in_the_table_takes_the_rest_from_a_directory(run: Run) -> None:
    table = CertTable((TableEntry(VLEK_GUID, VLEK.leaf.make()),)).encode()
    Path("aws").write_bytes(VLEK.report(chip_id=bytes(64)) + table)
    assert run("aws")[0] == 1
    asvk = chain(VLEK)
    del asvk["vlek.der"]
    assert run("aws", "--certs", str(lay("amd", asvk)))[0] == 0
    # The chain in the form in which the key server sends it.
    shutil.rmtree("amd")
    lay("amd", {"cert_chain.pem": pem(VLEK.ask.make()) + pem(VLEK.ark.make())})
    assert run("aws", "--certs", "amd")[0] == 0
    assert run("aws", "--certs", "amd", "--order", "certs")[0] == 1


def test_an_hcl_report_takes_its_certificates_from_a_directory(run: Run) -> None:
    Path("hcl").write_bytes(hcl(bound()))
    certs = str(lay("certs", chain()))
    assert run("hcl", "--certs", certs, "--user-data", "0a0b")[0] == 0
    code, out, _ = run("hcl", "--certs", certs, "--user-data", "0a0c")
    assert code == 1
    assert "policy-user-data" in out


def test_options_and_a_policy_file_are_asked_together(run: Run) -> None:
    report = CA.report(report_data=b"\1".ljust(64, b"\0"), measurement=b"m" * 48)
    Path("report").write_bytes(report + full_table())
    Path("policy.toml").write_text("vmpls = [0]\n[minimum_tcb.genoa]\n", encoding="utf-8")
    assert (
        "minimum_tcb.genoa: expected a floor with every component of the TCB, found no bootloader"
        in run("report", "--policy", "policy.toml")[2]
    )
    Path("policy.toml").write_text("vmpls = [0]\nreport_data = '02'\n", encoding="utf-8")
    with_file = ("report", "--policy", "policy.toml")
    assert "policy-report-data" in run(*with_file)[1]
    floor = "milan:bl=4,tee=0,snp=24,ucode=219"
    asked = ("--report-data", "01", "--measurement", (b"m" * 48).hex(), "--min-tcb", floor)
    code, out, _ = run(*with_file, *asked)
    assert code == 0
    passed = next(line for line in out.splitlines() if line.startswith("  passed"))
    for name in ("policy-vmpl", "policy-report-data", "policy-measurement", "policy-reported-tcb"):
        assert name in passed
    assert "policy-host-data" not in out
    assert "policy-host-data" in run(*with_file, *asked, "-v")[1].splitlines()[-1]
    above = floor.replace("219", "220")
    assert run(*with_file, *asked[:-1], above)[0] == 1
    Path("debug").write_bytes(CA.report(policy=0x30000 | 1 << 19) + full_table())
    assert run("debug")[0] == 1
    assert run("debug", "--allow-debug")[0] == 0


def test_a_revocation_list_is_asked_for_and_judged(run: Run) -> None:
    Path("report").write_bytes(CA.report() + full_table())
    assert "crl-missing" in run("report", "--require-crl")[1]
    Path("good.crl").write_bytes(CrlRecipe(CA).make())
    assert run("report", "--crl", "vcek=good.crl")[0] == 0
    # Nothing in the list says whether it is for VCEKs or VLEKs.
    for given in ("good.crl", "vlek=good.crl"):
        assert "crl-missing" in run("report", "--crl", given)[1]
    assert "give the list as --crl vcek=FILE" in run("report", "--crl", "good.crl")[1]
    Path("bad.crl").write_bytes(CrlRecipe(CA, revoked=(1,)).make())
    for given in ("bad.crl", "vlek=bad.crl", "vcek=bad.crl"):
        code, out, _ = run("report", "--crl", given, "--crl", "vcek=good.crl")
        assert code == 1
        assert "ask-revoked" in out
    certs = lay("certs", {"crl.der": CrlRecipe(CA, revoked=(1,)).make()})
    assert run("report", "--certs", str(certs))[0] == 1
    assert run("report", "--certs", str(certs), "--ignore-crl")[0] == 0


def _cached(folder: str) -> None:
    store = Store(Path(folder))
    milan = Product.MILAN
    store.write(VcekResource(milan, CA.chip_id, TCBS[milan]), CA.leaf.make())
    store.write(ChainResource(milan, VekKind.VCEK), pem(CA.ask.make()) + pem(CA.ark.make()))
    store.write(CrlResource(milan, VekKind.VCEK), CrlRecipe(CA).make())


def test_the_cache_of_the_key_server_serves_without_a_network(run: Run) -> None:
    Path("report").write_bytes(CA.report())
    _cached("cache")
    assert run("report", "--offline", "--cache", "cache", "--require-crl")[0] == 0
    Path("old").write_bytes(CA.report(2))
    assert run("old", "--offline", "--cache", "cache", "--require-crl")[0] == 0


def test_an_unavailable_certificate_exits_3_and_does_not_refuse(run: Run) -> None:
    Path("report").write_bytes(CA.report())
    code, out, _ = run("report", "--offline", "--cache", "empty")
    assert code == 3
    lines = out.splitlines()
    assert lines[0].startswith("undecided: 1 reason")
    assert lines[1].startswith("  collateral-unavailable: ")
    assert "next: try again later" in lines
    _, out, _ = run("report", "--offline", "--cache", "empty", "--json")
    assert documented("verify", out)["next_step"] == "retry-later"
    Path("sound").write_bytes(CA.report() + full_table())
    assert run("sound", "report", "--offline", "--cache", "empty")[0] == 3
    # A bad report is refused, even if certificates are unavailable.
    Path("bad").write_bytes(flipped(CA.report(), 0x4C))
    assert run("bad", "report", "--offline", "--cache", "empty")[0] == 1


def test_certificates_of_genuine_reports_lie_in_their_directories(
    vectors: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["verify", str(vectors), "--at", "2025-06-01T00:00:00Z"]) == 1
    out = capsys.readouterr().out
    assert "2 verified, 1 refused" in out
    assert "turin-v5/report.bin: leaf-not-yet-valid" in out
