"""Issues leaves in one process: for each line with a count on stdin, one line with the processor seconds that it took."""

import datetime
import ipaddress
import pathlib
import sys
import time

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

authority = pathlib.Path(sys.argv[1])
issuer = x509.load_pem_x509_certificate((authority / "intermediate.crt").read_bytes())
issuer_key = serialization.load_pem_private_key((authority / "intermediate.key").read_bytes(), None)
issuer_pem = issuer.public_bytes(serialization.Encoding.PEM)


def leaf(at: int) -> bytes:
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.timezone.utc)
    name = f"host{at}.internal.example"
    alternative = [
        x509.DNSName(name),
        x509.DNSName(f"www.{name}"),
        x509.IPAddress(ipaddress.ip_address(f"10.0.{at // 256}.{at % 256}")),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(issuer.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=90))
        .add_extension(x509.SubjectAlternativeName(alternative), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.KeyUsage(True, False, False, False, False, False, False, False, False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer.public_key()), critical=False)
        .sign(issuer_key, hashes.SHA256())
    )
    pem = certificate.public_bytes(serialization.Encoding.PEM) + issuer_pem
    return pem + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


for line in sys.stdin:
    start = time.process_time()
    for at in range(int(line)):
        leaf(at)
    print(time.process_time() - start, flush=True)
