# SPDX-License-Identifier: Apache-2.0
"""Names and files of the cache."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snpcerts.abi.product import Product
from snpcerts.abi.tcb import TcbVersion
from snpcerts.endorsement.vek import VekKind
from snpcerts.kds.body import MAX_BODY
from snpcerts.kds.errors import CacheError
from snpcerts.kds.store import Store, place_of, resource_at
from snpcerts.kds.url import ChainResource, CrlResource, VcekResource
from tests.endorsement.small_ca import PINNED

from .test_url import vceks

WANTED = ChainResource(Product.MILAN, VekKind.VCEK)


def test_places_are_those_a_trustee_looks_up() -> None:
    milan = VcekResource(Product.MILAN, b"\xab" * 64, TcbVersion(3, 1, 8, 115))
    turin = VcekResource(Product.TURIN, b"\xab" * 8, TcbVersion(3, 1, 8, 15, fmc=5))
    assert str(place_of(milan)) == f"vcek/{'ab' * 64}/bl03_tee01_snp08_ucode115_vcek.der"
    assert str(place_of(turin)) == f"vcek/{'ab' * 8}/bl03_tee01_snp08_ucode15_fmc05_vcek.der"


@given(vceks())
def test_a_place_names_its_resource(wanted: VcekResource) -> None:
    assert resource_at(place_of(wanted), wanted.product) == wanted


@given(vceks(), vceks())
def test_two_chips_or_tcbs_never_share_a_place(one: VcekResource, other: VcekResource) -> None:
    """The product is not part of the name; the certificate has it."""
    same = (one.hwid, one.tcb) == (other.hwid, other.tcb)
    assert (place_of(one) == place_of(other)) == same


@pytest.mark.parametrize("product", PINNED)
@pytest.mark.parametrize("kind", VekKind)
def test_chains_and_lists_have_places_of_their_own(product: Product, kind: VekKind) -> None:
    for resource in (ChainResource(product, kind), CrlResource(product, kind)):
        assert resource_at(place_of(resource), product) == resource


@given(st.lists(st.text(max_size=40), max_size=4), st.sampled_from(Product))
def test_other_paths_name_no_resource(parts: list[str], product: Product) -> None:
    place = PurePosixPath(*(part.replace("\0", "") for part in parts))
    found = resource_at(place, product)
    assert found is None or place_of(found) == place


@pytest.mark.parametrize(
    "name",
    [
        "bl3_tee01_snp08_ucode115_vcek.der",
        "bl003_tee01_snp08_ucode115_vcek.der",
        "bl03_tee01_snp08_ucode999_vcek.der",
        "bl03_tee01_snp08_ucode115_fmc01_vcek.der",
        "vcek.der",
        ".snpcerts-abc",
    ],
)
def test_only_one_spelling_is_a_name(name: str) -> None:
    assert resource_at(PurePosixPath("vcek", "ab" * 64, name), Product.MILAN) is None


def test_written_files_are_read_back_and_public(tmp_path: Path) -> None:
    store = Store(tmp_path / "a" / "b")
    assert store.read(WANTED) is None
    store.write(WANTED, b"one")
    store.write(WANTED, b"two")
    assert store.read(WANTED) == b"two"
    assert store.path_of(WANTED).stat().st_mode & 0o777 == 0o644
    assert list(store.places()) == [place_of(WANTED)]


def test_a_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    """A file is never changed; a new one replaces it."""
    store = Store(tmp_path)
    store.write(WANTED, b"old and whole")
    with store.path_of(WANTED).open("rb") as reader:
        store.write(WANTED, b"new")
        assert reader.read() == b"old and whole"
    assert store.read(WANTED) == b"new"


def test_a_write_that_fails_leaves_the_old_file_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Store(tmp_path)
    store.write(WANTED, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(CacheError, match="No space left"):
        store.write(WANTED, b"new")
    assert store.read(WANTED) == b"old"
    assert os.listdir(store.path_of(WANTED).parent) == ["vcek.pem"]


def test_leftovers_of_a_killed_writer_are_removed_once_they_are_old(tmp_path: Path) -> None:
    store = Store(tmp_path)
    folder = store.path_of(WANTED).parent
    folder.mkdir(parents=True)
    (old, young) = (folder / ".snpcerts-old", folder / ".snpcerts-young")
    old.touch()
    young.touch()
    os.utime(old, (1_000_000, 1_000_000))
    store.write(WANTED, b"new")
    assert sorted(os.listdir(folder)) == [".snpcerts-young", "vcek.pem"]


def test_strange_files_are_errors_not_traps(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.path_of(WANTED)
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    with pytest.raises(CacheError, match="regular file"):
        store.read(WANTED)
    path.unlink()
    path.mkdir()
    with pytest.raises(CacheError):
        store.read(WANTED)
    path.rmdir()
    path.write_bytes(bytes(MAX_BODY + 1))
    with pytest.raises(CacheError, match="found more"):
        store.read(WANTED)


def test_a_cache_that_cannot_be_a_directory_is_an_error(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(CacheError):
        Store(blocked).write(WANTED, b"")
    with pytest.raises(CacheError):
        Store(blocked / "below").read(WANTED)
