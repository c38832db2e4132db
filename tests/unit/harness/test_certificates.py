"""Certificates of users and servers, and the permissions of key files."""

import ssl
from ipaddress import ip_address
from pathlib import Path

import trustme
from cryptography import x509
from cryptography.x509.oid import NameOID

from harness.certificates import issue, write


def parsed(pair: trustme.LeafCert) -> x509.Certificate:
    return x509.load_pem_x509_certificate(pair.cert_chain_pems[0].bytes())


def test_user_certificate_has_user_and_group_and_is_signed_by_the_ca() -> None:
    ca = trustme.CA()
    certificate = parsed(issue(ca, "alice", "dev"))
    subject = certificate.subject
    assert [it.value for it in subject.get_attributes_for_oid(NameOID.ORGANIZATION_NAME)] == ["dev"]
    assert [it.value for it in subject.get_attributes_for_oid(NameOID.COMMON_NAME)] == ["alice"]
    certificate.verify_directly_issued_by(x509.load_pem_x509_certificate(ca.cert_pem.bytes()))


def test_server_certificate_has_subject_alternative_names() -> None:
    certificate = parsed(issue(trustme.CA(), "api", addresses=["127.0.0.1", "localhost"]))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1")]
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]


def test_key_files_are_readable_only_by_the_owner_and_loadable(tmp_path: Path) -> None:
    ca = trustme.CA()
    write(tmp_path, "ca", ca)
    write(tmp_path, "me", issue(ca, "me"))
    assert (tmp_path / "ca.key").stat().st_mode & 0o077 == 0
    assert (tmp_path / "me.key").stat().st_mode & 0o077 == 0
    ssl.create_default_context(cafile=tmp_path / "ca.crt").load_cert_chain(tmp_path / "me.crt", tmp_path / "me.key")
