"""The certificates of a cluster, and the kubeconfigs that carry them."""

import base64
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from testcluster.errors import ClusterError

OPENSSL_CONFIG = """\
[req]
distinguished_name = subject
prompt = no
[subject]
[ca]
basicConstraints = critical, CA:TRUE
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[server]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = serverAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
subjectAltName = IP:ADDRESS, IP:10.96.0.1, DNS:localhost, DNS:kubernetes, DNS:kubernetes.default.svc
[client]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = clientAuth
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
"""

# The section of the configuration above that each certificate follows, and its subject. RBAC's bootstrap roles know the
# two components by these names; system:masters is all-powerful without any role.
CERTIFICATES = {
    "apiserver": ("server", "/CN=kube-apiserver"),
    "admin": ("client", "/O=system:masters/CN=admin"),
    "kube-controller-manager": ("client", "/CN=system:kube-controller-manager"),
    "kube-scheduler": ("client", "/CN=system:kube-scheduler"),
}


def make_pki(pki: Path, address: str, users: Mapping[str, str]) -> None:
    """Makes one authority, the API server's certificate, client certificates and the service accounts' key.

    What the folder already holds stays as it is.

    Args:
        pki: Folder for all of them.
        address: Where the API server listens.
        users: Client certificates beside those of CERTIFICATES: the name of the file, and the subject.
    """
    pki.mkdir(parents=True, mode=0o700, exist_ok=True)
    (pki / "openssl.cnf").write_text(OPENSSL_CONFIG.replace("ADDRESS", address))
    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-config", "openssl.cnf")
    if not (pki / "sa.key").exists():
        _openssl(pki, "req", "-x509", *key, "-days", "3650", "-extensions", "ca", "-subj", "/CN=control-plane",
                 "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip
        # After the authority, because its presence says that the authority is there.
        _openssl(pki, "ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", "sa.key")
    certificates = CERTIFICATES | {name: ("client", subject) for name, subject in users.items()}
    for serial, (name, (section, subject)) in enumerate(certificates.items(), start=1):
        if (pki / f"{name}.crt").exists():
            continue
        _openssl(pki, "req", "-new", *key, "-subj", subject, "-keyout", f"{name}.key", "-out", f"{name}.csr")
        _openssl(pki, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-set_serial", str(serial),
                 "-days", "3650", "-extfile", "openssl.cnf", "-extensions", section, "-out", f"{name}.crt")  # fmt: skip


def _openssl(pki: Path, *arguments: str) -> None:
    try:
        done = subprocess.run(["openssl", *arguments], cwd=pki, capture_output=True, text=True)
    except FileNotFoundError:
        raise ClusterError("needs the program openssl to make certificates, and it is not in PATH") from None
    if done.returncode != 0:
        raise ClusterError(f"openssl {' '.join(arguments)} failed: {done.stderr.strip()}")


def write_kubeconfig(path: Path, pki: Path, user: str, server: str) -> None:
    """Writes a kubeconfig with everything inside it, so that the file can be copied elsewhere."""

    def inline(name: str) -> str:
        return base64.b64encode((pki / name).read_bytes()).decode()

    cluster = {"server": server, "certificate-authority-data": inline("ca.crt")}
    credentials = {"client-certificate-data": inline(f"{user}.crt"), "client-key-data": inline(f"{user}.key")}
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "test",
        "clusters": [{"name": "test", "cluster": cluster}],
        "users": [{"name": user, "user": credentials}],
        "contexts": [{"name": "test", "context": {"cluster": "test", "user": user}}],
    }
    # JSON is YAML, and the standard library has no writer of YAML.
    path.touch(mode=0o600)
    path.write_text(json.dumps(config, indent=2))
