# Sourced by the other scripts: goes to the repository's root and puts a ready virtual environment on PATH.
#
#   P2PNODE_VENV    where it is (default: .venv)
#   P2PNODE_TORCH   what pip installs as torch, options included (default: torch==2.13.0; see README)
#   PYTHON          which Python makes it (default: the first of 3.11 or newer)
#
# Does nothing when it was set up before from the same pyproject.toml, torch and Python.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
p2pnode_venv=${P2PNODE_VENV:-.venv}
p2pnode_torch=${P2PNODE_TORCH:-torch==2.13.0}

p2pnode_find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3.11 python3.12 python3.13 python3 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "p2pnode needs Python 3.11 or newer, and none was found (or name one: PYTHON=/path/to/python)" >&2
  return 1
}

p2pnode_stamp() {
  "$1" - "$p2pnode_torch" <<'PYTHON'
import hashlib, pathlib, sys
seen = f"{sys.version_info[:2]} {sys.argv[1]} {pathlib.Path.cwd()} ".encode() + pathlib.Path("pyproject.toml").read_bytes()
print(hashlib.sha256(seen).hexdigest())
PYTHON
}

p2pnode_install() {  # what people read, then pip's arguments
  local log=$p2pnode_venv/setup.log began=$SECONDS
  printf '%s ' "$1" >&2
  if ! "$p2pnode_venv/bin/python" -m pip install --disable-pip-version-check "${@:2}" >>"$log" 2>&1; then
    printf 'failed:\n' >&2
    tail -n 20 "$log" >&2
    echo "(all of it is in $log)" >&2
    return 1
  fi
  printf 'done in %s s\n' $((SECONDS - began)) >&2
}

p2pnode_set_up() {
  local python stamp
  if [ ! -x "$p2pnode_venv/bin/python" ]; then
    python=$(p2pnode_find_python) || return 1
    echo "Setting up $p2pnode_venv with $("$python" --version), once; torch is large, so it can take minutes." >&2
    "$python" -m venv "$p2pnode_venv" || {
      echo "can't make a virtual environment; on Debian and Ubuntu: apt install python3-venv" >&2
      return 1
    }
  fi
  stamp=$(p2pnode_stamp "$p2pnode_venv/bin/python") || return 1
  [ "$(cat "$p2pnode_venv/p2pnode-stamp" 2>/dev/null)" = "$stamp" ] && return
  : >"$p2pnode_venv/setup.log"
  # Not quoted: P2PNODE_TORCH may hold options such as --index-url.
  # shellcheck disable=SC2086
  p2pnode_install "Installing $p2pnode_torch ..." $p2pnode_torch || return 1
  p2pnode_install "Installing p2pnode and its tools ..." -e '.[dev]' || return 1
  echo "$stamp" >"$p2pnode_venv/p2pnode-stamp"
}

if command -v flock >/dev/null 2>&1; then  # two scripts at once: the second waits for the first one's set-up
  exec 9>".p2pnode-setup.lock"
  flock 9
fi
p2pnode_set_up || exit 1
if command -v flock >/dev/null 2>&1; then exec 9>&-; fi
case $p2pnode_venv in /*) ;; *) p2pnode_venv=$PWD/$p2pnode_venv ;; esac
export PATH="$p2pnode_venv/bin:$PATH" VIRTUAL_ENV=$p2pnode_venv
