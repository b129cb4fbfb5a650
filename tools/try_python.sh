#!/usr/bin/env bash
# Check this tree on another Python: that of another Debian release, in a root of its own. By hand, as root.
#
#   tools/try_python.sh trixie /var/tmp/trixie                       # Python 3.13: make check, the wheel, make test
#   tools/try_python.sh forky /var/tmp/forky wheel                   # Python 3.14: the wheel alone
#   tools/try_python.sh trixie /var/tmp/trixie run make test TEST_OPTIONS=tests/unit/test_packaging.py
#
# The root is made by debootstrap (apt-get install debootstrap) where there is none, and kept: later calls copy the
# tree anew and install only what changed. It takes about 25 GB, most of it PyTorch twice and pip's cache.
set -euo pipefail

usage="usage: $0 RELEASE ROOT [check|wheel|test … | run COMMAND…]"
release="${1:?$usage}"
root="$(realpath -m "${2:?$usage}")"
shift 2
[ $# -gt 0 ] || set -- check wheel test
tree="$(cd "$(dirname "$0")/.." && pwd)"
within=/src/embedpipe

make_root() {
    local packages=python3,python3-venv,python3-dev,gcc,g++,make,git,ca-certificates
    local script=/usr/share/debootstrap/scripts/$release
    # A release younger than this machine's debootstrap is made as the others are.
    [ -e "$script" ] || ln -s sid "$script"
    debootstrap --variant=minbase --include="$packages" "$release" "$root"
    touch "$root/.complete"
}

copy_tree() {
    # What git tracks or would track; environments and caches that earlier calls made there stay.
    mkdir -p "$root$within"
    git -C "$root$within" init --quiet
    (cd "$root$within" && git ls-files -z | xargs -0 --no-run-if-empty rm -f)
    (cd "$tree" && git ls-files -z --cached --others --exclude-standard | xargs -0 -I{} sh -c '[ ! -e "$1" ] || printf "%s\0" "$1"' _ {} |
        tar --create --null --files-from=-) | tar --extract --directory "$root$within"
    git -C "$root$within" add --all
    # How this machine reaches package indexes holds there, too.
    cp -L /etc/resolv.conf "$root/etc/resolv.conf"
    cp -L /etc/hosts "$root/etc/hosts"
    cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/ca-certificates.crt"
}

within_root() {
    env --unset=VIRTUAL_ENV --unset=PYTHONPATH HOME=/root PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
        chroot "$root" sh -c 'cd "$0" && exec "$@"' "$within" "$@"
}

[ -e "$root/.complete" ] || make_root
copy_tree
mounted=()
leave() { for ((i = ${#mounted[@]} - 1; i >= 0; i--)); do umount "$root/${mounted[i]}"; done; }
trap leave EXIT
for place in proc dev dev/shm; do
    mount --bind "/$place" "$root/$place"
    mounted+=("$place")
done

within_root python3 --version
while [ $# -gt 0 ]; do
    case "$1" in
        check | test) within_root make "$1" ;;
        wheel) within_root python3 tools/check_wheel.py ;;
        run) within_root "${@:2}"; break ;;
        *) echo "$usage" >&2; exit 2 ;;
    esac
    shift
done
