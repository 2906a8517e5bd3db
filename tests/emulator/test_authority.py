# SPDX-License-Identifier: Apache-2.0
"""The emulated hierarchy has AMD's shape, cannot be taken for AMD's, and lasts on disk."""

from __future__ import annotations

import stat
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.hashes import SHA384
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key
from cryptography.x509.oid import ExtensionOID, NameOID

from snpcerts.abi.product import Product
from snpcerts.emulator.amd.authority import EmulatedAuthority
from snpcerts.emulator.psp.chip import Chip, CloudProvider
from snpcerts.emulator.psp.chip_model import CHIP_MODELS
from snpcerts.endorsement.certificate import Certificate, load_certificate
from snpcerts.errors import InputError, UsageError
from tests.endorsement.small_ca import PINNED
from tests.x509_library import by_the_library

Authorities = Callable[[Product], EmulatedAuthority]

ARC = "1.3.6.1.4.1.3704.1."
CSP_ID = "CN=cc-us-east-2.amazonaws.com"
ORDER_0 = ["1", "2", "3.1", "3.2", "3.4", "3.5", "3.6", "3.7", "3.3", "3.8"]
ORDER_1 = ["1", "2", "3.9", "3.1", "3.2", "3.3", "3.5", "3.6", "3.7", "3.8"]


def amd_extensions(certificate: Certificate) -> dict[str, bytes]:
    """Map the suffix of each extension's OID to its value, in order, as the library reads them."""
    found = {}
    for extension in by_the_library(certificate.der).extensions:
        assert isinstance(extension.value, x509.UnrecognizedExtension)
        assert not extension.critical
        found[extension.oid.dotted_string.removeprefix(ARC)] = extension.value.value
    return found


def issued(certificate: Certificate, issuer: Certificate) -> None:
    """Check, by the library alone, that ``issuer`` issued ``certificate``."""
    read, above = by_the_library(certificate.der), by_the_library(issuer.der)
    assert read.issuer == above.subject
    key = above.public_key()
    assert isinstance(key, rsa.RSAPublicKey)
    pss = padding.PSS(padding.MGF1(SHA384()), 48)
    key.verify(read.signature, certificate.tbs_certificate_bytes, pss, SHA384())


def cn_of(name: x509.Name) -> str:
    return str(name.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value)


def vcek_of(authority: EmulatedAuthority, chip: Chip) -> Certificate:
    tcb = CHIP_MODELS[authority.product].tcb
    return authority.issue_vcek(chip.hwid, tcb, chip.vcek_key(tcb).public_key())


def vlek_of(authority: EmulatedAuthority) -> Certificate:
    tcb = CHIP_MODELS[authority.product].tcb
    key = CloudProvider(CSP_ID, bytes(32)).vlek_key(tcb).public_key()
    return authority.issue_vlek(CSP_ID, tcb, key)


@pytest.mark.parametrize("product", PINNED)
def test_both_chains_verify_up_to_the_root(product: Product, authority_of: Authorities) -> None:
    authority = authority_of(product)
    issued(authority.ark, authority.ark)
    issued(authority.ask, authority.ark)
    issued(authority.asvk, authority.ark)
    issued(vcek_of(authority, Chip.create(product)), authority.ask)
    issued(vlek_of(authority), authority.asvk)


@pytest.mark.parametrize("product", PINNED)
def test_names_are_amds_but_say_emulated(product: Product, authority_of: Authorities) -> None:
    authority = authority_of(product)
    name = product.value
    assert cn_of(authority.ark.subject) == f"ARK-{name} EMULATED"
    assert cn_of(authority.ask.subject) == f"SEV-{name} EMULATED"
    assert cn_of(authority.asvk.subject) == f"SEV-VLEK-{name} EMULATED"
    assert cn_of(vlek_of(authority).subject) == "SEV-VLEK"
    for certificate in (authority.ark, authority.ask, authority.asvk, vlek_of(authority)):
        kinds = [attribute.oid for attribute in certificate.subject]
        assert kinds == [
            NameOID.ORGANIZATIONAL_UNIT_NAME,
            NameOID.COUNTRY_NAME,
            NameOID.LOCALITY_NAME,
            NameOID.STATE_OR_PROVINCE_NAME,
            NameOID.ORGANIZATION_NAME,
            NameOID.COMMON_NAME,
        ]
        assert "Advanced Micro Devices" not in certificate.subject.rfc4514_string()


def test_every_signature_is_pss_with_sha384_and_a_salt_of_48(authority: EmulatedAuthority) -> None:
    certificates = (authority.ark, authority.ask, vlek_of(authority))
    read: list[x509.Certificate | x509.CertificateRevocationList] = [
        by_the_library(each.der) for each in certificates
    ]
    for signed in (*read, x509.load_der_x509_crl(authority.crl().der)):
        parameters = signed.signature_algorithm_parameters
        assert isinstance(parameters, padding.PSS)
        assert parameters._salt_length == 48
        assert isinstance(parameters.mgf, padding.MGF1)
        assert isinstance(parameters.mgf._algorithm, SHA384)
        assert isinstance(signed.signature_hash_algorithm, SHA384)
        assert len(signed.signature) == 512


