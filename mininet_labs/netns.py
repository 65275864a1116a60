"""Network namespaces with a name: making one, and doing something inside of it."""

from __future__ import annotations

import ctypes
import os
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

_CLONE_NEWNET = 0x40000000
_MS_BIND = 4096
#: Where `ip netns` looks, so that `ip netns exec NAME` works in a lab's shell too.
_DIRECTORY = Path("/run/netns")
_COMMAND_TIMEOUT_S = 120

_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def entered(name: str | None) -> Iterator[None]:
    """Be in namespace `name` with this thread alone; None stays where one is.

    What is opened or started meanwhile belongs to that namespace. OSError where it is missing.
    """
    if name is None:
        yield
        return
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(_DIRECTORY / name, os.O_RDONLY | os.O_CLOEXEC)
        try:
            _libc_call("setns", there, _CLONE_NEWNET)
        finally:
            os.close(there)
        try:
            yield
        finally:
            _libc_call("setns", home, _CLONE_NEWNET)
    finally:
        os.close(home)


def create(name: str) -> None:
    """Make namespace `name` with its loopback down. FileExistsError where there is one."""
    path = _DIRECTORY / name
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o444))
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        _libc_call("unshare", _CLONE_NEWNET)
        try:
            source = b"/proc/thread-self/ns/net"
            _libc_call("mount", source, os.fsencode(path), b"none", ctypes.c_ulong(_MS_BIND), None)
        finally:
            _libc_call("setns", home, _CLONE_NEWNET)
    finally:
        os.close(home)


def remove(name: str) -> None:
    """Forget namespace `name`; it ends when its last process does. OSError where it is missing."""
    path = _DIRECTORY / name
    _libc_call("umount2", os.fsencode(path), 2)  # MNT_DETACH
    path.unlink()


def batch(tool: str, lines: Iterable[str], namespace: str | None = None) -> None:
    """Give `lines` to `ip` or `tc` in one process; RuntimeError where one of them fails."""
    text = "\n".join(lines) + "\n"
    with entered(namespace):
        done = subprocess.run(
            [tool, "-batch", "-"],
            input=text,
            capture_output=True,
            text=True,
            timeout=_COMMAND_TIMEOUT_S,
            check=False,
        )
    if done.returncode != 0:
        raise RuntimeError(f"{tool} in {namespace or 'the sandbox'}: {done.stderr.strip()}\n{text}")


def call(*command: str) -> str:
    """Run a command to its end and return its output; RuntimeError with what it said."""
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=_COMMAND_TIMEOUT_S, check=False
    )
    if done.returncode != 0:
        raise RuntimeError(f"`{' '.join(command[:12])}` failed: {done.stderr.strip()}")
    return done.stdout


def offloads_off(interface: str) -> None:
    """Turn TX checksum, TSO, GSO and GRO off on `interface`, in the caller's namespace.

    A userspace datapath forwards frames as they are read: a checksum left to hardware, or a
    frame of many segments, never arrives. RuntimeError where there is no such interface.
    """
    call("ethtool", "-K", interface, *("tx", "off", "tso", "off", "gso", "off", "gro", "off"))


def _libc_call(name: str, *arguments: object) -> None:
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
