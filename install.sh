#!/bin/sh
# Installs curtail into an environment of its own, runs its demo, or runs its tests.
# Nothing happens until the last line, so that a truncated copy does nothing.
# What this script says goes to stderr; stdout belongs to the command it runs.
# A killed run is safe: the receipt names every folder before it is made and is
# completed last, so the next run starts where this one left a whole thing.
# shellcheck disable=SC2015,SC2030,SC2031 # `a && b || die` is meant; PATH for one subshell is meant
set -eu

UV_MIN=0.8.0
UV_PIN=0.13.9
PYTHON_RANGE='>=3.11,<3.14'
RUST_MIN=1.85
PACKAGES='curtail rustbpe nanochat agent controller'

usage() {
    cat <<'TEXT'
Usage: ./install.sh [OPTIONS] [COMMAND] [ARGS]

Commands:
  install              install or update the command `curtail` (the default)
  demo [ARGS]          install if needed, then run `curtail demo ARGS`
  test [PYTEST ARGS]   set up .venv here, then run every check and the tests
  uninstall            remove what install made, and nothing else

Options (before the command; after it for install and uninstall too):
  --prefix FOLDER      where the environment goes [CURTAIL_PREFIX;
                       ${XDG_DATA_HOME:-~/.local/share}/curtail]
  --bin-dir FOLDER     where the command is linked [CURTAIL_BIN_DIR; ~/.local/bin]
  --python PYTHON      the Python to use, 3.11 to 3.13 [CURTAIL_PYTHON; the newest found]
  --dry-run            print each action, do nothing
  --help               show this

Needs Rust (cargo) and a C linker; no root. Proxies, mirrors and certificates are
taken from the settings of uv and pip. Exit codes: 0 done, 1 failed, 2 wrong usage;
demo and test pass on those of the command they run.
TEXT
}

# ---- speaking -------------------------------------------------------------

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

# In a dry run an action is printed; otherwise it is done, its stdout kept out of ours.
act() {
    if [ "$DRY_RUN" = yes ]; then
        printf 'would run:'
        for word in "$@"; do
            case $word in
                *[!A-Za-z0-9_./:=@%+,-]* | '')
                    printf " '%s'" "$(printf '%s' "$word" | sed "s/'/'\\\\''/g")" ;;
                *) printf ' %s' "$word" ;;
            esac
        done
        printf '\n'
    else
        "$@" >&2
    fi
}

# ---- small questions ------------------------------------------------------

have() { command -v "$1" >/dev/null 2>&1; }

