# Shared by tests/setup, tests/run and boards/qemu-virt/run; sourced, never run.
# Fixes where things are, and calls cargo with the toolchain that tests/setup found.

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
TARGET=aarch64-unknown-none-softfloat
BOARD_PACKAGE=ironthread-qemu-virt
TARGET_DIR=${CARGO_TARGET_DIR:-$ROOT/target}
# The control build is a workspace of its own and would build elsewhere.
export CARGO_TARGET_DIR=$TARGET_DIR
TOOLCHAIN_ENV=$TARGET_DIR/toolchain.env

# rustup puts cargo here; a shell that is no login shell may not have it on its path.
if ! command -v cargo >/dev/null 2>&1 && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
    PATH=${CARGO_HOME:-$HOME/.cargo}/bin:$PATH
fi
# mke2fs, e2fsck and ip live where only root's path looks.
PATH=$PATH:/usr/sbin:/sbin

# Reads what tests/setup found out about the compiler: IRONTHREAD_RUST_BIN (a folder that goes
# before PATH, or nothing) and IRONTHREAD_BUILD_STD (set when the library must be built here).
load_toolchain() {
    IRONTHREAD_RUST_BIN= IRONTHREAD_BUILD_STD=
    if [ -f "$TOOLCHAIN_ENV" ]; then
        # shellcheck disable=SC1090
        . "$TOOLCHAIN_ENV"
    fi
    if [ -n "$IRONTHREAD_RUST_BIN" ]; then
        PATH=$IRONTHREAD_RUST_BIN:$PATH
        unset RUSTUP_TOOLCHAIN
    fi
    export PATH IRONTHREAD_BUILD_STD
}

# target_cargo SUBCOMMAND [ARGS…]: cargo for the firmware's target.
target_cargo() {
    local subcommand=$1
    shift
    if [ -n "$IRONTHREAD_BUILD_STD" ]; then
        RUSTC_BOOTSTRAP=1 cargo -Zbuild-std=core,compiler_builtins -Zbuild-std-features=compiler-builtins-mem \
            "$subcommand" --target "$TARGET" "$@"
    else
        cargo "$subcommand" --target "$TARGET" "$@"
    fi
}

# Builds the board's release image; the ELF is then at $BOARD_ELF.
BOARD_ELF=$TARGET_DIR/$TARGET/release/$BOARD_PACKAGE
build_board() {
    (cd "$ROOT" && target_cargo build --release --locked -p "$BOARD_PACKAGE" "$@")
}

say() { printf '%s\n' "$*"; }
complain() { printf '%s\n' "$*" >&2; }
