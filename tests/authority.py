"""A certificate authority for tests, and whom it vouches for; another, whom nobody trusts."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.peers import need

_NEW = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")


def make_authority(folder: Path) -> Path:
    """`ca.pem`; `server` (localhost, 127.0.0.1), `web` and `old` (out of date), each as `.crt`, `.key` and both in
    `.pem`; `stranger.pem`, which vouches for itself."""
    program = need("openssl")

    def openssl(*words: str) -> None:
        subprocess.run([program, *words], cwd=folder, check=True, capture_output=True)

    openssl(*_NEW, "-x509", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=authority", "-days", "2")
    openssl(*_NEW, "-x509", "-keyout", "stranger.key", "-out", "stranger.crt", "-subj", "/CN=localhost", "-days", "2")
    for number, (name, names) in enumerate(
        {"server": "DNS:localhost,IP:127.0.0.1", "web": "DNS:web.example", "old": "DNS:old.example"}.items(), 1
    ):
        (folder / "names").write_text(f"subjectAltName={names}\n")
        openssl(*_NEW, "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-out", f"{name}.crt",
                "-days", "-1" if name == "old" else "2", "-extfile", "names", "-set_serial", str(number))  # fmt: skip
    for name in ("server", "web", "old", "stranger"):
        (folder / f"{name}.pem").write_text((folder / f"{name}.crt").read_text() + (folder / f"{name}.key").read_text())
    return folder
