#!/bin/sh
# Installs curtail into an environment of its own, runs its demo, or sets up .venv and runs the tests.
# Nothing happens until the last line, so that a truncated copy does nothing.
# What this script says goes to stderr; stdout belongs to the command it runs.
# A killed run is safe: the receipt names every folder before it is made, and names the environment
# that counts only when that is complete. See docs/decisions/023-installer.md.
# shellcheck disable=SC2086 # SOURCES, EDITABLE and the like are lists of plain words
set -eu

UV_MIN=0.8.0
UV_PIN=0.13.9
PYTHON_RANGE='>=3.11,<3.14'
RUST_MIN=1.85

usage() {
    cat <<'TEXT'
Usage: ./install.sh [OPTIONS] [COMMAND] [ARGS]

Commands:
  install              install or update the command `curtail` (the default)
  demo [ARGS]          install if needed, then run `curtail demo ARGS`
  setup                make or update .venv here, for development
  test [PYTEST ARGS]   setup, then every check and test; with arguments only pytest ARGS
  uninstall            remove what install made, and nothing else

Options (before the command; after it for install, setup and uninstall too):
  --prefix FOLDER      where the environment goes [CURTAIL_PREFIX;
                       ${XDG_DATA_HOME:-~/.local/share}/curtail]
  --bin-dir FOLDER     where the command is linked [CURTAIL_BIN_DIR; ~/.local/bin]
  --python PYTHON      the Python to use, 3.11 to 3.13 [CURTAIL_PYTHON; the first that uv finds]
  --dry-run            print each action, do nothing
  --help               show this

Needs Rust (cargo) and a C linker; no root. Proxies, mirrors and certificates are
taken from the settings of uv and pip. Exit codes: 0 done, 1 failed, 2 wrong usage;
demo and test pass on those of the command they run.
TEXT
}

say() { printf 'curtail: %s\n' "$*" >&2; }
die() {
    say "$*"
    exit 1
}

wrong_usage() {
    say "$*"
    usage >&2
    exit 2
}

have() { command -v "$1" >/dev/null 2>&1; }
dry() { [ "$DRY_RUN" = yes ]; }

# Does an action, its stdout kept out of ours; in a dry run prints it.
act() { if dry; then printf 'would run: %s\n' "$*"; else "$@" >&2; fi; }

