"""OCI image archives: digests, manifest, config and layer."""

import hashlib
import json
import tarfile
from pathlib import Path

from harness import oci_archive
from harness.oci_archive import Entry


def test_blobs_are_content_addressed_and_layer_contains_entries(tmp_path: Path) -> None:
    path = tmp_path / "image.tar"
    entries = [Entry("etc"), Entry("etc/name", 0o644, b"me"), Entry("bin", target="usr/bin")]
    oci_archive.write(path, "localhost/x:1", entries, command=["/x"], env={"A": "b"})
    with tarfile.open(path) as tar:
        content = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
        for name, blob in content.items():
            if name.startswith("blobs/"):
                assert name == f"blobs/sha256/{hashlib.sha256(blob).hexdigest()}"
    (descriptor,) = json.loads(content["index.json"])["manifests"]
    assert descriptor["annotations"] == {"io.containerd.image.name": "localhost/x:1"}
    manifest = json.loads(content[f"blobs/{descriptor['digest'].replace(':', '/')}"])
    config = json.loads(content[f"blobs/{manifest['config']['digest'].replace(':', '/')}"])
    assert config["config"] == {"Entrypoint": ["/x"], "Env": ["A=b"]}
    (tmp_path / "layer.tar").write_bytes(content[f"blobs/{manifest['layers'][0]['digest'].replace(':', '/')}"])
    with tarfile.open(tmp_path / "layer.tar") as layer:
        assert [(member.name, member.mode, member.linkname) for member in layer] == [
            ("etc", 0o755, ""),
            ("etc/name", 0o644, ""),
            ("bin", 0o755, "usr/bin"),
        ]


def test_archive_is_reproducible(tmp_path: Path) -> None:
    for name in ("one", "two"):
        oci_archive.write(tmp_path / name, "localhost/x:1", [Entry("etc")])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