# version_ge 1.85.0 1.83: is the first at least the second? Up to three numbers.
version_ge() {
    left=$1. right=$2.
    for _ in 1 2 3; do
        a=${left%%.*} b=${right%%.*}
        left=${left#*.} right=${right#*.}
        a=${a%%[!0-9]*} b=${b%%[!0-9]*}
        [ "${a:-0}" -eq "${b:-0}" ] || { [ "${a:-0}" -gt "${b:-0}" ]; return; }
    done
}

absolute() {
    case $1 in
        /*) printf '%s\n' "$1" ;;
        *) printf '%s/%s\n' "$PWD" "$1" ;;
    esac
}

digest() {
    if have sha256sum; then sha256sum; elif have shasum; then shasum -a 256; else cksum; fi | cut -d' ' -f1
}

# Digest of the files under the given paths (relative to the repository), without built things.
digest_of() {
    (
        cd "$ROOT"
        find "$@" -type d \( -name target -o -name __pycache__ \) -prune -o \
            -type f ! -name '*.so' ! -name '*.pyc' -print | LC_ALL=C sort |
            while IFS= read -r file; do
                printf '%s\n' "$file"
                cat "$file"
            done | digest
    )
}

# ---- one at a time --------------------------------------------------------

# The lock is a symbolic link whose target names its holder: made in one step, with its content.
HELD=

hold() {
    lock=$1 me="$(uname -n):$$" told=no tries=0
    while ! ln -s "$me" "$lock" 2>/dev/null; do
        if ! holder=$(readlink "$lock" 2>/dev/null); then # released just now, or never there
            tries=$((tries + 1))
            [ "$tries" -lt 9 ] || die "cannot write in ${lock%/*}: check its permissions and the space left there"
            continue
        fi
        if [ "${holder%:*}" = "$(uname -n)" ] && ! kill -0 "${holder##*:}" 2>/dev/null; then
            rm -f "$lock" # its holder was killed
            continue
        fi
        [ "$told" = yes ] || say "another install.sh is at work ($holder); waiting (if it is long gone: rm '$lock')"
        told=yes
        sleep 1
    done
    HELD=$lock
}

release() {
    [ -z "$HELD" ] || rm -f "$HELD"
    HELD=
}

# ---- the receipt: what is ours, and whether it is whole --------------------

load_receipt() {
    R_ENV='' R_UV='' R_LINK='' R_LOCK='' R_SOURCES='' R_OWN=''
    [ -f "$RECEIPT" ] || return 0
    R_ENV=$(sed -n 's/^env=//p' "$RECEIPT")
    R_UV=$(sed -n 's/^uv=//p' "$RECEIPT")
    R_LINK=$(sed -n 's/^link=//p' "$RECEIPT")
    R_LOCK=$(sed -n 's/^lock=//p' "$RECEIPT")
    R_SOURCES=$(sed -n 's/^sources=//p' "$RECEIPT")
    # Only plain names of the two kinds we make, whatever somebody wrote into it.
    R_OWN=$(sed -n -e '/^own=env-[0-9a-z-]*$/s/^own=//p' -e '/^own=uv-[0-9]*$/s/^own=//p' "$RECEIPT" | sort -u)
}

save_receipt() {
    {
        printf 'made by install.sh of curtail; uninstall with: install.sh uninstall\n'
        printf 'env=%s\nuv=%s\nlink=%s\nlock=%s\nsources=%s\n' "$R_ENV" "$R_UV" "$R_LINK" "$R_LOCK" "$R_SOURCES"
        printf '%s\n' "$R_OWN" | sed -n 's/^\(..*\)$/own=\1/p'
    } >"$RECEIPT.new"
    mv -f "$RECEIPT.new" "$RECEIPT"
}

owned() { printf '%s\n' "$R_OWN" | grep -Fqx -e "$1"; }

# Writes down that $PREFIX/NAME is ours, then empties the place. Names carry the number of
# the run: what a killed run left may still be written to by the programs it had started.
claim() {
    if ! owned "$1"; then
        [ ! -e "$PREFIX/$1" ] || die "$PREFIX/$1 exists and is not ours: move it, or choose another --prefix"
        R_OWN=$(printf '%s\n%s\n' "$R_OWN" "$1")
        save_receipt
    fi
    rm -rf "${PREFIX:?}/$1"
}

env_works() { [ -n "$1" ] && "$1/bin/python" -c '' 2>/dev/null; }

up_to_date() {
    [ -n "$R_ENV" ] && [ "$R_LOCK" = "$LOCK_NOW" ] && [ "$R_SOURCES" = "$SOURCES_NOW" ] &&
        [ -x "$PREFIX/$R_ENV/bin/curtail" ] && env_works "$PREFIX/$R_ENV" && python_as_asked "$PREFIX/$R_ENV"
}

# ---- what must be there ---------------------------------------------------

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
    RUST_MIN=${wanted:-$RUST_MIN}
    if ! have cargo && [ -x "${CARGO_HOME:-$HOME/.cargo}/bin/cargo" ]; then
        PATH="${CARGO_HOME:-$HOME/.cargo}/bin:$PATH"
        export PATH
    fi
    have cargo || rust_help "Rust is missing: there is no cargo on PATH or in ${CARGO_HOME:-$HOME/.cargo}/bin"
    found=$(cd "$ROOT" && cargo --version 2>/dev/null | cut -d' ' -f2) || found=
    [ -n "$found" ] || rust_help "cargo is there but does not run (with rustup: 'rustup default stable')"
    version_ge "$found" "$RUST_MIN" || rust_help "Rust is too old: cargo $found, needed is $RUST_MIN or newer"
    have cc || have gcc || have clang || die "no C linker (cc): install gcc or clang, e.g. the package" \
        "build-essential (Debian, Ubuntu), gcc (Fedora) or the Xcode command line tools (macOS); nothing was installed"
}

# Prints the path of a suitable interpreter, or nothing.
real_python() {
    "$1" -c '
import sys
if sys.implementation.name == "cpython" and (3, 11) <= sys.version_info[:2] < (3, 14):
    print(sys.executable)' 2>/dev/null || true
}

# Sets PYTHON; empty: none here, uv is to provide one.
find_python() {
    PYTHON=
    if [ -n "$PYTHON_ASKED" ]; then
        PYTHON=$(real_python "$PYTHON_ASKED")
        [ -n "$PYTHON" ] || die "--python $PYTHON_ASKED is not a CPython 3.11, 3.12 or 3.13"
        return
    fi
    for name in python3.13 python3.12 python3.11 python3 python; do
        PYTHON=$(real_python "$name") # run, not only looked up: a version switcher's stand-in may refuse
        [ -z "$PYTHON" ] || return 0
    done
}

# Does the environment $1 have the version that --python asks for?
python_as_asked() {
    [ -n "$PYTHON_ASKED" ] || return 0
    show='import sys; print(sys.version_info[:3])'
    [ "$("$PYTHON_ASKED" -c "$show" 2>/dev/null)" = "$("$1/bin/python" -c "$show")" ]
}

uv_is_good() {
    version=$("$1" --version 2>/dev/null) || return 1
    version=${version#uv }
    version_ge "${version%% *}" "$UV_MIN"
}

# Sets UV: the one on PATH if it is new enough, else our own pinned copy. Needs the lock and the receipt.
get_uv() {
    UV=uv
    ! uv_is_good uv || return 0
    UV=$PREFIX/$R_UV/bin/uv
    ! { owned "$R_UV" && uv_is_good "$UV"; } || return 0
    for name in "$PYTHON_ASKED" python3 python3.13 python3.12 python3.11 python; do
        base=$([ -z "$name" ] || "$name" -c 'import sys; print(sys.executable)' 2>/dev/null) || base=
        [ -z "$base" ] || break
    done
    [ -n "$base" ] || no_python
    say "getting uv $UV_PIN for this installation"
    uv_new=uv-$$
    UV=$PREFIX/$uv_new/bin/uv
    if [ "$DRY_RUN" != yes ]; then claim "$uv_new"; fi
    act "$base" -m venv "$PREFIX/$uv_new" ||
        die "'$base -m venv' failed: install the package python3-venv, or uv $UV_MIN or newer, and run this again"
    act "$PREFIX/$uv_new/bin/python" -m pip install -qq --disable-pip-version-check --only-binary :all: "uv==$UV_PIN" ||
        die "pip could not get uv $UV_PIN: check the network, or pip's proxy and index settings, and run this again"
    R_UV=$uv_new
    [ "$DRY_RUN" = yes ] || save_receipt
}

no_python() {
    die "no CPython 3.11, 3.12 or 3.13 found: install one (package python3.12 or python3, or 'uv python install 3.12')" \
        "or name it with --python; then run this again"
}

# ---- building environments ------------------------------------------------

# Runs uv: with its progress on a terminal, with errors only elsewhere.
run_uv() {
    if [ -t 2 ]; then act "$UV" "$@"; else act "$UV" --quiet "$@"; fi
}

registry_answers() {
    printf 'uv==%s\n' "$UV_PIN" | UV_HTTP_RETRIES=0 "$UV" pip compile --quiet --no-config --no-cache --no-deps \
        --python "$1" - >/dev/null 2>&1
}

# uv knows neither pip's variables nor its files; one mirror setting should be enough.
borrow_pip_settings() {
    if [ -z "${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-}" ]; then
        index=${PIP_INDEX_URL:-$("$UV_BASE" -m pip config get global.index-url 2>/dev/null)} || index=
        if [ -n "$index" ]; then export UV_DEFAULT_INDEX="$index"; fi
    fi
    if [ -z "${SSL_CERT_FILE:-}" ] && [ -n "${PIP_CERT:-}" ]; then export SSL_CERT_FILE="$PIP_CERT"; fi
}

# fill ENV LOCK: everything the lock names, checked against its hashes.
fill() {
    set -- "$1/bin/python" "$2"
    say "installing the locked packages (about 6 GB with the CUDA libraries; minutes, the first time)"
    run_uv pip sync --python "$1" --require-hashes --compile-bytecode "$2" && return
    registry_answers "$1" && die "installing the packages failed; the lines above say why"
    say "the package registry cannot be reached; trying with what is already on this machine"
    run_uv pip sync --python "$1" --require-hashes --compile-bytecode --offline "$2" 2>/dev/null ||
        die "the package registry cannot be reached: check the network or the proxy and index settings of uv, and run this again"
}

make_env() {
    if [ -n "$PYTHON" ]; then
        run_uv venv --clear --no-project --python "$PYTHON" "$1" || die "'uv venv' failed; the lines above say why"
    else
        say "no Python 3.11 to 3.13 here; asking uv for one"
        run_uv venv --clear --no-project --managed-python --python "$PYTHON_RANGE" "$1" || no_python
    fi
}

# The crates first: a registry that does not answer is found out before the large downloads.
get_crates() {
    locked=
    [ ! -f "$ROOT/rustbpe/Cargo.lock" ] || locked=--locked
    act cargo fetch --quiet $locked --manifest-path "$ROOT/rustbpe/Cargo.toml" ||
        die "cargo could not get the crates: check the network, or cargo's proxy and registry settings, and run this again"
}

# build ENV [--editable]: the project itself, with the maturin of the lock.
build() {
    say "building curtail and its Rust extension"
    (
        cd "$ROOT"
        [ ! -f rustbpe/Cargo.lock ] || export MATURIN_PEP517_ARGS=--locked
        export PATH="$1/bin:$PATH"
        run_uv pip install --python "$1/bin/python" --offline --no-deps --no-build-isolation \
            --reinstall-package curtail --compile-bytecode ${2:+"$2"} .
    ) || die "building curtail failed; the lines above say why"
    act "$1/bin/python" -P -c 'import agent, controller, curtail, nanochat, rustbpe._rustbpe' ||
        die "the installed packages cannot be imported; the lines above say why"
}

# ---- install, demo --------------------------------------------------------

link_is_free() {
    [ -e "$LINK" ] || [ -L "$LINK" ] || return 0
    [ -L "$LINK" ] || return 1
    case $(readlink "$LINK") in
        "$PREFIX"/*) return 0 ;;
        */bin/curtail) [ ! -e "$LINK" ] ;; # it dangles
        *) return 1 ;;
    esac
}

