# SPDX-License-Identifier: Apache-2.0
"""Reference values for other verifiers: the contents of the files, and the demands reported as left
out.
"""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import cbor2
import pytest

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.cli.main import main
from snpcerts.errors import UsageError
from snpcerts.verify.policy import GuestPolicyBits, PlatformInfoBits, Policy, TcbFloor
from snpcerts.verify.reference_values import CORIM_PROFILE, corim, rvps_message

MILAN = TcbVersion(bootloader=4, tee=0, snp=24, microcode=219)
TURIN = TcbVersion(fmc=1, bootloader=1, tee=0, snp=2, microcode=70)
ONE, TWO = b"\1" * 48, b"\2" * 48


def rvps_values(policy: Policy, product: Product | None = None) -> dict[str, Any]:
    message = json.loads(rvps_message(policy, product).data)
    assert (message["version"], message["type"]) == ("0.1.0", "sample")
    values: dict[str, Any] = json.loads(base64.b64decode(message["payload"], validate=True))
    return values


def test_an_rvps_message_has_the_names_that_trustees_policy_looks_up() -> None:
    policy = Policy(
        measurements=(ONE,),
        minimum_tcb=TcbFloor(milan=MILAN),
        guest_policy=GuestPolicyBits(smt=True),
        platform_info=PlatformInfoBits(tsme_en=False),
    )
    assert rvps_values(policy) == {
        "snp_launch_measurement": [ONE.hex()],
        "snp_bootloader": list(range(4, 256)),
        "snp_tee_svn": list(range(256)),
        "snp_snp_svn": list(range(24, 256)),
        "snp_microcode": list(range(219, 256)),
        "snp_smt_allowed": True,
        "snp_tsme_enabled": False,
    }
    assert rvps_message(policy).left_out == ()


def test_what_an_rvps_message_cannot_carry_is_named() -> None:
    policy = Policy(
        measurements=(ONE,),
        minimum_tcb=TcbFloor(turin=TURIN),
        vmpls=(0,),
        report_data=b"nonce",
        guest_policy=GuestPolicyBits(smt=True, cxl_allow=False),
    )
    assert rvps_message(policy).left_out == ("vmpls", "guest_policy", "minimum_tcb")
    with pytest.raises(UsageError, match="reference values can express"):
        rvps_message(Policy(vmpls=(0,)))


def test_floors_of_several_products_need_a_choice() -> None:
    policy = Policy(measurements=(ONE,), minimum_tcb=TcbFloor(milan=MILAN, turin=TURIN))
    for make in (rvps_message, corim):
        with pytest.raises(UsageError, match="milan, turin"):
            make(policy)
    assert rvps_values(policy, Product.TURIN)["snp_microcode"][0] == 70
    assert "snp_microcode" not in rvps_values(policy, Product.GENOA)
    assert rvps_message(policy, Product.GENOA).left_out == ("minimum_tcb",)


def triples(data: bytes) -> list[Any]:
    whole = cbor2.loads(data)
    assert whole.tag == 501
    assert whole.value[3] == cbor2.CBORTag(32, CORIM_PROFILE)
    (module,) = whole.value[1]
    assert module.tag == 506
    found: list[Any] = cbor2.loads(module.value)[4][0]
    return found


def test_a_corim_has_a_set_of_values_for_each_measurement() -> None:
    policy = Policy(
        measurements=(ONE, TWO),
        host_data=b"h" * 32,
        minimum_guest_svn=3,
        minimum_tcb=TcbFloor(milan=MILAN),
        chip_ids=(bytes(64), b"\1" * 64),
    )
    found = triples(corim(policy).data)
    assert corim(policy).left_out == ("chip_ids",)
    assert [environment[1].value for environment, _ in found] == [ONE, TWO]
    _, measured = found[0]
    values = {each[0]: each[1] for each in measured}
    assert list(values) == sorted(values) == [1, 641, 642, 647]
    assert values[1] == {1: cbor2.CBORTag(553, 3)}
    assert values[641] == {2: [[7, ONE]]}
    assert values[642] == {4: cbor2.CBORTag(560, b"h" * 32)}
    assert values[647] == {1: cbor2.CBORTag(553, int.from_bytes(MILAN.pack(), "little"))}
    assert corim(policy).data == corim(policy).data
    with pytest.raises(UsageError, match="expected a policy with measurements"):
        corim(Policy(host_data=bytes(32)))


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "policy.toml").write_text(f'measurements = ["{ONE.hex()}"]\nvmpls = [0, 1]\n')
    return tmp_path


def test_the_commands_write_both_and_name_what_is_left_out(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("rvps", "corim"):
        assert main(["policy", name, "policy.toml", "-o", "out"]) == 0
        captured = capsys.readouterr()
        assert (captured.out, captured.err) == ("", "snpcerts: the file cannot express: vmpls\n")
        assert Path("out").stat().st_size > 100


@pytest.mark.parametrize("name", ["rvps", "corim"])
@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 2),
        ("vmpls = [0]", 2),
        ("\0", 2),
        ("measurements = 7", 2),
        ("[[[", 2),
        ("nonsense = 1", 2),
    ],
)
def test_a_policy_without_values_or_that_is_none_is_refused(
    place: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, code: int
) -> None:
    (place / "policy.toml").write_text(text)
    assert main(["policy", name, "policy.toml", "-o", "out"]) == code
    assert not (place / "out").exists()
    assert capsys.readouterr().err.startswith("snpcerts: ")
