#!/usr/bin/env bash
# A key, a request and a signature, as a shell script makes a certificate: three_steps.sh AUTHORITY OUT NAME
set -euo pipefail
openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$2/$3.key" 2>/dev/null
openssl req -new -key "$2/$3.key" -subj "/CN=$3" -addext "subjectAltName=DNS:$3" -out "$2/$3.csr"
openssl x509 -req -in "$2/$3.csr" -CA "$1/intermediate.crt" -CAkey "$1/intermediate.key" -days 90 \
    -copy_extensions copy -out "$2/$3.crt" 2>/dev/null
cat "$2/$3.crt" "$1/intermediate.crt" >"$2/$3.pem"
