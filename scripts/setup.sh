#!/usr/bin/env bash
# Makes this tree ready to run: Debian's packages, then the virtual environment .venv, and
# where it is asked for .venv-ryu, in which the southbound process runs under Ryu.
#
#   scripts/setup.sh code    what linters and tests without switches need
#   scripts/setup.sh ryu     and Ryu
#   scripts/setup.sh labs    what `code` makes, with Open vSwitch and Mininet (root)
#   scripts/setup.sh all     everything (root)
#
# Says nothing and returns at once where all is there already.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
root=$(pwd -P)
group=${1:-all}
python=/usr/bin/python3
log=.build/apt.log

code_packages=(
    python3
    python3-venv
    python3-openvswitch # os-ken's requirement `ovs`, of the release of Debian's switch
    util-linux          # unshare: tests with a file system of their own
    mount
    git                 # to see which files a run left in the tree
    postgresql          # the store on its other engine: tests start a server of their own
    victoria-metrics    # the history on its other engine: the same
    prometheus          # what the agent reads of others: the same
    python3-libvirt     # what the agent asks hypervisors by; has libvirt's test driver, too
)
labs_packages=(
    openvswitch-switch
    mininet
    iproute2 # ip, tc, ss
    iputils-ping
    ethtool
    procps
    udhcpc # a real DHCP client for the tests
    # Servers and clients whose traffic is to be recognised.
    bind9-dnsutils
    curl
    dnsmasq-base
    iperf3
    mosquitto
    nginx
    openssh-client
    openssh-server
    redis-server
    redis-tools
    # Hypervisors of which agents tell.
    libvirt-daemon
    libvirt-daemon-driver-qemu
    qemu-system-x86
)

say() { printf 'setup: %s\n' "$*" >&2; }
die() {
    say "$@"
    exit 1
}

# ---- Debian's packages

policy=/usr/sbin/policy-rc.d
policy_mark='written by the set-up of Pleach'

remove_our_policy() {
    if grep -qs "$policy_mark" "$policy"; then rm -f "$policy"; fi
}

# Packages that bring a service must not start it: labs run switches of their own. An
# existing policy is the operator's word, and stays. One of ours is there only where an
# earlier set-up was killed; it goes with the trap.
deny_services() {
    trap remove_our_policy EXIT
    if [[ ! -e $policy ]]; then
        printf '#!/bin/sh\n# %s; removed at its end\nexit 101\n' "$policy_mark" >"$policy"
        chmod 755 "$policy"
    fi
}

missing_packages() {
    local package
    for package in "${packages[@]}"; do
        if [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) != installed ]]; then
            printf '%s ' "$package"
        fi
    done
}

apt() {
    DEBIAN_FRONTEND=noninteractive NEEDRESTART_SUSPEND=1 apt-get \
        -o Acquire::Retries=5 -o Acquire::http::Timeout=60 -o Acquire::https::Timeout=60 \
        -o DPkg::Lock::Timeout=600 -o Dpkg::Use-Pty=0 \
        -o Dpkg::Options::=--force-confdef -o Dpkg::Options::=--force-confold \
        -qq "$@" </dev/null >>"$log" 2>&1
}

install_packages() {
    local attempt
    mkdir -p .build
    : >"$log"
    deny_services
    for attempt in 1 2 3; do
        # An old list of packages names files that the mirrors no longer have.
        if apt update && apt install --no-install-recommends "$@"; then
            remove_our_policy
            return
        fi
        tail -n 20 "$log" >&2
        say "attempt $attempt of 3 to install Debian's packages failed; all of it is in $log"
        sleep $((attempt * 5))
    done
    die "apt-get could not install: $* (its own words are above)"
}

ensure_packages() {
    local missing
    command -v dpkg-query >/dev/null && command -v apt-get >/dev/null ||
        die "this is no Debian. Pleach is set up by itself on Debian 12 and later only;" \
            "install by hand what these packages hold: ${packages[*]}"
    missing=$(missing_packages)
    if [[ -z $missing ]]; then return; fi
    if ((EUID != 0)); then
        die "packages are missing, and only root can install them:" \
            "sudo apt-get install --no-install-recommends $missing"
    fi
    say "installing Debian's packages: $missing"
    # shellcheck disable=SC2086 # a list of words
    install_packages $missing
}

ensure_python() {
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is $("$python" -V 2>&1); Pleach needs Python 3.11 or later, as Debian 12 has it." \
            "Another Python does not see Debian's Mininet."
}