link_is_right() { [ "$R_LINK" = "$LINK" ] && [ "$(readlink "$LINK" 2>/dev/null)" = "$PREFIX/$R_ENV/bin/curtail" ]; }

put_link() {
    ! link_is_right || return 0
    target=$PREFIX/$R_ENV/bin/curtail
    if ! link_is_free; then
        say "$LINK exists and is not ours; it stays (choose another --bin-dir); the command is $target"
        return
    fi
    [ "$R_LINK" = "$LINK" ] || drop_link
    R_LINK=$LINK
    save_receipt
    { mkdir -p "$BIN_DIR" && ln -s "$target" "$LINK.$$" && mv -f "$LINK.$$" "$LINK"; } ||
        die "cannot link $LINK: check the permissions of $BIN_DIR or choose another --bin-dir"
}

drop_link() {
    [ -n "$R_LINK" ] && [ -L "$R_LINK" ] || return 0
    case $(readlink "$R_LINK") in
        "$PREFIX"/*) act rm -f "$R_LINK" ;;
    esac
}

drop_old() {
    keep=
    for name in $R_OWN; do
        if [ "$name" != "$R_UV" ] && [ "$name" != "$R_ENV" ]; then rm -rf "${PREFIX:?}/$name" && continue; fi
        keep=$(printf '%s\n%s\n' "$keep" "$name")
    done
    R_OWN=$keep
    save_receipt
}

look() {
    LOCK_NOW=$(digest_of requirements.lock)
    # shellcheck disable=SC2086 # a list of plain names
    SOURCES_NOW=$(digest_of pyproject.toml $PACKAGES)
    load_receipt
}

install_product() {
    look
    if up_to_date; then
        say "curtail is up to date in $PREFIX/$R_ENV"
        ! link_is_right || return 0
    else
        need_rust
        find_python
        UV_BASE=${PYTHON:-python3}
        if [ "$DRY_RUN" != yes ]; then
            mkdir -p "$PREFIX" 2>/dev/null || die "cannot make $PREFIX: check its permissions or choose another --prefix"
            hold "$PREFIX/.lock"
            load_receipt # another run may have finished meanwhile
        fi
        up_to_date || install_anew
    fi
    if [ "$DRY_RUN" = yes ]; then
        printf 'would link: %s -> %s\n' "$LINK" "$PREFIX/$R_ENV/bin/curtail"
    else
        [ -n "$HELD" ] || hold "$PREFIX/.lock"
        put_link
        drop_old
        release
    fi
}

install_anew() {
    get_crates
    get_uv
    borrow_pip_settings
    if [ -n "$R_ENV" ] && [ "$R_LOCK" = "$LOCK_NOW" ] && env_works "$PREFIX/$R_ENV" && python_as_asked "$PREFIX/$R_ENV"; then
        R_SOURCES= # the packages stay; until the project is in, the environment is not whole
        [ "$DRY_RUN" = yes ] || save_receipt
        env_new=$R_ENV
    else
        env_new=env-$(printf '%.12s' "$LOCK_NOW")-$$
        [ "$DRY_RUN" = yes ] || claim "$env_new"
        make_env "$PREFIX/$env_new"
        fill "$PREFIX/$env_new" "$ROOT/requirements.lock"
    fi
    build "$PREFIX/$env_new"
    R_ENV=$env_new R_LOCK=$LOCK_NOW R_SOURCES=$SOURCES_NOW
    [ "$DRY_RUN" = yes ] || save_receipt
}

run_install() {
    install_product
    [ "$DRY_RUN" = no ] || return 0
    link_is_right || exit 1 # put_link has said why
    say "the command is $LINK"
    case ":$PATH:" in
        *":$BIN_DIR:"*) ;;
        *) say "$BIN_DIR is not on PATH: add it, e.g. with  export PATH=\"$BIN_DIR:\$PATH\"  in ~/.profile" ;;
    esac
}

run_demo() {
    install_product
    set -- "$PREFIX/$R_ENV/bin/curtail" demo "$@"
    if [ "$DRY_RUN" = yes ]; then act "$@"; else exec "$@"; fi
}

# ---- test -----------------------------------------------------------------

# The mark of a whole .venv holds the digest of all it was made from.
dev_env() {
    venv=$ROOT/.venv mark=$ROOT/.venv/curtail-receipt
    lock_now=$(digest_of requirements-dev.lock)
    now="$lock_now $(digest_of pyproject.toml rustbpe)"
    was=$(cat "$mark" 2>/dev/null) || was=
    env_works "$venv" && python_as_asked "$venv" || was=
    if [ "$was" = "$now" ] && ls "$ROOT"/rustbpe/_rustbpe*.so >/dev/null 2>&1; then
        return
    fi
    find_python
    UV_BASE=${PYTHON:-python3}
    get_crates
    if [ "$DRY_RUN" != yes ] && ! uv_is_good uv; then
        mkdir -p "$PREFIX" 2>/dev/null || die "cannot make $PREFIX: check its permissions or choose another --prefix"
        hold "$PREFIX/.lock"
    fi
    load_receipt
    get_uv
    [ -z "$HELD" ] || drop_old
    release
    borrow_pip_settings
    [ "$DRY_RUN" = yes ] || hold "$ROOT/.venv.lock"
    if [ "${was%% *}" != "$lock_now" ]; then
        # A folder of its own again, for the programs of a killed run may still write into theirs.
        fresh=.venv.env-$$
        make_env "$ROOT/$fresh"
        fill "$ROOT/$fresh" "$ROOT/requirements-dev.lock"
        [ -L "$venv" ] || [ ! -e "$venv" ] || act mv "$venv" "$ROOT/.venv.old-$$"
        act rm -f "$venv"
        act ln -s "$fresh" "$venv"
        for old in "$ROOT"/.venv.env-* "$ROOT"/.venv.old-*; do
            [ ! -e "$old" ] || [ "$old" = "$ROOT/$fresh" ] || act rm -rf "$old" || say "left over, to be deleted: $old"
        done
    fi
    [ "$DRY_RUN" = yes ] || printf '%s\n' "$lock_now" >"$mark" # whole, but for the project
    build "$venv" --editable
    [ "$DRY_RUN" = yes ] || printf '%s\n' "$now" >"$mark"
    release
}

# Run a check to its end, whatever the others said; with --dry-run say so only.
attempt() {
    if [ "$DRY_RUN" = yes ]; then
        act "$@"
    else
        "$@" || failed=$?
    fi
}

run_test() {
    need_rust
    dev_env
    PATH="$ROOT/.venv/bin:$PATH" VIRTUAL_ENV="$ROOT/.venv"
    export PATH VIRTUAL_ENV
    cd "$ROOT"
    failed=0
    attempt "$ROOT/.ci/check"
    if [ $# -gt 0 ]; then
        attempt "$ROOT/.venv/bin/pytest" "$@"
    else
        # What needs one core is spread over all of them; a test of processes wants the machine for itself.
        attempt env OMP_NUM_THREADS=1 "$ROOT/.venv/bin/pytest" -q -n auto --maxprocesses 8 \
            tests/unit tests/property tests/fault/test_bad_*.py
        attempt "$ROOT/.venv/bin/pytest" --ignore-glob='*/test_bad_*.py' tests/process tests/fault tests/gpu
    fi
    exit "$failed"
}

