"""Verifies chains as Python's cryptography does. Cases as in verify.go."""

import ipaddress
import sys
from datetime import UTC, datetime

from cryptography import x509
from cryptography.x509.verification import PolicyBuilder, Store, VerificationError


def read(path: str) -> x509.Certificate:
    with open(path, "rb") as file:
        return x509.load_pem_x509_certificate(file.read())


def verify(root: str, intermediate: str, leaf: str, at: str, purpose: str, name: str) -> None:
    builder = PolicyBuilder().store(Store([read(root)])).time(datetime.fromtimestamp(int(at), UTC))
    if purpose == "client":
        verifier = builder.build_client_verifier()
    else:
        try:
            subject = x509.IPAddress(ipaddress.ip_address(name))
        except ValueError:
            subject = x509.DNSName(name)
        verifier = builder.build_server_verifier(subject)
    verifier.verify(read(leaf), [read(intermediate)])


for line in sys.stdin:
    try:
        verify(*line.rstrip("\n").split("\t"))
        print("accepted")
    except (VerificationError, ValueError) as refused:
        print("refused:", str(refused).replace("\n", " "))