# ---- the virtual environments

# Let what follows be about one of the environments, `venv`.
choose() {
    venv=$1
    stamp=.build/environment${venv#.venv}
    fingerprint=$(key | sha256sum | cut -d ' ' -f 1)
}

# An environment sees three packages of Debian's Python, and no other: whatever else the system
# has there would be mixed with what is pinned (its OpenSSL, say, with another cryptography).
debian_packages=/usr/lib/python3/dist-packages

site() { "$venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))'; }

link_debian_packages() {
    local to path
    to=$(site)
    for path in "$debian_packages"/{mininet,ovs,libvirt.py} "$debian_packages"/ovs-*-info \
        "$debian_packages"/libvirtmod.*.so; do
        ln -sfn "$path" "$to/${path##*/}"
    done
}

# What it was made from; the path, because its scripts and its link to this tree hold it.
key() {
    printf '%s\n' "$root" "$("$python" -V)"
    case $venv in
    .venv) cat constraints.txt pyproject.toml scripts/setup.sh ;;
    .venv-ryu) cat constraints-ryu.txt scripts/setup.sh ;;
    esac
}

check() { "$venv/bin/python" -I scripts/check_environment.py "$@"; }

is_ready() {
    [[ -x $venv/bin/python && -f $stamp && $(<"$stamp") == "$fingerprint" ]] && check >/dev/null 2>&1
}

pip_install() {
    local attempt
    for attempt in 1 2 3; do
        if PIP_USER=0 PIP_REQUIRE_VIRTUALENV=0 "$venv/bin/python" -m pip install \
            --quiet --no-input --disable-pip-version-check --progress-bar off \
            --retries 10 --timeout 60 --prefer-binary "$@" \
            </dev/null >&2; then
            return
        fi
        say "attempt $attempt of 3 to install Python packages failed"
        sleep $((attempt * 5))
    done
    return 1
}

# What is built, is built with the pinned setuptools of the environment: no build fetches another.
fill() {
    link_debian_packages
    case $venv in
    .venv)
        pip_install --constraint constraints.txt setuptools &&
            pip_install --constraint constraints.txt --no-build-isolation --editable '.[dev]'
        ;;
    .venv-ryu)
        pip_install --constraint constraints-ryu.txt setuptools wheel pbr &&
            pip_install --no-build-isolation --use-pep517 --no-deps \
                --requirement constraints-ryu.txt &&
            "$venv/bin/python" -m pip --disable-pip-version-check check >&2 &&
            printf '%s\n' "$root" >"$(site)/pleach.pth" # what Pleach requires is not all there
        ;;
    esac && check >&2
}

build_environment() {
    say "making $venv with $("$python" -V); pip fetches dozens of packages, which can take minutes"
    rm -rf "$venv"
    "$python" -m venv "$venv"
    fill || die "the virtual environment could not be made; pip's own words are above." \
        "Nothing is lost: run it again when the package index can be reached."
}

ensure_environment() {
    choose "$1"
    if is_ready; then return; fi
    mkdir -p .build
    exec 9>.build/lock
    flock 9
    if is_ready; then return; fi # made meanwhile, by a set-up at the same time
    rm -f "$stamp"
    if [[ -e $venv ]]; then
        if ! check --shell >&2; then
            build_environment
        else
            say "bringing $venv up to date"
            fill || build_environment
        fi
    else
        build_environment
    fi
    printf '%s\n' "$fingerprint" >"$stamp"
    say "$venv is ready"
}

# ----

unset PYTHONPATH PYTHONHOME PYTHONSTARTUP VIRTUAL_ENV
export PATH=/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin:$PATH

environments=(.venv)
case $group in
code) packages=("${code_packages[@]}") ;;
ryu)
    packages=("${code_packages[@]}")
    environments+=(.venv-ryu)
    ;;
labs | all)
    packages=("${code_packages[@]}" "${labs_packages[@]}")
    if ((EUID != 0)); then
        die "needs root: labs make network namespaces and run switches in them. Use sudo." \
            "Without root there are \`make unit\` and \`make lint\`."
    fi
    if [[ $group == all ]]; then environments+=(.venv-ryu); fi
    ;;
*) die "usage: scripts/setup.sh code|ryu|labs|all" ;;
esac

ensure_packages
ensure_python
for environment in "${environments[@]}"; do
    ensure_environment "$environment"
done
