# Sourced by the scripts beside it. `ensure_installed EXTRA` leaves the package, editable and with
# that extra, in .venv beside the repository's root; it does nothing when that is so already.
# Speaks on stderr only: stdout belongs to the command that follows.

root="$(CDPATH='' cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd -P)"
venv="$root/.venv"
stamp="$venv/.timm-compat-installed"

say() { printf '%s\n' "timm-compat: $*" >&2; }

usable_python() { "$1" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; }

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        usable_python "$PYTHON" && { printf '%s\n' "$PYTHON"; return; }
        say "PYTHON=$PYTHON is not a Python 3.10 or newer with its venv module"
        return 1
    fi
    for candidate in python3 python3.13 python3.12 python3.11 python3.10; do
        usable_python "$candidate" && { printf '%s\n' "$candidate"; return; }
    done
    say "no Python 3.10 or newer with its venv module was found (on Debian: apt install python3-venv);" \
        "install one, or name it: PYTHON=/path/to/python3"
    return 1
}

# What an installation of extra $1 depends on. The whole text is the stamp: no hashing tool is needed.
stamp_text() { printf '%s\n' "$root" "$1"; cat -- "$root/setup.cfg" "$root/pyproject.toml"; }

installed() {  # extra dev holds every other one
    [[ -f "$stamp" && -x "$venv/bin/python" ]] && { stamp_text "$1" | cmp -s - "$stamp" || stamp_text dev | cmp -s - "$stamp"; }
}

make_venv() {
    local python
    if usable_python "$venv/bin/python"; then
        "$venv/bin/python" -m pip --version >/dev/null 2>&1 || "$venv/bin/python" -m ensurepip >/dev/null
    else
        python="$(find_python)" || return 1
        say "making .venv with $("$python" --version)"
        "$python" -m venv --clear "$venv"
    fi
}

install() {
    rm -f -- "$stamp"
    make_venv || return 1
    say "installing into .venv (the first time downloads PyTorch and takes minutes)"
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable "$root[$1]" >&2 || return 1
    stamp_text "$1" >"$stamp.new"
    mv -- "$stamp.new" "$stamp"
}

# Whoever runs from .venv holds the lock shared until it ends (the command inherits descriptor 9), whoever
# changes .venv holds it alone. Without flock (macOS) there is no lock.
lock() {
    command -v flock >/dev/null || return 0
    flock -n "$1" 9 && return
    say "waiting for another run that uses .venv"
    flock "$1" 9
}

ensure_installed() {
    exec 9>"$root/.venv.lock"
    lock -s
    if ! installed "$1"; then
        lock -x
        installed "$1" || install "$1" || { say "the installation failed"; exit 1; }
        lock -s
    fi
}
