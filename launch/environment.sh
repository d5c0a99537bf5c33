# shellcheck shell=bash
# Makes a virtual environment with this package in it; sourced by the other scripts.
#
#   VENV     where it is, default .venv
#   PYTHON   what makes it, default python3.11, or python3 where that is new enough
#
# `prepare_environment EXTRA...` installs the package with its extras (test, data, ...), and does
# nothing where a stamp says that it did so before with the same setup.py.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit
VENV=${VENV:-.venv}

find_python() {
  for candidate in ${PYTHON:-python3.11 python3 python}; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  echo "error: needs Python 3.11 or newer; install it, or name it: PYTHON=/path/to/python3.11" >&2
  return 1
}

prepare_environment() {
  local extras wanted stamp
  extras=$(IFS=,; echo "$*")
  stamp="$VENV/latentomni-${extras:-core}.stamp"
  if [ ! -x "$VENV/bin/python" ]; then
    local python
    python=$(find_python)
    echo "making $VENV with $python" >&2
    "$python" -m venv "$VENV"
  fi
  # shellcheck disable=SC1091
  source "$VENV/bin/activate"
  wanted=$(python -c 'import hashlib; print(hashlib.sha256(open("setup.py", "rb").read()).hexdigest())')
  if [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ]; then
    return
  fi
  echo "installing into $VENV (some minutes the first time)" >&2
  case ",$extras," in *,test,*) install_torch ;; esac
  pip install --quiet -e ".${extras:+[$extras]}"
  echo "$wanted" >"$stamp"
}

# The parity tests need PyTorch, on CPU only. Before the package: whoever else asks for torch gets
# what is there, and not gigabytes of CUDA.
install_torch() {
  local version=2.13.0
  if ! pip install --quiet "torch==$version"; then
    echo "torch $version is not on the default index; trying PyTorch's own CPU index" >&2
    pip install --quiet --index-url https://download.pytorch.org/whl/cpu "torch==$version"
  fi
}