# version_ge 1.85.0 1.83: is the first at least the second? Up to three numbers.
version_ge() {
    left=$1. right=$2.
    for _ in 1 2 3; do
        a=${left%%.*} b=${right%%.*} left=${left#*.} right=${right#*.}
        a=${a%%[!0-9]*} b=${b%%[!0-9]*}
        [ "${a:-0}" -eq "${b:-0}" ] || { [ "${a:-0}" -gt "${b:-0}" ]; return; }
    done
}

# Digest of the files under the given paths (relative to the repository), without built things.
digest_of() {
    cd "$ROOT"
    find "$@" -type d \( -name target -o -name __pycache__ \) -prune -o \
        -type f ! -name '*.so' ! -name '*.pyc' -print | LC_ALL=C sort |
        while IFS= read -r file; do printf '%s\n' "$file" && cat "$file"; done |
        if have sha256sum; then sha256sum; elif have shasum; then shasum -a 256; else cksum; fi | cut -d' ' -f1
}

# ---- one at a time: the lock is a symbolic link whose target names its holder, so made in one step ----

hold() {
    ! dry || return 0
    lock=$PREFIX/.lock told=no tries=0 here=$(uname -n)
    [ -d "$PREFIX" ] || mkdir -p "$PREFIX" 2>/dev/null || die "cannot make $PREFIX: check its permissions or choose another --prefix"
    while ! ln -s "$here:$$" "$lock" 2>/dev/null; do
        if ! holder=$(readlink "$lock" 2>/dev/null); then # released just now, or never there
            tries=$((tries + 1))
            [ "$tries" -lt 9 ] || die "cannot write in $PREFIX: check its permissions and the space left there"
        elif [ "${holder%:*}" = "$here" ] && ! kill -0 "${holder##*:}" 2>/dev/null; then
            rm -f "$lock" # its holder was killed
        else
            [ "$told" = yes ] || say "another install.sh is at work ($holder); waiting (if it is long gone: rm '$lock')"
            told=yes
            sleep 1
        fi
    done
    HELD=$lock
}

release() {
    [ -z "$HELD" ] || rm -f "$HELD"
    HELD=
}

# ---- the receipt: what is ours, and which environment is complete ----

field() { sed -n "s/^$1=//p" "$RECEIPT" 2>/dev/null || true; }

load_receipt() {
    R_ENV=$(field env) R_UV=$(field uv) R_LINK=$(field link) R_LOCK=$(field lock) R_SOURCES=$(field sources)
    # Only plain names of the two kinds that are made here, whatever somebody wrote into it.
    R_OWN=$(field own | grep -x -e 'env-[0-9a-z-]*' -e 'uv-[0-9]*' | sort -u) || true
}

save_receipt() {
    ! dry || return 0
    {
        printf 'made by install.sh of curtail; uninstall with: install.sh uninstall\n'
        printf '%s\n' "env=$R_ENV" "uv=$R_UV" "link=$R_LINK" "lock=$R_LOCK" "sources=$R_SOURCES"
        for name in $R_OWN; do printf 'own=%s\n' "$name"; done
    } >"$RECEIPT.new"
    mv -f "$RECEIPT.new" "$RECEIPT"
}

# Writes down that $PREFIX/NAME is ours, then empties the place. Names carry the number of the run: what a
# killed run left may still be written to by the programs it had started.
claim() {
    ! dry || return 0
    if printf '%s\n' $R_OWN | grep -Fqx -e "$1"; then rm -rf "${PREFIX:?}/$1"; fi
    [ ! -e "$PREFIX/$1" ] || die "$PREFIX/$1 exists and is not ours: move it, or choose another --prefix"
    R_OWN="$R_OWN
$1"
    save_receipt
}

drop_old() {
    keep=
    for name in $R_OWN; do
        case $name in "$R_ENV" | "$R_UV") ;; *) rm -rf "${PREFIX:?}/$name" && continue ;; esac
        keep="$keep $name" # in use, or it could not be deleted
    done
    R_OWN=$keep
    save_receipt
}

python_of() { "$1" -c 'import sys; print(sys.implementation.name, sys.version_info[:3])' 2>/dev/null; }

# Does the environment run, with the Python that --python asks for?
env_works() {
    [ -n "$R_ENV" ] && version=$(python_of "$PREFIX/$R_ENV/bin/python") &&
        { [ -z "$PYTHON" ] || [ "$version" = "$(python_of "$PYTHON")" ]; }
}

up_to_date() {
    [ "$R_LOCK" = "$LOCK_NOW" ] && [ "$R_SOURCES" = "$SOURCES_NOW" ] && env_works &&
        [ -x "$PREFIX/$R_ENV/bin/curtail" ] && "$PREFIX/$R_ENV/bin/python" -P -c 'import rustbpe._rustbpe' 2>/dev/null
}

# ---- what must be there ----

rust_help() {
    say "$1"
    cat >&2 <<TEXT
The tokenizer trainer is a Rust extension that is built here. Install Rust $RUST_MIN or newer
in one of these ways, then run this again:
  any system      the installer shown on rustup.rs (no root needed), or 'rustup update' if you have it
  Debian, Ubuntu  apt install rustup && rustup default stable
  Fedora          dnf install rust cargo
  Arch            pacman -S rust
  macOS           brew install rust
Nothing was installed.
TEXT
    exit 1
}

