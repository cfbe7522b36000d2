# Sourced by demo.sh and test.sh: makes .venv beside them, once, and again when pyproject.toml or the compiled coder changes.
# PYTHON names the interpreter (3.11 or newer). pip's own settings (PIP_INDEX_URL, ...) are respected: on a machine
# without a GPU, PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu saves gigabytes.
cd "$(dirname "${BASH_SOURCE[0]}")/.."

find_python() {
  local candidate
  for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python; do
    if [ -n "$candidate" ] && "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "Python 3.11 or newer is needed; name one with PYTHON=/path/to/python3" >&2
  return 1
}

set_up() { # $1: extras to install, in brackets, or nothing
  local stamp state wanted python
  stamp=.venv/.installed
  state="$(cat pyproject.toml setup.py pyro_compress/pcn/context.p* pyro_compress/pcn/released.pyx | cksum)" # the compiled coder follows its source
  wanted="$state $1"
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  if [ -z "$1" ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state [dev]" ]; then # more than is asked for
    return
  fi
  python="$(find_python)" || return 1
  echo "setting up .venv (some minutes, once)" >&2
  rm -f "$stamp"
  [ -x .venv/bin/python ] || "$python" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".$1" || return 1
  echo "$wanted" > "$stamp"
}
