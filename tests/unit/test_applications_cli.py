"""`pleach dpi` as an operator calls it."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from controller import cli
from tests.unit import applications_traffic as traffic

#: Calls `pleach dpi`, and gives what it prints on stdout and stderr.
Pleach = Callable[..., tuple[str, str]]


@pytest.fixture
def pleach(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Pleach:
    def call(*words: object, code: int = 0) -> tuple[str, str]:
        monkeypatch.setattr("sys.argv", ["pleach", "dpi", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        out, err = capfd.readouterr()
        assert (ended.value.code or 0) == code, err
        return out, err

    return call


def test_identify(pleach: Pleach, tmp_path: Path) -> None:
    frames = [
        *traffic.tcp(80, traffic.HTTP, step=0.002),
        *traffic.tcp(80, traffic.HTTP, sport=40_001, step=0.004),
        *traffic.udp(53, traffic.dns("www.example.org")),
    ]
    file = traffic.capture(tmp_path / "a.pcap", frames)

    out, err = pleach("identify", file)
    assert err == ""
    assert [line.split("  ")[0] for line in out.splitlines()] == [
        "SERVICE",
        "10.0.0.2 tcp/80",
        "10.0.0.2 udp/53",
    ]
    assert out.splitlines()[0].split()[:3] == ["SERVICE", "APPLICATION", "HOW"]
    assert "HTTP" in out.splitlines()[1]
    assert "web server" in out.splitlines()[1]

    services = json.loads(pleach("identify", file, "--json")[0])
    assert services[0]["application"] == "HTTP"
    assert services[0]["flows"] == 2
    assert services[0]["times"]["handshakes"] == 2
    assert 0.0039 < services[0]["times"]["handshake_s"] < 0.0081

    flows = json.loads(pleach("identify", file, "--flows", "--json")[0])
    assert [flow["application"] for flow in flows] == ["HTTP", "HTTP", "DNS"]
    assert flows[2]["responder"] == {
        "address": traffic.SERVER,
        "port": 53,
        "mac": traffic.SERVER_MAC,
    }
    listed = pleach("identify", file, "--flows")[0]
    assert listed.split()[:5] == ["PROTOCOL", "FROM", "TO", "APPLICATION", "HOW"]
    assert "10.0.0.1:40001" in listed


def test_identify_what_is_damaged_or_none(pleach: Pleach, tmp_path: Path) -> None:
    file = tmp_path / "cut.pcap"
    file.write_bytes(traffic.pcap(traffic.tcp(80, traffic.HTTP))[:-7])
    out, err = pleach("identify", file)
    assert "HTTP" in out
    assert err.startswith(f"warning: {file}: ends within the frame at byte ")
    nowhere = tmp_path / "nowhere.pcap"
    assert pleach("identify", nowhere, code=2) == (
        "",
        f"error: {nowhere}: cannot be read: No such file or directory; "
        "name a file made by tcpdump -w\n",
    )
    file.write_bytes(b"no capture")
    assert pleach("identify", file, code=2) == (
        "",
        f"error: {file}: neither pcap nor pcapng; name a file made by tcpdump -w\n",
    )


def test_identify_with_a_policy_that_is_wrong(pleach: Pleach, tmp_path: Path) -> None:
    policy = tmp_path / "policy.yaml"
    policy.write_text("lokking: {}\n")
    _, err = pleach("identify", tmp_path / "x", "--policy", policy, code=2)
    assert "policy.yaml:1: lokking: there is no such field (did you mean looking?)" in err


def test_watch_where_there_is_nothing(pleach: Pleach) -> None:
    _, err = pleach("watch", "no-such-interface", code=2)
    assert "no-such-interface: " in err


def captures(folder: Path) -> None:
    """Flows in bytes that nDPI does not know: talk at port 7001, a stream at port 7002."""
    chance = random.Random(2)
    for number in range(12):
        frames = []
        for flow in range(6):
            talk = [(n % 2 == 0, chance.randbytes(chance.randint(20, 60))) for n in range(8)]
            stream = [(True, chance.randbytes(90)), *[(False, chance.randbytes(1_300))] * 7]
            frames += traffic.tcp(7001, talk, sport=41_000 + flow)
            frames += traffic.tcp(7002, stream, sport=42_000 + flow)
        traffic.capture(folder / f"{number}.pcap", frames)


def test_train(pleach: Pleach, tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    captures(folder)
    labels = tmp_path / "labels.csv"
    labels.write_text(
        "capture,protocol,responder,port,category\n"
        ",tcp,,7001,messaging\n"
        "11.pcap,tcp,,7002,file transfer\n"
        ",tcp,10.0.0.2,7002,file transfer\n"
    )
    model = tmp_path / "model"
    words = ("train", "--captures", folder, "--labels", labels, "--out", model, "--trees", 20)
    report = json.loads(pleach(*words, "--json")[0])
    assert report["flows_of"] == {"file transfer": 72, "messaging": 72}
    assert report["right"] == 1.0
    assert report["captures"] == 3

    plain = json.loads(pleach("identify", folder / "0.pcap", "--json")[0])
    assert {service["kind"] for service in plain} == {"unknown"}
    found = json.loads(pleach("identify", folder / "0.pcap", "--model", model, "--json")[0])
    assert [(s["service"]["port"], s["kind"], s["category"]) for s in found] == [
        (7001, "behavioural", "messaging"),
        (7002, "behavioural", "file transfer"),
    ]


def test_train_with_too_little_or_wrong(pleach: Pleach, tmp_path: Path) -> None:
    folder = tmp_path / "captures"
    folder.mkdir()
    traffic.capture(folder / "a.pcap", traffic.tcp(80, traffic.HTTP))
    out = ("--out", tmp_path / "model")
    _, err = pleach("train", "--captures", folder, *out, code=2)
    assert "0 flows of 0 captures are too few" in err
    assert not (tmp_path / "model").exists()

    labels = tmp_path / "labels.csv"
    labels.write_text("capture,protocol,responder,port,category\n,tcp,,80,webb\n")
    _, err = pleach("train", "--captures", folder, "--labels", labels, *out, code=2)
    assert f"{labels}:2: category: the policy has no 'webb'" in err
    labels.write_text("a,b\n")
    _, err = pleach("train", "--captures", folder, "--labels", labels, *out, code=2)
    assert f"{labels}:1: the columns are wrong" in err
    _, err = pleach("train", "--captures", tmp_path / "nowhere", *out, code=2)
    assert "nowhere: No such file or directory" in err
