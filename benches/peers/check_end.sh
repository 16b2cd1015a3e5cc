#!/usr/bin/env bash
# Whether any certificate ends soon, as a shell script asks: check_end.sh STORE COUNT
set -euo pipefail
for directory in $(printf '%s\n' "$1"/certificates/* | head -n "$2"); do
    openssl x509 -checkend 2592000 -noout -in "$directory/current/cert.pem" >/dev/null
done
