# Sourced by the other scripts: goes to the project and puts its virtual environment, .venv, first
# on PATH. Made on first use and again when a lock or pyproject.toml changed; nothing to do takes
# milliseconds. Needs Python 3.11 or later with venv. FEEDBACK_AGENT_PYTHON names an interpreter.
# shellcheck shell=bash

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

_env_find_python() {
  local python
  for python in ${FEEDBACK_AGENT_PYTHON:-python3.13 python3.12 python3.11 python3}; do
    # The interpreter itself: the one on PATH may be that of the environment to be made anew.
    if "$python" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' \
      2>/dev/null; then
      "$python" -c 'import sys; print(sys._base_executable)'
      return
    fi
  done
  echo "env: no Python 3.11 or later with venv found (Debian: apt-get install python3-venv)" >&2
  return 1
}

# What the environment was made from, and where: a moved tree needs a new one.
_env_key() {
  { pwd && cat requirements-dev.lock pyproject.toml; } | sha256sum | cut -d' ' -f1
}

_env_current() {
  [[ -f .venv/made-from && $(<.venv/made-from) == "$1" ]]
}

_env_make() {
  local python started=$SECONDS
  python=$(_env_find_python) || return
  echo "env: making .venv with $python from requirements-dev.lock" >&2
  rm -rf .venv
  "$python" -m venv .venv || return
  local pip=(.venv/bin/python -m pip --quiet --disable-pip-version-check --no-input install)
  "${pip[@]}" --require-hashes --requirement requirements-dev.lock || return
  # the backend came with the lock; nothing unpinned is fetched for the editable install
  "${pip[@]}" --no-deps --no-build-isolation --no-index --editable . || return
  echo "$1" >.venv/made-from
  echo "env: made in $((SECONDS - started)) s" >&2
}

_env_ready() {
  local key
  key=$(_env_key)
  _env_current "$key" && return
  mkdir -p .cache
  # two scripts may start at once: the second waits, then finds the work done
  (
    flock 9
    _env_current "$key" || _env_make "$key"
  ) 9>.cache/env.lock </dev/null
}

_env_ready || {
  echo "env: no environment, see above" >&2
  exit 1
}
VIRTUAL_ENV=$PWD/.venv
PATH=$VIRTUAL_ENV/bin:$PATH
export VIRTUAL_ENV PATH
unset PYTHONHOME
