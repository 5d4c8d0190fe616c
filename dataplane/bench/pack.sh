#!/bin/sh
# Runs hotplane's benchmark from the file system beside this script (root/), on a machine that needs neither a network
# nor packages: root, Linux 5.18 or later with user tools mount, unshare and chroot.
#
#   ./run                             all modes side by side, about three minutes; leaves results.json beside this script
#   ./run --profile full              the options of `hotplane bench`; ./run --help names them
#   ./run report results.json         its actions too: the page goes to bench-report/
#   DRY_RUN=1 ./run                   says what would be done
#
# Mounts are in a mount namespace that only this run sees: they go with its last process, however that ends.
set -eu

here=$(cd -- "$(dirname -- "$0")" && pwd -P)
root=$here/root
bin=/opt/hotplane/.venv/bin/python

die() {
    echo "run: $*" >&2
    exit 1
}

doing() {
    if [ -n "${DRY_RUN:-}" ]; then
        echo "$*"
    else
        "$@"
    fi
}

[ -d "$root/opt/hotplane" ] || die "$root is missing: unpack the whole archive"
if [ -z "${DRY_RUN:-}" ]; then
    [ "$(id -u)" = 0 ] || die "needs root, for namespaces and mounts"
    [ -w "$here" ] || die "cannot write to $here, where results.json goes"
    if [ -z "${HOTPLANE_PACKED:-}" ]; then
        command -v unshare >/dev/null || die "unshare is missing: install util-linux"
        HOTPLANE_PACKED=1 exec unshare --mount --propagation private -- sh -- "$here/run" "$@"
    fi
else
    echo unshare --mount --propagation private
fi

for folder in proc sys dev run tmp results; do
    doing mkdir -p -- "$root/$folder"
done
doing mount --rbind /proc "$root/proc"
doing mount --rbind /sys "$root/sys"
doing mount --rbind /dev "$root/dev"
doing mount -t tmpfs -o mode=755 tmpfs "$root/run"
doing mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
doing mount -t cgroup2 cgroup2 "$root/sys/fs/cgroup"
doing mount -t bpf bpf "$root/sys/fs/bpf"
doing mount --bind "$here" "$root/results"

doing exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 TERM="${TERM:-dumb}" \
    chroot "$root" /bin/sh -c 'cd /results && exec "$@"' sh \
    "$bin" -P -m ctl.main bench --results results.json "$@"
