"""Over https, the certificate decides; and nothing leads away from https."""

import datetime
import ipaddress
import ssl

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from faulty_server import FaultyServer, status
from refusals import refused
from shared_store import contents

from ltd_pipe.errors import TransferError
from ltd_pipe.labels.remote import parse_location, pull_store


@pytest.fixture
def certificate(tmp_path):
    """A certificate of 127.0.0.1 that nobody trusts, and its key, in one file."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .sign(key, hashes.SHA256())
    )
    path = tmp_path / "certificate.pem"
    text = signed.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.write_bytes(text)
    return path


@pytest.fixture
def secure(published, certificate):
    """A server of the published store that speaks TLS."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with FaultyServer(published, context) as running:
        yield running


def pull(url, target, options):
    """Fetch a store."""
    pull_store(parse_location(url), target, options)
    return contents(target)


def test_a_certificate_that_nobody_trusts_is_refused(secure, tmp_path, options):
    """At once, with where to name those to trust."""
    with refused(
        TransferError, where="MANIFEST.sha256", what="trusted", remedy="REQUESTS_CA_BUNDLE"
    ):
        pull(secure.url, tmp_path / "a.zarr", options)
    assert secure.log == []


def test_one_that_the_user_trusts_is_taken(
    secure, published, certificate, tmp_path, options, monkeypatch
):
    """By the environment, as for other programs."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    assert pull(secure.url, tmp_path / "a.zarr", options) == contents(published)


def test_a_redirection_to_plain_http_is_refused(
    secure, server, certificate, tmp_path, options, monkeypatch
):
    """The other server is not even asked."""
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(certificate))
    secure.faults["labels/c/0"] = [status(302, Location=f"{server.url}/labels/c/0")]
    with refused(TransferError, where="c/0", what="kind"):
        pull(secure.url, tmp_path / "a.zarr", options)
    assert server.log == []


def test_tls_at_a_port_without_it_is_refused(server, tmp_path, options):
    """One line, not a traceback."""
    with pytest.raises(TransferError):
        pull(server.url.replace("http://", "https://"), tmp_path / "a.zarr", options)