need_rust() {
    wanted=$(sed -n 's/^rust-version *= *"\([0-9.]*\)".*/\1/p' "$ROOT/rustbpe/Cargo.toml" 2>/dev/null)
    RUST_MIN=${wanted:-$RUST_MIN} cargo_bin=${CARGO_HOME:-$HOME/.cargo}/bin
    have cargo || export PATH="$cargo_bin:$PATH"
    have cargo || rust_help "Rust is missing: there is no cargo on PATH or in $cargo_bin"
    found=$(cd "$ROOT" && cargo --version 2>/dev/null | cut -d' ' -f2) || found=
    [ -n "$found" ] || rust_help "cargo is there but does not run (with rustup: 'rustup default stable')"
    version_ge "$found" "$RUST_MIN" || rust_help "Rust is too old: cargo $found, needed is $RUST_MIN or newer"
    have cc || have gcc || have clang || die "no C linker (cc): install gcc or clang, e.g. the package" \
        "build-essential (Debian, Ubuntu), gcc (Fedora) or the Xcode command line tools (macOS); nothing was installed"
}

no_python() {
    die "no CPython 3.11, 3.12 or 3.13 found: install one (package python3.12 or python3, or 'uv python install 3.12')" \
        "or name it with --python; then run this again"
}

check_python() {
    [ -n "$PYTHON" ] || return 0
    case $(python_of "$PYTHON") in
        'cpython (3, 1'[123]', '*) ;;
        *) die "--python $PYTHON is not a CPython 3.11, 3.12 or 3.13" ;;
    esac
}

uv_is_good() {
    version=$("$1" --version 2>/dev/null) && version=${version#uv } && version_ge "${version%% *}" "$UV_MIN"
}

# Sets UV: the one on PATH if it is new enough, one that an installation here has, or a pinned copy of our own.
get_uv() {
    for UV in uv "$PREFIX/${R_UV:-none}/bin/uv" "$PRODUCT"/uv-*/bin/uv; do
        ! uv_is_good "$UV" || return 0
    done
    base=
    for name in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python; do
        [ -n "$base" ] || base=$("$name" -c 'import sys; print(sys.executable)' 2>/dev/null) || base=
    done
    [ -n "$base" ] || no_python
    say "getting uv $UV_PIN for this installation"
    name=uv-$$
    UV=$PREFIX/$name/bin/uv
    claim "$name"
    act "$base" -m venv "$PREFIX/$name" ||
        die "'$base -m venv' failed: install the package python3-venv, or uv $UV_MIN or newer, and run this again"
    act "$PREFIX/$name/bin/python" -m pip install -qq --disable-pip-version-check --only-binary :all: "uv==$UV_PIN" ||
        die "pip could not get uv $UV_PIN: check the network, or pip's proxy and index settings, and run this again"
    R_UV=$name
    save_receipt
}

# uv reads neither pip's variables nor its files; one mirror setting should be enough.
borrow_pip_settings() {
    if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
        index=${PIP_INDEX_URL:-$("${PYTHON:-python3}" -m pip config get global.index-url 2>/dev/null)} || index=
        [ -z "$index" ] || export UV_DEFAULT_INDEX="$index"
    fi
    [ -n "${SSL_CERT_FILE:-}" ] || [ -z "${PIP_CERT:-}" ] || export SSL_CERT_FILE="$PIP_CERT"
}

# ---- building an environment ----

# With progress on a terminal, with errors only elsewhere.
run_uv() { if [ -t 2 ]; then act "$UV" "$@"; else act "$UV" --quiet "$@"; fi; }

make_env() {
    run_uv venv --clear --no-project --python "${PYTHON:-$PYTHON_RANGE}" "$1" || no_python
    say "installing the locked packages (about 6 GB with the CUDA libraries; minutes, the first time)"
    set -- pip sync --python "$1/bin/python" --require-hashes $COMPILE "$ROOT/$LOCK"
    run_uv "$@" && return
    say "that failed, the lines above say why; trying with what is already on this machine"
    run_uv "$@" --offline 2>/dev/null ||
        die "the packages cannot be installed: check the network or the proxy and index settings of uv, and run this again"
}

# The project itself, with the maturin of the lock.
build() {
    say "building curtail and its Rust extension"
    (
        cd "$ROOT"
        [ -z "$CRATES_LOCKED" ] || export MATURIN_PEP517_ARGS=--locked
        export PATH="$1/bin:$PATH"
        run_uv pip install --python "$1/bin/python" --offline --no-deps --no-build-isolation \
            --reinstall-package curtail $COMPILE $EDITABLE .
    ) || die "building curtail failed; the lines above say why"
    act "$1/bin/python" -P -c 'import agent, controller, curtail, nanochat, rustbpe._rustbpe' ||
        die "the installed packages cannot be imported; the lines above say why"
}

install_anew() {
    # The crates first: a registry that does not answer is found out before the large downloads.
    CRATES_LOCKED=$([ ! -f "$ROOT/rustbpe/Cargo.lock" ] || echo --locked)
    act cargo fetch --quiet $CRATES_LOCKED --manifest-path "$ROOT/rustbpe/Cargo.toml" ||
        die "cargo could not get the crates: check the network, or cargo's proxy and registry settings, and run this again"
    get_uv
    borrow_pip_settings
    if [ "$R_LOCK" = "$LOCK_NOW" ] && env_works; then
        env=$R_ENV R_SOURCES= # the packages stay; until the project is in, the environment is not complete
        save_receipt
    else
        env=env-$(printf '%.12s' "$LOCK_NOW")-$$
        claim "$env"
        make_env "$PREFIX/$env"
        R_ENV=$env R_LOCK=$LOCK_NOW R_SOURCES=
    fi
    build "$PREFIX/$env"
    R_SOURCES=$SOURCES_NOW
    save_receipt
}

# ---- the link ----

link_is_ours() { case $(readlink "$1" 2>/dev/null) in "$PREFIX"/* | .venv.env-*) ;; *) return 1 ;; esac; }
link_is_right() { [ "$R_LINK" = "$LINK" ] && [ "$(readlink "$LINK" 2>/dev/null)" = "$PREFIX/$R_ENV$TARGET" ]; }

# Is there nothing, a link of ours, or one to a command of ours that is gone?
link_is_free() {
    [ -e "$LINK" ] || [ -L "$LINK" ] || return 0
    link_is_ours "$LINK" || case $(readlink "$LINK") in */bin/curtail) [ ! -e "$LINK" ] ;; *) return 1 ;; esac
}

