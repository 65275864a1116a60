"""A private world for one command: its own network, processes, `/run` and Open vSwitch.

    python -m mininet_labs.sandbox -- pytest -m fabric

Whatever a lab makes (bridges, interfaces, namespaces, daemons) lives in kernel namespaces
that belong to one process. When that process ends, in whatever way, the kernel removes all
of it; there is nothing to clean up and nothing that could be left behind. An Open vSwitch
that the system runs is neither seen nor touched.

Needs root (CAP_SYS_ADMIN and CAP_NET_ADMIN) and the Debian package openvswitch-switch.
"""

from __future__ import annotations

import ctypes
import os
import resource
import select
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

#: Names the work directory; set for everything that runs inside.
VARIABLE = "PLEACH_SANDBOX"

_WORK = Path("/run/pleach")
_OVS_RUN = Path("/run/openvswitch")
_SCHEMA = Path("/usr/share/openvswitch/vswitch.ovsschema")
_TUN = Path("/dev/net/tun")
_TUN_MODE = 0o666
_TOOLS = {
    "ovs-vswitchd": "openvswitch-switch",
    "ovsdb-server": "openvswitch-switch",
    "ovsdb-tool": "openvswitch-common",
    "ovs-vsctl": "openvswitch-switch",
    "ethtool": "ethtool",
    "ip": "iproute2",
    "ping": "iputils-ping",
    "tc": "iproute2",
}
_DAEMON_TIMEOUT_S = 120

# <linux/sched.h>, <sys/mount.h>, <linux/prctl.h>, <asm-generic/siginfo.h>
_CLONE_NEWNS, _CLONE_NEWPID, _CLONE_NEWNET = 0x00020000, 0x20000000, 0x40000000
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC = 2, 4, 8
_MS_REC, _MS_PRIVATE = 1 << 14, 1 << 18
_PR_SET_PDEATHSIG = 1
_SI_KERNEL = 0x80
_FORWARDED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}

_libc = ctypes.CDLL(None, use_errno=True)


class SandboxError(RuntimeError):
    """The sandbox cannot be made here; the message says why and what would help."""


def inside() -> bool:
    """Whether this process runs in a sandbox."""
    return VARIABLE in os.environ and (Path(os.environ[VARIABLE]) / "ready").exists()


def work_dir() -> Path:
    """A directory in memory that ends with the sandbox. SandboxError outside of one."""
    if not inside():
        raise SandboxError(
            "not inside a sandbox: run it as `python -m mininet_labs.sandbox -- COMMAND` (as root)"
        )
    return Path(os.environ[VARIABLE])


def run(command: Sequence[str]) -> int:
    """Run `command` in a new sandbox; return its exit status, 128 + n where signal n ended it.

    For the last act of a process: the caller itself leaves its network behind. SandboxError
    where the sandbox cannot be made.
    """
    _check()
    alive_r, alive_w = os.pipe()
    try:
        _system("unshare", _CLONE_NEWNS | _CLONE_NEWPID | _CLONE_NEWNET)
    except OSError as error:
        raise SandboxError(
            f"cannot make private namespaces ({error.strerror}): a container needs CAP_SYS_ADMIN "
            "(docker run --privileged, or --cap-add SYS_ADMIN --cap-add NET_ADMIN "
            "--security-opt apparmor=unconfined --device /dev/net/tun)"
        ) from error
    signal.pthread_sigmask(signal.SIG_BLOCK, _FORWARDED | {signal.SIGCHLD})
    child = os.fork()
    if child == 0:
        os.close(alive_w)
        _first_process(command, alive_r)
    os.close(alive_r)
    return _attend(child)


def _check() -> None:
    if os.geteuid() != 0:
        raise SandboxError("needs root: private networks cannot be made otherwise; use sudo")
    missing = {package for tool, package in _TOOLS.items() if shutil.which(tool) is None}
    if missing:
        raise SandboxError(f"missing packages: apt-get install {' '.join(sorted(missing))}")
    if not _SCHEMA.exists():
        raise SandboxError(f"{_SCHEMA} is missing: apt-get install openvswitch-common")
    if not _TUN.exists():
        raise SandboxError(
            f"{_TUN} is missing, and Open vSwitch makes its bridges of it: "
            "`modprobe tun` on the machine, or start the container with --device /dev/net/tun"
        )
    if Path.cwd().is_relative_to("/run"):
        raise SandboxError(f"{Path.cwd()} is hidden inside, where /run is private: start elsewhere")


def _system(name: str, *arguments: object) -> None:
    """Call libc's `name`; OSError with its errno where it fails."""
    if getattr(_libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)


def _mount(kind: bytes, target: str, flags: int, data: bytes | None = None) -> None:
    _system("mount", kind, target.encode(), kind, ctypes.c_ulong(flags), data)


def _first_process(command: Sequence[str], alive: int) -> NoReturn:
    """The sandbox's process 1: set all up, run `command`, and take everything along at exit."""
    status = 1
    try:
        # Dies with its parent. A parent that died before this line has closed its pipe end.
        _system("prctl", _PR_SET_PDEATHSIG, int(signal.SIGKILL))
        if not select.select([alive], [], [], 0)[0]:
            _furnish()
            status = _attend(_spawn(command))
    except (SandboxError, OSError, subprocess.SubprocessError) as error:
        print(f"sandbox: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _spawn(command: Sequence[str]) -> int:
    child = os.fork()
    if child:
        return child
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _FORWARDED | {signal.SIGCHLD})
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        print(f"sandbox: cannot run {command[0]}: {error.strerror}", file=sys.stderr)
    finally:
        os._exit(127)


