"""What the operator says of applications, and how a file that is wrong is told."""

from __future__ import annotations

import ctypes
from pathlib import Path

import _lib_engine
import pytest

from controller.observe.applications import policy
from controller.observe.applications.engine import Engine
from controller.observe.applications.naming import Naming
from controller.observe.applications.own import NAMES
from controller.settings import SettingsError


def test_the_policy_that_comes_along() -> None:
    loaded = policy.load()
    naming = loaded.naming()
    assert naming.category("PostgreSQL") == "database"
    assert naming.category("TLS.YouTube") == "video streaming"
    assert naming.category("DNS.YouTube") == "name service"
    assert naming.category("TLS.Slack", "Collaborative") == "web server"
    assert naming.category("Slack", "Collaborative") == "messaging"
    assert naming.category("Nobody") == "other"
    assert naming.suggested("tcp", 5432) == "PostgreSQL"
    assert naming.suggested("udp", 5432) is None
    assert loaded.limits().packets == 10
    assert loaded.rules().flows == 1
    assert Naming.from_json(naming.to_json()) == naming


def test_it_speaks_ndpis_names() -> None:
    """A misspelt name would be in no category, without a word."""
    library = ctypes.CDLL(_lib_engine.__file__)
    engine = Engine()
    dissector = ctypes.c_void_p(int(_lib_engine.ffi.cast("uintptr_t", engine._dissector)))
    for function in (library.ndpi_get_proto_by_id, library.ndpi_category_get_name):
        function.restype = ctypes.c_char_p
        function.argtypes = [ctypes.c_void_p, ctypes.c_uint]
    library.ndpi_get_num_protocols.argtypes = [ctypes.c_void_p]
    protocols = {
        library.ndpi_get_proto_by_id(dissector, number).decode()
        for number in range(library.ndpi_get_num_protocols(dissector))
    }
    categories = {
        library.ndpi_category_get_name(dissector, number).decode()
        for number in range(_lib_engine.lib.NDPI_PROTOCOL_NUM_CATEGORIES)
    }
    naming = policy.load().naming()
    assert set(naming.applications) <= protocols | NAMES
    assert set(naming.ports.values()) <= protocols | NAMES
    assert naming.opaque <= protocols
    assert set(naming.ndpi) <= categories
    engine.close()


def refused(path: Path, text: str) -> list[str]:
    path.write_text(text)
    with pytest.raises(SettingsError) as told:
        policy.load(path)
    return [str(problem).removeprefix(f"{path}") for problem in told.value.problems]


NO_FIELD = "there is no such field (did you mean"
WRONG = {
    "looking:\n  packet: 3\n": f":2: looking.packet: {NO_FIELD} packets?)",
    "looking:\n  packets: 0\n": (
        ":2: looking.packets: Input should be greater than or equal to 1, not 0"
    ),
    "looking:\n  packets: '3'\n": (":2: looking.packets: Input should be a valid integer, not '3'"),
    "verifying:\n  jitter: 1.5\n": (":2: verifying.jitter: Input should be less than 1, not 1.5"),
    "categories:\n  web:\n    application: [HTTP]\n": (
        f":3: categories.web.application: {NO_FIELD} applications?)"
    ),
    "categories:\n  a: {ndpi: [Web]}\n  b: {ndpi: [Web]}\n": (
        ":1: Web is in a and in b: leave it in one"
    ),
    "categories:\n  unknown: {}\n": (":1: unknown is what has no category: choose another name"),
    "ports:\n  sctp: {1: A}\n": ":1: ports: sctp has no ports: choose tcp or udp",
    "ports:\n  tcp:\n    70000: A\n": ":1: ports: 70000 is no port: choose 1 to 65535",
    "ports:\n  tcp:\n    1: A\n    1: B\n": ":4: ports.tcp.1: is set a second time",
    "a: [\n": ":2: is not YAML: expected the node content, but found '<stream end>'",
    "- x\n": ":1: Input should be a valid dictionary or instance of ApplicationPolicy",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_told_with_its_place(tmp_path: Path, text: str) -> None:
    assert refused(tmp_path / "p.yaml", text) == [WRONG[text]]


def test_everything_wrong_is_told_at_once(tmp_path: Path) -> None:
    text = "looking: {packets: 0}\nlooking: {packets: 0}\nport: {}\n"
    assert len(refused(tmp_path / "p.yaml", text)) == 3


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="No such file"):
        policy.load(tmp_path / "nowhere.yaml")
    binary = tmp_path / "binary.yaml"
    binary.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SettingsError, match="is not UTF-8 text"):
        policy.load(binary)


def test_an_empty_file_is_all_defaults(tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text("")
    assert policy.load(tmp_path / "p.yaml").naming().category("HTTP", "Web") == "other"
