"""From the arguments of a Cluster to a peer: checked against each other, and against the disk."""

from __future__ import annotations

import os
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path

import trio

from replikv.errors import ConfigurationError
from replikv.machine.base import StateMachine
from replikv.peer.admission import cluster_id_of
from replikv.peer.peer import Joining, Peer, own_identity
from replikv.peer.requests import NODE_ID_BYTES_MAX
from replikv.raft.entries import SnapshotMetadata
from replikv.raft.membership import Membership
from replikv.settings import Settings
from replikv.storage.base import Identity, Storage
from replikv.storage.disk import DiskStorage
from replikv.storage.memory import VolatileStorage
from replikv.transport.base import Transport
from replikv.transport.memory import MemoryTransport
from replikv.transport.tcp import TcpTransport
from replikv.version import __version__

__all__ = ["Startup", "check_address", "check_node_id"]


class Startup:
    """The arguments of a :class:`~replikv.Cluster`. Raises ConfigurationError when they contradict each other."""

    def __init__(
        self,
        *,
        node_id: str | None,
        members: Mapping[str, str] | None,
        address: str | None,
        listen: str | None,
        join: Sequence[str],
        learner: bool,
        data_dir: str | os.PathLike[str] | None,
        transport: Transport | None,
        machine: StateMachine | None,
        settings: Settings,
    ) -> None:
        if not isinstance(settings, Settings):
            raise ConfigurationError(f"settings must be a Settings, such as Settings(zone='b'), not {settings!r:.100}")
        if members is not None and not isinstance(members, Mapping):
            raise ConfigurationError(f"members must be a dict, node id -> address, not {members!r:.100}")
        if data_dir is not None and not isinstance(data_dir, str | os.PathLike):
            raise ConfigurationError(f"data_dir must be a path, not {data_dir!r:.100}")
        if machine is not None and not isinstance(machine, StateMachine):
            raise ConfigurationError(f"machine must be an instance of a subclass of StateMachine, not {machine!r:.100}")
        if machine is not None and (type(machine.version) is not int or machine.version < 1):
            raise ConfigurationError(
                f"a StateMachine has a version of at least 1, an int, not {machine.version!r:.100}"
            )
        self._settings = settings
        self._node_id = node_id
        self._members = dict(members) if members is not None else None
        self._address = address
        self._listen = listen
        self._data_dir = Path(data_dir) if data_dir is not None else None
        self._transport = transport
        self._machine = machine
        self._join = join if isinstance(join, str) else tuple(join)
        self._learner = learner
        self._check()

    def _check(self) -> None:
        node_id, members = self._node_id, self._members
        if node_id is None and self._data_dir is None:
            raise ConfigurationError("node_id is missing: a peer without a data_dir to read it from needs a name")
        if node_id is not None:
            check_node_id(node_id)
        if isinstance(self._join, str):
            raise ConfigurationError(f"join must be a list of addresses, not the str {self._join!r}")
        for joined in self._join:
            check_address("join", joined)
        if self._join and members is not None:
            raise ConfigurationError(
                "join= and members= contradict each other: members= begins a new cluster, join= enters one that runs"
            )
        if self._learner and not self._join:
            raise ConfigurationError("learner=True needs join=: the first members of a cluster vote")
        if self._join and self._address is None and self._data_dir is None:
            raise ConfigurationError("address is missing: whoever joins has to be dialed by the others")
        if self._address is not None:
            check_address(str(node_id or "this peer"), self._address)
        if members is None:
            return
        if not members:
            raise ConfigurationError("members is empty: name at least this peer, or leave members out")
        for name, address in members.items():
            check_node_id(name)
            check_address(name, address)
        if node_id is not None and node_id not in members:
            raise ConfigurationError(f"node_id {node_id!r} is not among the members {sorted(members)}")
        if node_id is not None and self._address is not None and self._address != members[node_id]:
            raise ConfigurationError(
                f"address={self._address!r} contradicts members[{node_id!r}]={members[node_id]!r}:"
                " others dial what members says; use listen= for what to bind"
            )
        addresses = list(members.values())
        if len(set(addresses)) < len(addresses):
            raise ConfigurationError(f"two members have the same address: {members}")

    async def open_storage(self) -> Storage:
        """The storage of this peer, initialized unless it is to join. Raises ConfigurationError, StorageError."""
        storage: Storage
        if self._data_dir is None:
            storage = VolatileStorage()
            if not self._join:
                self._initialize(storage)
            return storage
        settings = self._settings
        directory = self._data_dir

        def open_disk() -> Storage:
            disk = DiskStorage(
                directory, segment_bytes=settings.wal_segment_bytes, snapshots_kept=settings.snapshots_kept
            )
            try:
                if disk.identity is not None:
                    self._check_against_disk(disk.identity, directory)
                    self._move(disk, disk.identity)
                elif not self._join:
                    self._initialize(disk)
            except BaseException:
                disk.close()
                raise
            return disk

        return await trio.to_thread.run_sync(open_disk)

    def _initialize(self, storage: Storage) -> None:
        """The first start: draw an incarnation, and write down who this is and who votes."""
        node_id = self._node_id
        if node_id is None:
            raise ConfigurationError(f"node_id is missing: {self._data_dir} is empty, so this is the first start")
        address = self._address or (self._members[node_id] if self._members else "")
        if self._members is None:
            cluster_id = uuid.uuid4().hex
        else:
            cluster_id = cluster_id_of(self._members, self._settings.cluster_name)
        identity = Identity(cluster_id, node_id, storage.draw_incarnation(), address, self._listen or address)
        membership = Membership.of_voters(self._members if self._members is not None else {node_id: address})
        storage.initialize(identity, SnapshotMetadata(0, 0, membership))

    def _check_against_disk(self, identity: Identity, directory: Path) -> None:
        """A later start: what is on disk counts, and arguments that say otherwise are a mistake."""
        if self._node_id is not None and self._node_id != identity.node_id:
            raise ConfigurationError(
                f"node_id={self._node_id!r} contradicts {directory}, which belongs to {identity.node_id!r}"
            )
        if self._members is not None:
            cluster_id = cluster_id_of(self._members, self._settings.cluster_name)
            if cluster_id != identity.cluster_id:
                raise ConfigurationError(
                    f"members={sorted(self._members)} with cluster_name={self._settings.cluster_name!r} is cluster"
                    f" {cluster_id}, but {directory} belongs to cluster {identity.cluster_id}:"
                    " leave members out to go on with what is on disk"
                )
        address = (self._members or {}).get(identity.node_id)
        if self._address is None and address not in (None, identity.address):
            raise ConfigurationError(
                f"members={{{identity.node_id!r}: {address!r}}} contradicts {directory}, whose peer is known to the"
                f" others as {identity.address!r}: use address= to move it, or listen= to bind something else"
            )

    def _move(self, storage: Storage, identity: Identity) -> None:
        """A later start under another address: the others learn of it from this peer itself."""
        address = self._address or identity.address
        # Who said nothing else has always bound what the others dial.
        listen = self._listen or (address if identity.listen == identity.address else identity.listen)
        if (address, listen) != (identity.address, identity.listen):
            storage.move(address, listen)

    def make_peer(self, storage: Storage) -> Peer:
        """The peer whose storage that is. Raises ConfigurationError."""
        identity = storage.identity
        joining = None
        if identity is None or self._join:
            joining = self._joining(identity)
        listen = joining.listen if joining is not None else own_identity(storage).listen
        # Without an address nobody can dial this peer: it is alone, and needs no socket.
        transport = self._transport or (TcpTransport() if listen else MemoryTransport())
        return Peer(
            storage,
            transport,
            self._settings,
            listen=listen,
            joining=joining,
            machine=self._machine,
            version=__version__,
        )

    def _joining(self, identity: Identity | None) -> Joining:
        members = [address for address in self._join if address != self._address]
        if identity is not None:
            return Joining(identity.node_id, identity.address, identity.listen, members, self._learner)
        if self._node_id is None:
            raise ConfigurationError(
                f"node_id is missing: {self._data_dir} is empty, so this peer has to join under one"
            )
        if self._address is None:
            raise ConfigurationError("address is missing: whoever joins has to be dialed by the others")
        if not members:
            raise ConfigurationError(f"join={list(self._join)} names nobody but this peer: give addresses of members")
        return Joining(self._node_id, self._address, self._listen or self._address, members, self._learner)


def check_node_id(node_id: object) -> None:
    """Raise ConfigurationError unless this can name a peer."""
    if not isinstance(node_id, str) or not node_id.isprintable() or not 1 <= len(node_id.encode()) <= NODE_ID_BYTES_MAX:
        raise ConfigurationError(
            f"a node id must be a str of 1 to {NODE_ID_BYTES_MAX} bytes of printable characters, not {node_id!r}"
        )


def check_address(node_id: str, address: object) -> None:
    """Raise ConfigurationError unless this may be an address; what it means is the transport's to say."""
    if not isinstance(address, str) or not address or not address.isprintable():
        raise ConfigurationError(
            f"the address of {node_id!r} must be a str, as in '10.0.0.1:7001', not {address!r:.100}"
        )