def _attend(child: int) -> int:
    """Wait for `child`, pass on signals, reap orphans; return the child's exit status."""
    while True:
        status = _reap(child)
        if status is not None:
            return status
        info = signal.sigwaitinfo(_FORWARDED | {signal.SIGCHLD})
        # What a terminal sends (SI_KERNEL), it has sent to the whole process group itself.
        if info.si_signo != signal.SIGCHLD and info.si_code != _SI_KERNEL:
            os.kill(child, info.si_signo)


def _reap(child: int) -> int | None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return None
        if pid == 0:
            return None
        if pid == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


def _furnish() -> None:
    """Make the private file systems, raise the loopback, start Open vSwitch."""
    _system("mount", None, b"/", None, ctypes.c_ulong(_MS_REC | _MS_PRIVATE), None)
    _mount(b"proc", "/proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
    _mount(b"tmpfs", "/run", _MS_NOSUID | _MS_NODEV, b"mode=755")
    # The system's database and logs are out of reach even of a tool with a default path.
    for directory in ("/etc/openvswitch", "/var/log/openvswitch"):
        if Path(directory).is_dir():
            _mount(b"tmpfs", directory, _MS_NOSUID | _MS_NODEV, b"mode=755")
    _open_tun()
    for path in (_WORK, _OVS_RUN, Path("/run/lock"), Path("/run/netns")):
        path.mkdir()
    os.environ[VARIABLE] = str(_WORK)
    for name in ("RUNDIR", "DBDIR", "LOGDIR"):
        os.environ[f"OVS_{name}"] = str(_OVS_RUN)
    _soften_limits()
    # Switch ports must not speak IPv6 of their own; guests have namespaces and rules apart.
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    _call("ip", "link", "set", "lo", "up")
    _start_openvswitch()
    (_WORK / "ready").touch()


def _open_tun() -> None:
    """Let programs of other users than root have taps, as udev does.

    Where no udev runs, as in a container, the machine's own node may be root's alone, and no
    guest of an unprivileged libvirt starts. That node is left as it is: a private one hides it.
    """
    there = _TUN.stat()
    if stat.S_IMODE(there.st_mode) & _TUN_MODE == _TUN_MODE:
        return
    _mount(b"tmpfs", str(_TUN.parent), _MS_NOSUID | _MS_NOEXEC, b"mode=755")
    os.mknod(_TUN, stat.S_IFCHR, there.st_rdev)
    _TUN.chmod(_TUN_MODE)  # whatever the umask


def _soften_limits() -> None:
    """Raise the limit of open files as far as allowed: a large fabric needs thousands."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _start_openvswitch() -> None:
    database, socket = _OVS_RUN / "conf.db", _OVS_RUN / "db.sock"
    _call("ovsdb-tool", "create", str(database), str(_SCHEMA))
    # With --detach a daemon's starter returns when the daemon is ready, or says why it is not.
    _call(
        "ovsdb-server",
        str(database),
        f"--remote=punix:{socket}",
        "--remote=db:Open_vSwitch,Open_vSwitch,manager_options",
        *_daemon_options("ovsdb-server"),
    )
    _call(
        *("ovs-vsctl", "--no-wait", f"--timeout={_DAEMON_TIMEOUT_S}", "init"),
        # One thread each is plenty for a lab, and many labs share few cores.
        *("--", "set", "Open_vSwitch", ".", "other_config:n-handler-threads=1"),
        "other_config:n-revalidator-threads=1",
        "external_ids:system-id=pleach-sandbox",
    )
    # Before everybody else, as Debian's own start script does it: a switch that waits for the
    # processor loses packets that no controller made it lose.
    switch = ("nice", "--adjustment=-10", "ovs-vswitchd", f"unix:{socket}", "--disable-system")
    # No tunnel of a lab looks for a route. Otherwise each change of a link has the daemon read all
    # links and addresses anew, before it turns to what the change means for packets.
    _call(*switch, "--disable-system-route", *_daemon_options("ovs-vswitchd"))
    _call("ovs-vsctl", f"--timeout={_DAEMON_TIMEOUT_S}", "show")


def _daemon_options(name: str) -> list[str]:
    return [
        "--no-chdir",
        "--detach",
        "-vconsole:emer",
        "-vsyslog:off",
        f"--pidfile={_OVS_RUN / name}.pid",
        f"--log-file={_OVS_RUN / name}.log",
    ]


def _call(*command: str) -> None:
    """Run a set-up command to its end; SandboxError with what it said where it fails."""
    # A session of its own: a Ctrl-C meant for the command must not end the switches first.
    result = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=_DAEMON_TIMEOUT_S,
        start_new_session=True,
        check=False,
    )
    if result.returncode != 0:
        raise SandboxError(
            f"`{' '.join(command)}` failed with {result.returncode}: {result.stdout.strip()}"
        )


def main(words: Sequence[str]) -> int:
    """`python -m mininet_labs.sandbox -- COMMAND...`; 125 where no sandbox could be made."""
    command = words[1:] if words[:1] == ["--"] else words
    if not command or (words[:1] != ["--"] and command[0].startswith("-")):
        print("usage: python -m mininet_labs.sandbox -- COMMAND [ARGUMENT]...", file=sys.stderr)
        return 2
    try:
        return run(command)
    except SandboxError as error:
        print(f"sandbox: {error}", file=sys.stderr)
        return 125


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