def test_cas_carry_amds_extensions_in_amds_order(authority: EmulatedAuthority) -> None:
    ids = ExtensionOID
    ark = [extension.oid for extension in authority.ark.extensions]
    assert ark == [
        ids.KEY_USAGE,
        ids.SUBJECT_KEY_IDENTIFIER,
        ids.BASIC_CONSTRAINTS,
        ids.CRL_DISTRIBUTION_POINTS,
    ]
    for certificate, kind in ((authority.ask, "vcek"), (authority.asvk, "vlek")):
        assert [extension.oid for extension in certificate.extensions] == [
            ids.SUBJECT_KEY_IDENTIFIER,
            ids.AUTHORITY_KEY_IDENTIFIER,
            ids.BASIC_CONSTRAINTS,
            ids.KEY_USAGE,
            ids.CRL_DISTRIBUTION_POINTS,
        ]
        of_class = by_the_library(certificate.der).extensions.get_extension_for_class
        constraints = of_class(x509.BasicConstraints)
        assert constraints.critical
        assert constraints.value.ca
        assert constraints.value.path_length == 0
        usage = of_class(x509.KeyUsage).value
        assert usage.key_cert_sign
        assert not usage.crl_sign
        (point,) = of_class(x509.CRLDistributionPoints).value
        assert point.full_name is not None
        assert point.full_name[0].value == f"https://kdsintf.amd.com/{kind}/v1/Milan/crl"
    extensions = by_the_library(authority.ark.der).extensions
    assert extensions.get_extension_for_class(x509.BasicConstraints).value.path_length is None


@pytest.mark.parametrize("product", PINNED)
def test_a_vcek_carries_its_chip_and_tcb(product: Product, authority_of: Authorities) -> None:
    chip = Chip.create(product)
    certificate = vcek_of(authority_of(product), chip)
    found = amd_extensions(certificate)
    turin = product is Product.TURIN
    assert list(found) == [*(ORDER_1 if turin else ORDER_0), "4"]
    assert found["1"] == bytes((2, 1, int(turin)))
    name = {Product.MILAN: b"Milan-B0", Product.GENOA: b"Genoa", Product.TURIN: b"Turin"}[product]
    assert found["2"] == bytes((0x16, len(name))) + name
    assert found["4"] == chip.hwid
    assert len(chip.hwid) == (8 if turin else 64)
    tcb = CHIP_MODELS[product].tcb
    assert found["3.1"] == bytes((2, 1, tcb.components()["bootloader"]))
    assert found["3.3"] == bytes((2, 1, tcb.snp))
    assert isinstance(certificate.public_key(), ec.EllipticCurvePublicKey)


def test_a_patch_level_above_127_takes_two_bytes(authority: EmulatedAuthority) -> None:
    assert CHIP_MODELS[Product.MILAN].tcb.microcode == 219
    assert amd_extensions(vlek_of(authority))["3.8"] == bytes.fromhex("020200db")


def test_a_vlek_carries_its_provider_and_the_bare_product_name(
    authority: EmulatedAuthority,
) -> None:
    found = amd_extensions(vlek_of(authority))
    assert list(found) == [*ORDER_0, "5"]
    assert found["2"] == b"\x16\x05Milan"
    assert found["5"] == bytes((0x16, len(CSP_ID))) + CSP_ID.encode()


@pytest.mark.parametrize(
    ("vector", "leaf", "product"),
    [
        ("milan", "vcek", Product.MILAN),
        ("turin-v5", "vcek", Product.TURIN),
        ("vlek-milan-v3", "vlek", Product.MILAN),
    ],
)
def test_leaves_have_the_extensions_of_genuine_ones(
    vector: str, leaf: str, product: Product, authority_of: Authorities, vectors: Path
) -> None:
    """The identifiers, their order, productName and the types of the values are the same."""
    path = vectors / vector / f"{leaf}.der"
    read = load_certificate(path.read_bytes(), leaf)
    genuine = amd_extensions(read)
    authority = authority_of(product)
    made = vlek_of(authority) if leaf == "vlek" else vcek_of(authority, Chip.create(product))
    ours = amd_extensions(made)
    assert made.serial_number == read.serial_number == 0
    assert list(ours) == list(genuine)
    assert ours["1"] == genuine["1"]
    assert ours["2"] == genuine["2"]
    assert [value[0] for value in list(ours.values())[:-1]] == [
        value[0] for value in list(genuine.values())[:-1]
    ]


