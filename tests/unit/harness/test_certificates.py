"""Everybody in a cluster is known by a certificate of its own authority."""

import ssl
from ipaddress import ip_address
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from harness.certificates import Authority


def test_a_user_certificate_names_user_and_groups_and_is_signed_by_the_authority(tmp_path: Path) -> None:
    Authority.create().pair.write(tmp_path, "ca")
    authority = Authority.load(tmp_path)
    certificate = x509.load_pem_x509_certificate(authority.client("alice", ["dev", "ops"]).certificate)
    names = {attribute.value for attribute in certificate.subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)}
    assert names == {"dev", "ops"}
    assert certificate.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "alice"
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(authority.pair.certificate))


def test_a_server_certificate_holds_its_addresses() -> None:
    pair = Authority.create().server("api", ["127.0.0.1"], ["localhost"])
    certificate = x509.load_pem_x509_certificate(pair.certificate)
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1")]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_keys_are_for_their_owner_only_and_python_can_load_them(tmp_path: Path) -> None:
    authority = Authority.create()
    authority.client("me").write(tmp_path, "me")
    assert (tmp_path / "me.key").stat().st_mode & 0o077 == 0
    ssl.create_default_context().load_cert_chain(tmp_path / "me.crt", tmp_path / "me.key")
    public = x509.load_pem_x509_certificate(authority.pair.certificate).public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
