#!/bin/sh
# A `protoc` for build scripts, so that a fresh machine needs none. etcd-client's is the only one that asks, always for the same
# files: it gets their descriptors as they are in tools/descriptors, which a test compares with what protox makes of the
# files (and writes anew). Whoever else asks gets a protoc that is compiled on first use from tools/protoc, in a target
# directory of its own, because the caller's is locked while build scripts run; that takes longer than half of SEKS.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
known="$here/descriptors/${CARGO_PKG_NAME:-none}-${CARGO_PKG_VERSION:-0}.bin"
if [ -f "$known" ]; then
  while [ $# -gt 0 ]; do
    case "$1" in
    -o) exec cp "$known" "$2" ;;
    --version) exec echo "libprotoc 3.21.12" ;;
    esac
    shift
  done
  exit 2
fi
bin="$here/protoc/target/release/protoc"
[ -x "$bin" ] || env -u CARGO_TARGET_DIR -u CARGO_BUILD_TARGET -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u RUSTC_WORKSPACE_WRAPPER -u RUSTC_WRAPPER \
  "${CARGO:-cargo}" build -q --locked --release --manifest-path "$here/protoc/Cargo.toml" --target-dir "$here/protoc/target" >&2
exec "$bin" "$@"
