"""Opens our encrypted key and writes it encrypted anew, as Python's cryptography does."""

import sys

from cryptography.hazmat.primitives import serialization

ours, theirs = sys.argv[1:]
with open(ours, "rb") as file:
    key = serialization.load_pem_private_key(file.read(), password=b"open sesame")
with open(theirs, "wb") as file:
    file.write(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"open sesame"),
        )
    )
