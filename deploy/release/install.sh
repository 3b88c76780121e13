#!/bin/sh
# Installs SEKS from a release: verifies first, and changes nothing if anything is wrong.
#
#   install.sh [--version V] [--prefix DIR] [--from URL_OR_DIR] [--only-cli]
#
# DIR is /usr/local for root, and ~/.local for others. --from names where the files of a release are, for a mirror or without a
# network. What is checked: the archive's SHA-256 in the release's SHA256SUMS. Where `gh` is installed and the release is GitHub's, also
# the attestation that its workflow built the archive.
set -eu

repository=${SEKS_REPOSITORY:-seks/seks}
version='' prefix='' from='' only_cli=''

fail() {
    echo "install.sh: $1" >&2
    exit 1
}
while [ $# -gt 0 ]; do
    case $1 in
    --version | --prefix | --from)
        [ $# -ge 2 ] || fail "$1 needs a value"
        case $1 in --version) version=$2 ;; --prefix) prefix=$2 ;; --from) from=$2 ;; esac
        shift 2
        ;;
    --only-cli) only_cli=1 && shift ;;
    -h | --help) sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    *) fail "$1 is unknown; see --help" ;;
    esac
done
[ "$(uname -s)" = Linux ] || fail "this script installs on Linux; on macOS: brew install seks"
arch=$(uname -m)
case $arch in x86_64 | aarch64) ;; arm64) arch=aarch64 ;; *) fail "there is no release for $arch" ;; esac
if [ -z "$prefix" ]; then
    if [ "$(id -u)" = 0 ]; then prefix=/usr/local; else prefix=$HOME/.local; fi
fi
attested=''
if [ -z "$from" ]; then
    attested=1
    from=https://github.com/$repository/releases/latest/download
    [ -z "$version" ] || from=https://github.com/$repository/releases/download/v$version
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
trap 'exit 1' HUP INT TERM
get() {
    case $from in
    http://*) fail "$from is not encrypted: use https" ;;
    https://*)
        if command -v curl >/dev/null; then
            curl --fail --silent --show-error --location --proto '=https' --tlsv1.2 --output "$work/$1" "$from/$1"
        else
            wget --quiet --output-document "$work/$1" "$from/$1"
        fi
        ;;
    *) cp "$from/$1" "$work/$1" ;;
    esac || fail "cannot get $1 from $from"
}

get SHA256SUMS
wanted=seks-${version:-.*}-linux-$arch.tar.gz
line=$(grep -E "^[0-9a-f]{64}  $(printf %s "$wanted" | sed 's/\.tar/\\.tar/')\$" "$work/SHA256SUMS" || true)
[ "$(printf '%s\n' "$line" | grep -c .)" = 1 ] || fail "SHA256SUMS of $from does not name one archive for $arch"
archive=${line#*  }
get "$archive"
printf '%s\n' "$line" >"$work/line"
(cd "$work" && sha256sum -c --status line) || fail "$archive is not what SHA256SUMS says: nothing was installed"
if [ -n "$attested" ] && command -v gh >/dev/null; then
    gh attestation verify "$work/$archive" --repo "$repository" >/dev/null || fail "$archive has no attestation of $repository: nothing was installed"
fi

tar -xzf "$work/$archive" -C "$work"
folder=$work/${archive%.tar.gz}
programs='seks seks-control-plane seks-data-plane'
[ -z "$only_cli" ] || programs=seks
for program in $programs; do
    "$folder/$program" --version >/dev/null || fail "$program does not run on this machine (glibc 2.34 or later is needed): nothing was installed"
done
mkdir -p "$prefix/bin"
for program in $programs; do
    # A running program is replaced, not written to.
    cp "$folder/$program" "$prefix/bin/.$program.new"
    chmod 0755 "$prefix/bin/.$program.new"
    mv -f "$prefix/bin/.$program.new" "$prefix/bin/$program"
done
if [ -z "$only_cli" ]; then
    mkdir -p "$prefix/share/seks"
    rm -rf "$prefix/share/seks/deploy"
    cp -r "$folder/deploy" "$prefix/share/seks/deploy"
fi
echo "installed $("$prefix/bin/seks" --version) in $prefix/bin"
case :$PATH: in *:"$prefix/bin":*) ;; *) echo "add $prefix/bin to your PATH" ;; esac
echo "next: seks dev --demo"