put_link() {
    ! link_is_right || return 0
    target=$PREFIX/$R_ENV$TARGET
    if ! link_is_free; then
        say "$LINK exists and is not ours; it stays (choose another --bin-dir, or move it); it would lead to $target"
        return
    fi
    [ "$R_LINK" = "$LINK" ] || drop_link
    R_LINK=$LINK
    save_receipt
    [ ! -d "$LINK" ] || act rm -f "$LINK" # mv would move into the folder
    { act mkdir -p "${LINK%/*}" && act ln -s "$target" "$LINK.$$" && act mv -f "$LINK.$$" "$LINK"; } ||
        die "cannot link $LINK: check the permissions of ${LINK%/*} or choose another --bin-dir"
}

drop_link() { [ -z "$R_LINK" ] || ! link_is_ours "$R_LINK" || act rm -f "$R_LINK"; }

# ---- the commands ----

# Makes what the receipt in PREFIX and LINK should say true: an environment of LOCK and SOURCES, and its link.
ensure() {
    RECEIPT=$PREFIX/receipt
    LOCK_NOW=$(digest_of "$LOCK") SOURCES_NOW=$(digest_of $SOURCES)
    load_receipt
    ! { up_to_date && link_is_right; } || return 0
    up_to_date || { need_rust && check_python; }
    hold
    load_receipt # another run may have finished meanwhile
    up_to_date || install_anew
    put_link
    dry || drop_old
    release
}