def test_validity_starts_in_the_past_and_lasts_as_long_as_amds(
    authority: EmulatedAuthority,
) -> None:
    vcek = vcek_of(authority, Chip.create(Product.MILAN))
    for certificate, years in ((authority.ark, 25), (vcek, 7), (vlek_of(authority), 1)):
        start, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        assert start < datetime.now(UTC)
        assert abs((end - start) - timedelta(days=365.25 * years)) < timedelta(days=2)


def test_a_leaf_can_be_issued_as_expired(authority: EmulatedAuthority) -> None:
    tcb = CHIP_MODELS[Product.MILAN].tcb
    key = Chip.create(Product.MILAN).vcek_key(tcb).public_key()
    start = datetime(2001, 1, 1, tzinfo=UTC)
    leaf = authority.issue_vcek(bytes(64), tcb, key, not_before=start)
    assert leaf.not_valid_before_utc == start
    assert leaf.not_valid_after_utc < datetime.now(UTC)


def test_a_leaf_of_another_product_is_refused(authority: EmulatedAuthority) -> None:
    tcb, turin = CHIP_MODELS[Product.MILAN].tcb, CHIP_MODELS[Product.TURIN].tcb
    key = Chip.create(Product.MILAN).vcek_key(tcb).public_key()
    with pytest.raises(UsageError, match="expected 64 bytes, found 8"):
        authority.issue_vcek(bytes(8), tcb, key)
    with pytest.raises(UsageError, match="Milan's TCB layout"):
        authority.issue_vcek(bytes(64), turin, key)
    for csp_id in ("", "a" * 128, "café"):
        with pytest.raises(UsageError, match="ASCII"):
            authority.issue_vlek(csp_id, tcb, key)


def test_the_crl_is_signed_by_the_root_and_empty_by_default(authority: EmulatedAuthority) -> None:
    crl = x509.load_der_x509_crl(authority.crl().der)
    public = authority.ark.public_key()
    assert isinstance(public, rsa.RSAPublicKey)
    assert crl.is_signature_valid(public)
    assert crl.issuer == authority.ark.subject
    assert list(crl) == []
    revoked = x509.load_der_x509_crl(authority.crl([authority.ask.serial_number]).der)
    assert revoked.get_revoked_certificate_by_serial_number(authority.ask.serial_number)


def test_the_chain_is_the_intermediate_then_the_root(authority: EmulatedAuthority) -> None:
    for vlek, issuer in ((False, authority.ask), (True, authority.asvk)):
        chain = x509.load_pem_x509_certificates(authority.chain_pem(vlek=vlek))
        assert [each.public_bytes(Encoding.DER) for each in chain] == [
            issuer.der,
            authority.ark.der,
        ]


def test_an_authority_survives_on_disk(authority: EmulatedAuthority, tmp_path: Path) -> None:
    """Saved twice, it loads as the same authority; its files are marked, its keys are private."""
    place = tmp_path / "deep" / "authority"
    authority.save(place)
    authority.save(place)
    again = EmulatedAuthority.load(place)
    assert again.product is Product.MILAN
    assert again.chain_pem() == authority.chain_pem()
    issued(vlek_of(again), authority.asvk)
    assert len(list(place.iterdir())) == 6
    for file in place.iterdir():
        assert file.read_text().startswith("EMULATED")
        private = file.name.endswith(".key.pem")
        assert stat.S_IMODE(file.stat().st_mode) & 0o077 == (0 if private else 0o044)


def _drop(place: Path) -> None:
    (place / "ask.key.pem").unlink()


def _damage(place: Path) -> None:
    (place / "ark.pem").write_text("no certificate")


def _swap_key(place: Path) -> None:
    (place / "ask.key.pem").write_bytes((place / "ark.key.pem").read_bytes())


def _swap_both(place: Path) -> None:
    for end in ("pem", "key.pem"):
        (place / f"ask.{end}").write_bytes((place / f"asvk.{end}").read_bytes())


@pytest.mark.parametrize("spoil", [_drop, _damage, _swap_key, _swap_both])
def test_a_spoilt_directory_is_refused(
    spoil: Callable[[Path], None], authority: EmulatedAuthority, tmp_path: Path
) -> None:
    authority.save(tmp_path)
    spoil(tmp_path)
    with pytest.raises(InputError):
        EmulatedAuthority.load(tmp_path)


def test_a_directory_that_cannot_be_written_is_an_error(
    authority: EmulatedAuthority, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(InputError, match="emulated authority in"):
        authority.save(tmp_path / "file")


def test_saved_keys_are_the_certificates_own(authority: EmulatedAuthority, tmp_path: Path) -> None:
    authority.save(tmp_path)
    key = load_pem_private_key((tmp_path / "ark.key.pem").read_bytes(), None)
    certificate = x509.load_pem_x509_certificate((tmp_path / "ark.pem").read_bytes())
    assert key.public_key() == certificate.public_key()
    assert certificate.public_bytes(Encoding.DER) == authority.ark.public_bytes(Encoding.DER)
