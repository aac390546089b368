"""Three peers that talk to nobody else: a shared secret, and TLS with a certificate for each of them.

Here they run in one process, and the certificates are made on the fly by the openssl command; where that is missing,
the example goes on with the secret alone. Yours come from your own authority, and stay where the peers can read them.
"""

import logging
import secrets
import shutil
import ssl
import subprocess
import tempfile
from pathlib import Path

import structlog
import trio

from replikv import AuthenticationError, Cluster, TcpTransport

MEMBERS = {"a": "127.0.0.1:7031", "b": "127.0.0.1:7032", "c": "127.0.0.1:7033"}


def openssl(directory: Path, command: str) -> None:
    subprocess.run(["openssl", *command.split()], cwd=directory, check=True, capture_output=True, timeout=60)


def make_certificates(directory: Path) -> None:
    """An authority for this cluster alone, and for each peer a certificate with its node id and its host in it."""
    new_key = "-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes"
    openssl(directory, f"req -x509 {new_key} -keyout ca.key -out ca.pem -subj /CN=authority -days 30")
    for node_id, address in MEMBERS.items():
        host = address.rpartition(":")[0]
        (directory / f"{node_id}.ext").write_text(f"subjectAltName = DNS:{node_id}, IP:{host}\n")
        openssl(directory, f"req -new {new_key} -keyout {node_id}.key -out {node_id}.csr -subj /CN={node_id}")
        openssl(
            directory,
            f"x509 -req -in {node_id}.csr -CA ca.pem -CAkey ca.key -CAcreateserial -out {node_id}.pem"
            f" -extfile {node_id}.ext -days 30",
        )


def contexts(directory: Path, node_id: str) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A context for accepting and one for dialing. Both trust this cluster's authority, and nobody else."""
    pair = (ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT))
    for context in pair:
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED  # of whoever dials, too: by default nobody asks
        context.load_verify_locations(directory / "ca.pem")
        context.load_cert_chain(directory / f"{node_id}.pem", directory / f"{node_id}.key")
    return pair


async def main(directory: Path) -> None:
    secret = secrets.token_urlsafe(32)  # yours is drawn once, and read from a file or the environment
    with_tls = shutil.which("openssl") is not None
    if with_tls:
        await trio.to_thread.run_sync(make_certificates, directory)

    def transport(node_id: str, secret: str = secret) -> TcpTransport:
        if not with_tls:
            return TcpTransport(secret=secret)
        return TcpTransport(secret=secret, tls=contexts(directory, node_id), tls_names=True)

    async with (
        Cluster("a", members=MEMBERS, transport=transport("a")) as a,
        Cluster("b", members=MEMBERS, transport=transport("b")) as b,
        Cluster("c", members=MEMBERS, transport=transport("c")),
    ):
        await a.store.put("flags/dark-mode", True)
        print("b reads", await b.store.get("flags/dark-mode"), "over", "TLS" if with_tls else "sealed frames")

        nothing, stolen = TcpTransport(), transport("c", secret="a guess of 16 bytes or more")
        for name, stranger in (("without credentials", nothing), ("with a certificate that was stolen", stolen)):
            try:
                async with Cluster("d", address="127.0.0.1:7034", join=[MEMBERS["a"]], transport=stranger):
                    print("a stranger has joined")
            except AuthenticationError as error:
                print(f"a stranger {name} was refused: {error}")
        print("members:", sorted(a.status().members))


if __name__ == "__main__":
    # replikv logs through structlog, which your application configures: here, errors only.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with tempfile.TemporaryDirectory() as temporary:
        trio.run(main, Path(temporary))
