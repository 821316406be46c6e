#!/bin/sh
# Installs what the rig of real vsocks needs and the machine lacks. A second run finds all of it there and does nothing.
#
# From the machine's own Debian suite: QEMU, busybox (the init of a rig VM), kmod, and the peers the tests are made
# with. Only unpacked, never installed, into ${XDG_CACHE_HOME:-$HOME/.cache}/vsockfwd-rig:
#   linux/               a Debian kernel with its modules; this machine keeps booting its own
#   vhost-device-vsock/  the host side of a hybrid vsock, which Debian has in unstable only
# Which versions they are is written to the file `version` beside each. Delete the folder to get newer ones.
set -eu

cache="${XDG_CACHE_HOME:-$HOME/.cache}/vsockfwd-rig"
keyring=/usr/share/keyrings/debian-archive-keyring.gpg
[ "$(id -u)" = 0 ] && as_root="" || as_root=sudo

say() { echo "tests/vm/install.sh: $*" >&2; }

command -v apt-get >/dev/null && [ "$(dpkg --print-architecture)" = amd64 ] || {
    say "needs Debian (or a descendant) on amd64: the rig boots a Debian kernel under qemu-system-x86_64"
    exit 1
}

packages_missing() {
    for package in qemu-system-x86 busybox-static kmod iproute2 socat curl debian-archive-keyring; do
        [ "$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null)" = installed ] || echo "$package"
    done
    # Any of its flavours will do.
    command -v nginx >/dev/null || echo nginx-light
}

refresh_once() {
    [ -n "${refreshed:-}" ] || $as_root apt-get -q -o DPkg::Lock::Timeout=600 update >&2
    refreshed=yes
}

# unpack FOLDER PACKAGE [APT-OPTION…]: the newest PACKAGE's files under $cache/FOLDER, all or nothing.
unpack() {
    folder=$1 package=$2
    shift 2
    rm -rf "$cache/$folder.part"
    mkdir -p "$cache/$folder.part"
    (
        cd "$cache/$folder.part"
        apt-get -q "$@" -o APT::Sandbox::User=root download "$package" >&2
        dpkg-deb -f ./*.deb Package Version >version
        dpkg-deb -x ./*.deb .
        rm ./*.deb
    )
    rm -rf "${cache:?}/$folder"
    mv "$cache/$folder.part" "$cache/$folder"
}

install_kernel() {
    refresh_once
    # 6.12 where the suite has it besides its own. Not the -cloud flavour: that one lacks 9p.
    for meta in linux-image-6.12-amd64 linux-image-amd64; do
        kernel=$(apt-cache depends "$meta" 2>/dev/null | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
        [ -z "$kernel" ] || break
    done
    [ -n "$kernel" ] || { say "no linux-image-amd64 in this machine's apt sources"; exit 1; }
    say "fetching $kernel"
    unpack linux "$kernel"
    for modules in "$cache"/linux/lib/modules/* "$cache"/linux/usr/lib/modules/*; do
        [ ! -d "$modules" ] || depmod -b "${modules%/lib/modules/*}" "${modules##*/}"
    done
}

# The unstable suite is known to a private apt only, made from the address this machine already takes Debian from:
# the system's own lists never hear of it, so nothing else can come from there.
install_vhost_device_vsock() {
    refresh_once
    debian=$(apt-get indextargets --format '$(ORIGIN) $(LABEL) $(REPO_URI)' 'Created-By: Packages' |
        sed -n 's/^Debian Debian //p' | head -n 1)
    [ -n "$debian" ] || { say "no Debian among this machine's apt sources"; exit 1; }
    apt="$cache/apt"
    rm -rf "$apt"
    mkdir -p "$apt/lists/partial" "$apt/archives/partial"
    : >"$apt/status"
    echo "deb [signed-by=$keyring] $debian unstable main" >"$apt/sources.list"
    set -- -o "Dir::Etc::sourcelist=$apt/sources.list" -o Dir::Etc::sourceparts=- -o Dir::Etc::preferencesparts=/dev/null \
        -o "Dir::State::lists=$apt/lists" -o "Dir::State::status=$apt/status" -o "Dir::Cache=$apt" \
        -o Acquire::Languages=none -o Acquire::IndexTargets::deb::Contents-deb::DefaultEnabled=false \
        -o APT::Sandbox::User=root
    say "fetching vhost-device-vsock"
    apt-get -q "$@" update >&2
    unpack vhost-device-vsock vhost-device-vsock "$@"
    rm -rf "$apt"
    # It was built against a newer suite than this machine's, and so far needs nothing of it.
    "$cache/vhost-device-vsock/usr/bin/vhost-device-vsock" --version >&2 || {
        rm "$cache/vhost-device-vsock/version"
        say "vhost-device-vsock of unstable does not run here: no hybrid level"
        exit 1
    }
}

mkdir -p "$cache"
missing=$(packages_missing)
if [ -n "$missing" ]; then
    # shellcheck disable=SC2086  # a list of words
    set -- $missing
    say "installing $*"
    refresh_once
    # RUNLEVEL keeps nginx from being started as a service.
    $as_root env DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
        apt-get -q -y --no-install-recommends -o DPkg::Lock::Timeout=600 install "$@" >&2
fi
[ -e "$cache/linux/version" ] || install_kernel
[ -e "$cache/vhost-device-vsock/version" ] || install_vhost_device_vsock