product() {
    LINK=$BIN_DIR/curtail TARGET=/bin/curtail LOCK=requirements.lock EDITABLE='' COMPILE=--compile-bytecode
    SOURCES='pyproject.toml curtail rustbpe nanochat agent controller'
    ensure
}

# The same once more for development: .venv is the link. Bytecode is made as it is needed: 10 s less.
setup() {
    PREFIX=$ROOT/.venv.made LINK=$ROOT/.venv TARGET='' LOCK=requirements-dev.lock EDITABLE=--editable COMPILE=''
    SOURCES='pyproject.toml rustbpe'
    ensure
    dry || link_is_right || exit 1 # put_link has said why
}

run_install() {
    product
    ! dry || return 0
    link_is_right || exit 1 # put_link has said why
    say "the command is $LINK"
    case ":$PATH:" in
        *":$BIN_DIR:"*) ;;
        *) say "$BIN_DIR is not on PATH: add it, e.g. with  export PATH=\"$BIN_DIR:\$PATH\"  in ~/.profile" ;;
    esac
}

run_last() { if dry; then act "$@"; else exec "$@"; fi; }

run_demo() {
    product
    run_last "$PREFIX/$R_ENV/bin/curtail" demo "$@"
}

run_test() {
    [ $# -gt 0 ] || need_rust # for the checks of the crate
    setup
    cd "$ROOT"
    if [ $# -gt 0 ]; then run_last "$ROOT/.venv/bin/pytest" "$@"; else run_last "$ROOT/.ci/all"; fi
}

run_uninstall() {
    RECEIPT=$PREFIX/receipt
    if [ ! -f "$RECEIPT" ]; then
        say "nothing to remove: there is no receipt in $PREFIX"
        return
    fi
    hold
    load_receipt
    drop_link
    for name in $R_OWN; do act rm -rf "${PREFIX:?}/$name"; done
    act rm -f "$RECEIPT" "$RECEIPT.new"
    ! dry || return 0
    release
    rmdir "$PREFIX" 2>/dev/null || say "$PREFIX holds other files; they stay"
    say "removed"
}

absolute() { case $1 in /*) printf '%s\n' "$1" ;; *) printf '%s/%s\n' "$PWD" "$1" ;; esac; }

main() {
    DRY_RUN=no COMMAND='' HELD=''
    [ -n "${HOME:-}" ] || die "HOME is not set: set it to your home folder"
    PREFIX=${CURTAIL_PREFIX:-${XDG_DATA_HOME:-$HOME/.local/share}/curtail}
    BIN_DIR=${CURTAIL_BIN_DIR:-$HOME/.local/bin}
    PYTHON=${CURTAIL_PYTHON:-}
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix | --bin-dir | --python)
                [ -n "${2:-}" ] || wrong_usage "$1 needs a value"
                option=$1=$2
                shift
                ;;
            *) option=$1 ;;
        esac
        shift
        case $option in
            --prefix=?*) PREFIX=${option#*=} ;;
            --bin-dir=?*) BIN_DIR=${option#*=} ;;
            --python=?*) PYTHON=${option#*=} ;;
            --dry-run) DRY_RUN=yes ;;
            --help | -h)
                usage
                exit 0
                ;;
            install | uninstall | setup | demo | test)
                [ -z "$COMMAND" ] || wrong_usage "one command at a time"
                COMMAND=$option
                case $option in demo | test) break ;; esac # the rest is for the command
                ;;
            *) wrong_usage "what is '$option'?" ;;
        esac
    done
    PREFIX=$(absolute "$PREFIX") BIN_DIR=$(absolute "$BIN_DIR")
    PRODUCT=$PREFIX
    ROOT=$(cd -- "$(dirname -- "$0")" && pwd -P)
    [ -f "$ROOT/requirements.lock" ] || die "run this from curtail's repository: $ROOT holds no requirements.lock"
    trap release EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    case ${COMMAND:-install} in
        setup) setup ;;
        *) "run_${COMMAND:-install}" "$@" ;;
    esac
}

main "$@"
