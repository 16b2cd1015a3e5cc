#!/usr/bin/env bash
# Phoenix beside its peers in one run; prints a table of ratios. `compare.sh [ROUNDS]`
#
# mkcert and Python's cryptography are installed into PHOENIX_CACHE (~/.cache/phoenix-pki) where Go and Python are here.
# What cannot be had is listed below the table.
set -euo pipefail
cd "$(dirname "$0")/.."

cache="${PHOENIX_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/phoenix-pki}"
mkdir -p "$cache/bin"

if ! command -v mkcert >/dev/null 2>&1 && [ ! -x "$cache/bin/mkcert" ] && command -v go >/dev/null 2>&1; then
    GOBIN="$cache/bin" go install filippo.io/mkcert@v1.4.4 >&2 || true
fi
if [ -x "$cache/bin/mkcert" ]; then export PHOENIX_MKCERT="$cache/bin/mkcert"; fi

if [ -z "${PHOENIX_PYTHON:-}" ]; then
    for python in "$cache/venv/bin/python" "$cache/peers/bin/python" python3; do
        if "$python" -c 'import cryptography.x509' 2>/dev/null; then PHOENIX_PYTHON=$python && break; fi
    done
fi
if [ -z "${PHOENIX_PYTHON:-}" ] && python3 -m venv "$cache/peers" >&2 &&
    "$cache/peers/bin/pip" install -q cryptography >&2; then
    PHOENIX_PYTHON="$cache/peers/bin/python"
fi
if [ -n "${PHOENIX_PYTHON:-}" ]; then export PHOENIX_PYTHON; fi

cargo build --quiet --release -p phoenix-benches --bins
exec target/release/compare "$@"
