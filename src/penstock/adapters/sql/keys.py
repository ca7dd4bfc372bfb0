"""API keys in a SQLite file that the command line writes and the head reads: who has one, and the hash of its secret.

Each change and the revision it leads to are one transaction, on the disk before the call returns. A revoked key keeps
its row, so that its id is never given out again, and loses its hash, so that nothing can make it good again.
Not here: the text of a key (`policy/identifying.py`), telling gateways (`fleet/keys.py`).
Source: sqlite.org/wal.html, sqlite.org/pragma.html#pragma_synchronous.
"""

import os
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import mkstemp
from urllib.parse import quote

import msgspec
from sqlalchemy import (
    Boolean,
    Column,
    Connection,
    Engine,
    Float,
    Integer,
    LargeBinary,
    MetaData,
    NullPool,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from penstock.core.errors import ConfigError
from penstock.core.keys import KEYS_MAX, KeyRecord, KeySnapshot
from penstock.core.limits import Principal

__all__ = ["KeyStore", "StoredKey"]

# Of the tables below. A store of another version is refused rather than misread.
_SCHEMA = 1
# How long a writer waits for another; each holds the file for a few ms.
_BUSY_S = 5.0
_READ = "BEGIN"
# A writer takes its place before it reads, or two might count up from the same revision.
_WRITE = "BEGIN IMMEDIATE"

_metadata = MetaData()
_keys = Table(
    "keys",
    _metadata,
    Column("number", Integer, primary_key=True),  # in order of creation
    Column("key_id", Text, nullable=False, unique=True),
    Column("digest", LargeBinary),  # null: revoked
    Column("tenant", Text, nullable=False),
    Column("user", Text, nullable=False),
    Column("is_batch", Boolean, nullable=False),
    Column("models", Text),  # JSON list; null: all
    Column("tier", Text, nullable=False),
    Column("weight", Float, nullable=False),
    Column("limits", Text, nullable=False),  # JSON list of `RateLimit`
    Column("created_us", Integer, nullable=False),
    Column("revoked_us", Integer),
)
_store = Table(
    "store",
    _metadata,
    Column("revision", Integer, nullable=False),
    Column("schema", Integer, nullable=False),
)
# What a `KeyRecord` is made of, in its order.
_record = [_keys.c[name] for name in KeyRecord.__struct_fields__]


@dataclass(frozen=True, slots=True)
class StoredKey:
    """One key as people see it: times are wall-clock µs since the epoch, `revoked_us` None for one that is good."""

    principal: Principal
    created_us: int
    revoked_us: int | None


class KeyStore:
    """The keys in one file. Opens it for each call: between calls there is nothing to close.

    Args:
        path: The file, on a local disk (SQLite's locks do not hold on network ones). Made by the first `add`.
        busy_s: How long to wait for another process that writes.
    """

    def __init__(self, path: Path, *, busy_s: float = _BUSY_S) -> None:
        self.path = path
        self._reading = _make_engine(path, busy_s, _READ)
        self._writing = _make_engine(path, busy_s, _WRITE)

    def read(self, unless_revision: int | None = None) -> KeySnapshot | None:
        """Return the keys that are good; None if they are still those of `unless_revision`.

        Raises:
            ConfigError: The file cannot be read or is no store of ours; the message says what to do.
        """
        if not self.path.exists():
            return None if unless_revision == 0 else KeySnapshot()
        with self._transaction(self._reading) as connection:
            revision = _revision(connection)
            if revision == unless_revision:
                return None
            query = select(*_record).where(_keys.c.digest.is_not(None)).order_by(_keys.c.number)
            return KeySnapshot(revision, tuple([KeyRecord(*row) for row in connection.execute(query)]))

    def list_keys(self) -> list[StoredKey]:
        """Return every key there ever was, oldest first. Raises as `read`."""
        if not self.path.exists():
            return []
        with self._transaction(self._reading) as connection:
            query = select(*_record, _keys.c.created_us, _keys.c.revoked_us).order_by(_keys.c.number)
            rows = connection.execute(query).all()
            return [StoredKey(KeyRecord(*row[:-2]).to_principal(), row.created_us, row.revoked_us) for row in rows]

    def add(self, principal: Principal, digest: bytes, now_us: int) -> int:
        """Store a new key; return the revision from which on it is good.

        Args:
            principal: Its `key_id` was never used before.
            digest: Hash of its secret.
            now_us: Wall clock.

        Raises:
            ConfigError: As `read`; or there are as many keys as gateways can hold: revoke some.
        """
        self._make_file()
        with self._transaction(self._writing) as connection:
            revision = _revision(connection) + 1
            count = select(func.count()).where(_keys.c.digest.is_not(None))
            if connection.execute(count).scalar_one() >= KEYS_MAX:
                raise ConfigError(f"{self.path}: expected at most {KEYS_MAX} keys that are good; revoke some")
            row = msgspec.structs.asdict(KeyRecord.from_principal(principal, digest)) | {"created_us": now_us}
            connection.execute(insert(_keys).values(row))
            connection.execute(update(_store).values(revision=revision))
        return revision

    def revoke(self, key_id: str, now_us: int) -> int | None:
        """Make a key good for nothing; return the revision from which on it is, or None if there is no such key.

        Of one that is revoked already: the present revision, which is no earlier. Raises as `read`.
        """
        if not self.path.exists():
            return None
        with self._transaction(self._writing) as connection:
            revision = _revision(connection)
            found = connection.execute(select(_keys.c.revoked_us).where(_keys.c.key_id == key_id)).one_or_none()
            if found is None:
                return None
            if found.revoked_us is None:
                revision += 1
                changed = update(_keys).where(_keys.c.key_id == key_id).values(digest=None, revoked_us=now_us)
                connection.execute(changed)
                connection.execute(update(_store).values(revision=revision))
        return revision

    # -- the file

    def _make_file(self) -> None:
        """Make the file, for nobody but this user, whole or not at all: whoever reads it finds its tables."""
        try:
            if self.path.exists():
                return
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            # Of mode 0600; SQLite gives the files it keeps beside this one the same.
            descriptor, draft = mkstemp(prefix=f"{self.path.name}.", dir=self.path.parent)
            os.close(descriptor)
            try:
                _fill(Path(draft))
                self.path.hardlink_to(draft)
            except FileExistsError:
                pass  # another process was quicker: its file is as good
            finally:
                Path(draft).unlink()
            _sync_directory(self.path.parent)
        except OSError as error:
            raise ConfigError(f"{self.path}: expected to write keys there, got: {error.strerror}") from error

    @contextmanager
    def _transaction(self, engine: Engine) -> Iterator[Connection]:
        try:
            with engine.begin() as connection:
                row = connection.execute(select(_store.c.schema)).one()
                if row.schema != _SCHEMA:
                    raise ConfigError(f"{self.path}: expected a store of keys of version {_SCHEMA}, got {row.schema}")
                yield connection
        except (SQLAlchemyError, msgspec.DecodeError) as error:
            # Of a database error only the driver's own words: SQLAlchemy's add the statement and its parameters.
            reason = error.orig if isinstance(error, DBAPIError) else error
            raise ConfigError(
                f"{self.path}: expected a store of keys that can be read and written, got: {reason}; restore the file"
                " from a copy, or move it away and create the keys anew"
            ) from None


def _make_engine(path: Path, busy_s: float, begin: str) -> Engine:
    """Return an engine whose transactions begin with `begin` and are on the disk when they have ended.

    It connects anew for each: a file that was moved away or restored is noticed, and there is nothing to close.
    """

    def connect() -> sqlite3.Connection:
        # `mode=rw` makes no file that was not there. Without an isolation level the driver begins nothing by itself.
        uri = f"file:{quote(str(path))}?mode=rw"
        connection = sqlite3.connect(uri, uri=True, timeout=busy_s, isolation_level=None)
        connection.execute("PRAGMA synchronous=FULL")
        return connection

    engine = create_engine("sqlite://", creator=connect, poolclass=NullPool)
    event.listen(engine, "begin", lambda connection: connection.exec_driver_sql(begin))
    return engine


def _fill(path: Path) -> None:
    """Make an empty store of an empty file."""
    connection = sqlite3.connect(path)
    try:
        # Readers and a writer do not wait for each other; stays with the file.
        connection.execute("PRAGMA journal_mode=WAL")
    finally:
        connection.close()
    with _make_engine(path, _BUSY_S, _WRITE).begin() as transaction:
        _metadata.create_all(transaction)
        transaction.execute(insert(_store).values(revision=0, schema=_SCHEMA))


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _revision(connection: Connection) -> int:
    return int(connection.execute(select(_store.c.revision)).scalar_one())
