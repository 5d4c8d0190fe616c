#!/usr/bin/env bash
# Sets up the environment of this checkout on Debian 12: the Debian packages of system-packages.txt, a virtual
# environment of the system's own python3, the Python packages of pyproject.toml in the versions of constraints.txt.
#
#   setup.sh run     what the hotplane command needs
#   setup.sh test    that and what the tests need
#
#   setup.sh requirements   prints the Python packages of `run`, a line each, and sets nothing up
#
# Safe to call at any time and several times at once: an up-to-date environment is left as it is, a half-made one is
# completed. Everything it says goes to stderr. Exit 0: ready; 1: a sentence says what is in the way.
set -u -o pipefail
export LC_ALL=C.UTF-8

what=${1:-}
root=$(readlink -f -- "${BASH_SOURCE[0]}") && root=${root%/ctl/setup.sh} || exit 1
venv=$root/.venv
python=/usr/bin/python3 # by full path: bcc and nftables belong to it, another python3 may stand before it in PATH

say() { printf 'hotplane: %s\n' "$*" >&2; }

die() {
    say "$*"
    exit 1
}

python_requirements() {
    "$python" -I - "$what" "$root/pyproject.toml" <<'PYTHON'
import sys
import tomllib

with open(sys.argv[2], "rb") as file:
    project = tomllib.load(file)["project"]
extras = project["optional-dependencies"]
wanted = project["dependencies"] + extras["bench"] + (extras["test"] if sys.argv[1] == "test" else [])
print("\n".join(wanted))
PYTHON
}

case $what in
    run | test) ;;
    requirements)
        python_requirements
        exit
        ;;
    *) die "'$what' is not known: setup.sh run, test, or requirements" ;;
esac

# One set-up at a time; the others wait here and then find it done. The lock is on the folder itself, so that no
# lock file is left, and is not handed to children (-o): a service that apt starts must not keep it.
if [[ ${2:-} != locked ]]; then
    command -v flock >/dev/null || die "flock is missing: install util-linux"
    exec flock -o -- "$root" bash -- "${BASH_SOURCE[0]}" "$what" locked
fi

key=$(cat -- "$root/pyproject.toml" "$root/constraints.txt" "$root/system-packages.txt" <(printf '%s' "$root") | sha256sum) || exit 1
key=${key%% *}

stamped() { [[ -r $venv/.stamp-$1 && $(<"$venv/.stamp-$1") == "$key" ]]; }

stamped "$what" && [[ -x $venv/bin/python ]] && exit 0

log=$(mktemp -t hotplane-setup.XXXXXX) || exit 1
trap 'rm -f -- "$log"' EXIT

# Run a command quietly; when it fails show the end of what it said, then give up with the sentence in $1.
try() {
    local sentence=$1
    shift
    "$@" >"$log" 2>&1 </dev/null && return
    tail -n 8 -- "$log" | sed 's/^/    /' >&2
    die "$sentence"
}

# Downloads use the network of process 1 where it can be had: the namespace that hotplane was called in may lead nowhere.
online=()
if [[ $(readlink /proc/self/ns/net) != "$(readlink /proc/1/ns/net)" ]] &&
    nsenter --net=/proc/1/ns/net -- true 2>/dev/null; then
    online=(nsenter --net=/proc/1/ns/net --)
fi

wanted_packages() {
    if [[ $what == test ]]; then
        sed -E 's/#.*//; s/^test://' -- "$root/system-packages.txt"
    else
        sed -E 's/#.*//; /^test:/d' -- "$root/system-packages.txt"
    fi | xargs -n1
}

missing_packages() {
    local package
    wanted_packages | while read -r package; do
        [[ $(dpkg-query -W -f '${db:Status-Status}' -- "$package" 2>/dev/null) == installed ]] || echo "$package"
    done
}

install_packages() {
    local missing
    command -v apt-get >/dev/null && command -v dpkg-query >/dev/null ||
        die "this is not Debian (no apt-get): hotplane sets itself up on Debian 12"
    mapfile -t missing < <(missing_packages)
    ((${#missing[@]})) || return 0
    ((EUID == 0)) || die "these Debian packages are missing: ${missing[*]}; call hotplane once as root to install them"
    say "installing Debian packages: ${missing[*]}"
    export DEBIAN_FRONTEND=noninteractive
    try "apt-get update failed (its last lines stand above); the first use needs a network" \
        "${online[@]}" apt-get -q update
    try "apt-get install ${missing[*]} failed (its last lines stand above); the first use needs a network" \
        "${online[@]}" apt-get -q -y -o DPkg::Lock::Timeout=300 install --no-install-recommends "${missing[@]}"
}

make_environment() {
    local site requirements
    [[ -x $python ]] || die "$python is missing: apt-get install python3"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        die "$python is older than 3.11: hotplane sets itself up on Debian 12"
    if ! "$venv/bin/python" -I -m pip --version >/dev/null 2>&1; then
        say "making the virtual environment"
        try "making the virtual environment $venv failed (the last lines stand above)" \
            "$python" -m venv --clear --system-site-packages "$venv"
    fi
    requirements=$(python_requirements) || die "cannot read the dependencies in $root/pyproject.toml"
    mapfile -t requirements <<<"$requirements"
    say "installing Python packages"
    try "pip install failed (its last lines stand above); the first use needs a network" \
        "${online[@]}" "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
        --constraint "$root/constraints.txt" "${requirements[@]}"
    site=$("$venv/bin/python" -I -c 'import sysconfig; print(sysconfig.get_path("purelib"))') || exit 1
    printf '%s\n' "$root" >"$site/hotplane.pth"
}

# Renamed into place: a reader sees a whole stamp or none.
stamp() {
    printf '%s\n' "$key" >"$venv/.stamp-$1.new" && mv -- "$venv/.stamp-$1.new" "$venv/.stamp-$1"
}

[[ -w $root ]] || die "cannot write to $root: call hotplane once as the owner of the checkout, or as root"
unset PYTHONPATH PYTHONHOME
cd / || exit 1
say "setting up, once"
install_packages
make_environment
stamp run || exit 1
[[ $what == run ]] || stamp test || exit 1
say "ready after $SECONDS s"