# ---- uninstall ------------------------------------------------------------

run_uninstall() {
    if [ ! -f "$RECEIPT" ]; then
        say "nothing to remove: there is no receipt in $PREFIX"
        return
    fi
    [ "$DRY_RUN" = yes ] || hold "$PREFIX/.lock"
    load_receipt
    drop_link
    for name in $R_OWN; do
        [ ! -e "$PREFIX/$name" ] || act rm -rf "${PREFIX:?}/$name"
    done
    act rm -f "$RECEIPT" "$RECEIPT.new"
    [ "$DRY_RUN" = no ] || return 0
    release
    rmdir "$PREFIX" 2>/dev/null || say "$PREFIX holds other files; they stay"
    say "removed"
}

# ---- main -----------------------------------------------------------------

main() {
    DRY_RUN=no COMMAND='' PYTHON='' UV=uv UV_BASE=python3
    [ -n "${HOME:-}" ] || die "HOME is not set: set it to your home folder"
    PREFIX=${CURTAIL_PREFIX:-${XDG_DATA_HOME:-$HOME/.local/share}/curtail}
    BIN_DIR=${CURTAIL_BIN_DIR:-$HOME/.local/bin}
    PYTHON_ASKED=${CURTAIL_PYTHON:-}
    while [ $# -gt 0 ]; do
        case $1 in
            --prefix | --bin-dir | --python)
                [ -n "${2:-}" ] || wrong_usage "$1 needs a value"
                option=$1=$2
                shift 2
                ;;
            *)
                option=$1
                shift
                ;;
        esac
        case $option in
            --prefix=?*) PREFIX=${option#*=} ;;
            --bin-dir=?*) BIN_DIR=${option#*=} ;;
            --python=?*) PYTHON_ASKED=${option#*=} ;;
            --dry-run) DRY_RUN=yes ;;
            --help | -h)
                usage
                exit 0
                ;;
            install | uninstall)
                [ -z "$COMMAND" ] || wrong_usage "one command at a time"
                COMMAND=$option
                ;;
            demo | test)
                [ -z "$COMMAND" ] || wrong_usage "one command at a time"
                COMMAND=$option
                break # the rest is for the command
                ;;
            *) wrong_usage "what is '$option'?" ;;
        esac
    done
    PREFIX=$(absolute "$PREFIX") BIN_DIR=$(absolute "$BIN_DIR")
    RECEIPT=$PREFIX/receipt LINK=$BIN_DIR/curtail
    ROOT=$(cd -- "$(dirname -- "$0")" && pwd -P)
    [ -f "$ROOT/requirements.lock" ] || die "run this from curtail's repository: $ROOT holds no requirements.lock"
    trap release EXIT
    trap 'exit 129' HUP
    trap 'exit 130' INT
    trap 'exit 143' TERM
    case ${COMMAND:-install} in
        install) run_install ;;
        demo) run_demo "$@" ;;
        test) run_test "$@" ;;
        uninstall) run_uninstall ;;
    esac
}

main "$@"
