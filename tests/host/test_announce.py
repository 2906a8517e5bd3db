# SPDX-License-Identifier: Apache-2.0
"""The agent announces the host's state to the fleet's mirror, and no mirror can disturb it."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snpcerts.abi.product import Cpuid
from snpcerts.endorsement.vek import VekKind
from snpcerts.errors import InputError, RefusedError, RetryLaterError, SnpCertsError
from snpcerts.host.announce import (
    Announcer,
    BackgroundAnnouncer,
    MirroredCertificate,
    announcement_of,
)
from snpcerts.host.config import ConfigError, MirrorConfig, parse
from snpcerts.host.event import Event, EventKind
from snpcerts.host.expected_content import Key
from snpcerts.host.host_processor import cpuid_of_host
from snpcerts.host.mirror_wait import LONGEST_PAUSE, SHORTEST_PAUSE, wait_for_mirror
from snpcerts.kds.clock import Clock
from snpcerts.mirror.announcement import Announcement
from snpcerts.mirror.mirror_client import MirrorAccess, read_token

from ..kds.answering import Answering, ok
from ..mirror.sample_fleet import NEW, OLD, announcement
from .fake_mirror import FakeMirror, fake_mirror, wanted
from .rig import Rig
from .site import Site, watching

ANNOUNCED = announcement("host", OLD, NEW)


@pytest.fixture
def mirror() -> Iterator[FakeMirror]:
    with fake_mirror() as mirror:
        yield mirror


def config_of(mirror: FakeMirror, **more: Any) -> MirrorConfig:
    return MirrorConfig(MirrorAccess(mirror.url, **more))


def test_an_announcement_arrives_with_its_token_and_the_answer_is_read(
    mirror: FakeMirror, tmp_path: Path
) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret\n")
    mirror.answer = lambda announced: [
        wanted(announced.reported),
        wanted(announced.current, "queued", 20),
    ]
    found = Announcer(config_of(mirror, token_file=str(token))).send(ANNOUNCED)
    assert found == (
        MirroredCertificate(OLD, "stored"),
        MirroredCertificate(NEW, "queued", 20),
    )
    assert mirror.announced == [ANNOUNCED]
    assert mirror.headers[0]["Authorization"] == "Bearer s3cret"
    assert mirror.targets == [f"/api/v1/hosts/Genoa/{ANNOUNCED.hwid.hex()}"]


@pytest.mark.parametrize(
    ("status", "kind", "says"),
    [
        (403, RefusedError, "token"),
        (401, RefusedError, "token"),
        (404, RefusedError, "404"),
        (302, RefusedError, "302"),
        (500, RetryLaterError, "500"),
        (429, RetryLaterError, "429"),
    ],
)
def test_a_mirror_that_refuses_is_quoted(
    mirror: FakeMirror, status: int, kind: type[SnpCertsError], says: str
) -> None:
    mirror.status = status
    with pytest.raises(kind, match="as the test wants") as refused:
        Announcer(config_of(mirror)).send(ANNOUNCED)
    assert says in str(refused.value)


def test_the_token_does_not_follow_a_redirect(mirror: FakeMirror, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("s3cret")
    mirror.status = 307
    with Answering(lambda _: ok(b"{}")) as thief:
        mirror.location = thief.url
        with pytest.raises(RefusedError):
            Announcer(config_of(mirror, token_file=str(token))).send(ANNOUNCED)
        assert thief.targets == []


ANSWERS = {
    "not JSON": b"<html>",
    "another object": b'{"hosts": []}',
    "deep": b"[" * 60_000,
    "no list": b'{"wanted": 7}',
    "no object": b'{"wanted": ["x"]}',
    "another state": json.dumps({"wanted": [wanted(NEW, "odd")]}).encode(),
    "a TCB of Turin": json.dumps({"wanted": [{"tcb": {"fmc": 1}, "state": "stored"}]}).encode(),
    "huge": b" " * 70_000,
}


@pytest.mark.parametrize("body", ANSWERS.values(), ids=ANSWERS)
def test_an_answer_that_makes_no_sense_is_an_error(body: bytes) -> None:
    with Answering(lambda _: ok(body)) as server, pytest.raises(RetryLaterError):
        Announcer(MirrorConfig(MirrorAccess(server.url))).send(ANNOUNCED)


def test_an_announcement_ends_in_time_whatever_the_mirror_does() -> None:
    released = threading.Event()

    def trickle(connection: socket.socket) -> None:
        connection.sendall(b"HTTP/1.1 200 OK\r\n")
        while not released.wait(0.02):
            connection.sendall(b"X: y\r\n")

    with Answering(lambda _: b"", feed=trickle) as server:
        start = time.monotonic()
        with pytest.raises(RetryLaterError, match="no usable answer"):
            Announcer(MirrorConfig(MirrorAccess(server.url)), limit=0.3).send(ANNOUNCED)
        assert time.monotonic() - start < 30
        released.set()


def test_a_mirror_that_is_not_there_is_an_error_that_names_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(RetryLaterError, match=f"answer from the mirror http://127.0.0.1:{port}"):
        Announcer(MirrorConfig(MirrorAccess(f"http://127.0.0.1:{port}"))).send(ANNOUNCED)


@pytest.mark.parametrize("content", [b"", b"\n", b"two words\n", b"\xff\n", b"a" * 5000])
def test_a_file_that_holds_no_token_is_an_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "token"
    path.write_bytes(content)
    with pytest.raises(InputError, match="expected a token"):
        read_token(str(path))
    with pytest.raises(InputError, match="No such file"):
        read_token(str(tmp_path / "none"))


def test_the_agent_does_not_wait_for_a_mirror_and_hears_of_it_once_it_works(
    mirror: FakeMirror,
) -> None:
    events: list[Event] = []
    results: list[str] = []
    begun, held = threading.Event(), threading.Event()

    def slow(announced: Announcement) -> list[dict[str, Any]]:
        begun.set()
        held.wait(60)
        return [wanted(announced.current)]

    mirror.answer = slow
    background = BackgroundAnnouncer(Announcer(config_of(mirror)), events.append, results.append)
    background.announce(replace(ANNOUNCED, guests=0))
    assert begun.wait(60)
    for guests in range(1, 5):  # none of these calls waits for the answer
        background.announce(replace(ANNOUNCED, guests=guests))
    held.set()
    background.finish(60)
    # Of those announced while the first was delayed, only the newest was sent.
    assert [each.guests for each in mirror.announced] == [0, 4]
    mirror.status = 500
    background.announce(ANNOUNCED)
    background.finish(60)
    mirror.status = 200
    background.announce(ANNOUNCED)
    background.finish(60)
    kinds = [each.kind for each in events]
    assert kinds == [EventKind.ANNOUNCED, EventKind.NOT_ANNOUNCED, EventKind.ANNOUNCED]
    assert results == ["ok", "ok", "mirror-unavailable", "ok"]


def test_a_success_after_an_announcement_that_was_never_sent_is_reported(
    mirror: FakeMirror,
) -> None:
    events: list[Event] = []
    background = BackgroundAnnouncer(Announcer(config_of(mirror)), events.append)
    background.announce(ANNOUNCED)
    background.finish(60)
    background.note_failure("the firmware's status cannot be read", "refused")
    background.announce(ANNOUNCED)
    background.finish(60)
    kinds = [each.kind for each in events]
    assert kinds == [EventKind.ANNOUNCED, EventKind.NOT_ANNOUNCED, EventKind.ANNOUNCED]


def test_an_error_that_was_not_foreseen_stays_in_the_announcers_thread(
    mirror: FakeMirror, monkeypatch: pytest.MonkeyPatch
) -> None:
    events: list[Event] = []
    announcer = Announcer(config_of(mirror))
    monkeypatch.setattr(announcer, "send", lambda _: 1 / 0)
    background = BackgroundAnnouncer(announcer, events.append)
    background.announce(ANNOUNCED)
    background.finish(60)
    assert [each.kind for each in events] == [EventKind.NOT_ANNOUNCED]
    assert "ZeroDivisionError" in events[0].message


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_listener_that_raises_does_not_end_announcing(mirror: FakeMirror) -> None:
    def raising(_: Event) -> None:
        raise BrokenPipeError

    background = BackgroundAnnouncer(Announcer(config_of(mirror)), raising)
    for guests in range(2):
        background.announce(replace(ANNOUNCED, guests=guests))
        background.finish(60)
    assert [each.guests for each in mirror.announced] == [0, 1]


def test_what_is_announced_is_what_the_agent_sees(rig: Rig) -> None:
    agent = rig.agent()
    agent.sync()
    announced = announcement_of(agent.firmware, agent.read_files(), "name")
    assert (announced.host, announced.hwid, announced.product) == (
        "name",
        rig.firmware.chip.hwid,
        rig.firmware.product,
    )
    assert announced.current == announced.reported == rig.reported()
    (file,) = announced.files
    assert (file.path, file.kind, file.state) == (str(rig.file), VekKind.VCEK, "right")
    assert file.certificates
    assert file.not_after is not None


def test_the_processor_is_read_from_cpuinfo(tmp_path: Path) -> None:
    path = tmp_path / "cpuinfo"
    text = "vendor_id\t: AuthenticAMD\ncpu family\t: 25\nmodel\t\t: 17\nstepping\t: 1\n"
    path.write_text(text)
    assert cpuid_of_host(str(path)) == Cpuid(25, 17, 1)
    for wrong in ("GenuineIntel", "stepping\t: 999", "stepping\t: x"):
        name = wrong.partition("\t")[0] if "\t" in wrong else "vendor_id"
        lines = (
            f"{name}\t: {wrong.rpartition(' ')[2]}" if line.startswith(name) else line
            for line in text.splitlines()
        )
        path.write_text("\n".join(lines))
        assert cpuid_of_host(str(path)) is None
    assert cpuid_of_host(str(tmp_path / "none")) is None


# The configuration.


def test_the_mirror_is_the_key_server_too_unless_another_is_named() -> None:
    text = '[mirror]\nurl = "https://mirror.example/"\ntoken_file = "/etc/token"\n'
    config = parse(text)
    assert config.mirror == MirrorConfig(MirrorAccess("https://mirror.example", "/etc/token"))
    assert config.kds_url == "https://mirror.example"
    assert parse(text + '[kds]\nurl = "https://kds.example"\n').kds_url == "https://kds.example"
    assert parse(text + "[kds]\noffline = true\n").kds_url is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[mirror]\n", "needs the key 'url'"),
        ('[mirror]\nurl = "ftp://x"\n', "line 2"),
        ('[mirror]\nurl = "http://x"\ntoken_file = "/t"\n', "https://"),
        ('[mirror]\nurl = "https://x"\ncertificate = "/c"\n', "must be set together"),
        ('[mirror]\nurl = "https://x"\nname = "a\\nb"\n', "printable"),
        ('[mirror]\nurl = "https://x"\ntoken = "abc"\n', "this key is unknown"),
    ],
)
def test_a_mistake_in_the_mirrors_section_is_named(text: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        parse(text)


def test_a_token_may_go_to_this_machine_without_tls() -> None:
    text = '[mirror]\nurl = "http://127.0.0.1:8180"\ntoken_file = "/t"\n'
    assert parse(text).mirror is not None


# Waiting for the mirror.


class ToldClock(Clock):
    """A clock that runs only while something sleeps."""

    def __init__(self) -> None:
        self.time = 0.0
        self.slept: list[float] = []

    def now(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.time += seconds


def waited(mirror: FakeMirror, *keys: Key, patience: float = 3600) -> tuple[ToldClock, list[str]]:
    clock = ToldClock()
    said: list[str] = []
    wait_for_mirror(
        Announcer(config_of(mirror)), ANNOUNCED, keys, patience, notice=said.append, clock=clock
    )
    return clock, said


NEXT = Key(VekKind.VCEK, NEW)


def test_it_waits_as_long_as_the_mirror_expects_within_limits(mirror: FakeMirror) -> None:
    answers = [
        [wanted(NEW, "queued", 500)],
        [wanted(NEW, "queued", 7)],
        [wanted(NEW, "queued", 0)],
        [wanted(NEW, "queued")],
        [wanted(OLD), wanted(NEW)],
    ]
    mirror.answer = lambda _: answers.pop(0)
    clock, said = waited(mirror, NEXT)
    assert clock.slept == [LONGEST_PAUSE, 7, SHORTEST_PAUSE, 10]
    assert "expects it in 500 s" in said[0]


def test_a_mirror_that_fails_meanwhile_is_asked_again(mirror: FakeMirror) -> None:
    mirror.status = 503

    class Back(ToldClock):
        def sleep(self, seconds: float) -> None:
            super().sleep(seconds)
            mirror.status = 200

    clock = Back()
    wait_for_mirror(
        Announcer(config_of(mirror)), ANNOUNCED, [NEXT], 100, notice=lambda _: None, clock=clock
    )
    assert len(clock.slept) == 1


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        ([wanted(NEW, "queued", 9)], RetryLaterError, r"\(waited 60 s\); nothing has been changed"),
        ([wanted(NEW, "not-found")], RetryLaterError, "has no certificate"),
        ([wanted(NEW, "refused")], RetryLaterError, "does not verify"),
        ([wanted(OLD)], RefusedError, "did not say whether"),
    ],
)
def test_it_gives_up_with_a_reason(
    mirror: FakeMirror, answer: list[dict[str, Any]], kind: type[SnpCertsError], says: str
) -> None:
    mirror.answer = lambda _: answer
    with pytest.raises(kind, match=says):
        waited(mirror, NEXT, patience=60)


def test_only_vceks_are_waited_for(mirror: FakeMirror) -> None:
    waited(mirror, Key(VekKind.VLEK, NEW))
    assert mirror.announced == []


# The commands, on an emulated host.


def configured(site: Site, url: str) -> str:
    path = site.folder / "snpcerts.toml"
    path.write_text(
        f'[mirror]\nurl = "{url}"\nname = "emulated-1"\n[[file]]\npath = "{site.file}"\n'
    )
    return str(path)


def test_the_watch_announces_each_round_and_outlives_its_mirror(
    site: Site, mirror: FakeMirror
) -> None:
    with watching(site, config=configured(site, mirror.url)) as process:
        announced = mirror.wait()
        while not announced.files[0].in_step:
            announced = mirror.wait()
        assert announced.host == "emulated-1"
        assert announced.cpuid is not None
        mirror.status = 500
        assert process.stdout is not None
        lines = (json.loads(line) for line in process.stdout)
        failed = next(line for line in lines if line["event"] == "not-announced")
        assert failed["level"] == "warning"
        mirror.status = 200
        assert next(line for line in lines if line["event"] == "announced")


def test_commit_waits_for_the_mirror_and_tells_it_of_the_end(
    site: Site, mirror: FakeMirror
) -> None:
    site.done("set-config", f"--reported-tcb={site.lowered()}")
    config = configured(site, mirror.url)
    mirror.answer = lambda announced: [wanted(announced.current, "queued", 0)]
    refused = site.host("commit", "--wait-for-mirror=0", config=config)
    assert refused.returncode == 3
    assert "nothing has been changed" in refused.stderr
    assert mirror.announced[-1].reported != mirror.announced[-1].current
    states = ["queued", "stored"]
    mirror.answer = lambda announced: [
        wanted(announced.current, states.pop(0) if states else "stored", 0)
    ]
    made = site.host("commit", "--wait-for-mirror", config=config)
    assert made.returncode == 0, made.stderr
    assert "does not have the certificate" in made.stderr
    assert mirror.announced[-1].reported == mirror.announced[-1].current
    assert mirror.announced[-1].files[0].in_step


def test_waiting_for_a_mirror_needs_one(site: Site) -> None:
    refused = site.host("commit", "--wait-for-mirror")
    assert refused.returncode == 2
    assert "[mirror] section" in refused.stderr
