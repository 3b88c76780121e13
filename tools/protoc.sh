#!/bin/sh
# A `protoc` for build scripts, compiled on first use from tools/protoc. It has a target directory of its own, because
# the caller's is locked while build scripts run. Several build scripts may get here at once: cargo's lock serialises them.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
bin="$here/protoc/target/release/protoc"
[ -x "$bin" ] || env -u CARGO_TARGET_DIR -u CARGO_BUILD_TARGET -u RUSTFLAGS -u CARGO_ENCODED_RUSTFLAGS -u RUSTC_WORKSPACE_WRAPPER -u RUSTC_WRAPPER \
  "${CARGO:-cargo}" build -q --locked --release --manifest-path "$here/protoc/Cargo.toml" --target-dir "$here/protoc/target" >&2
exec "$bin" "$@"
