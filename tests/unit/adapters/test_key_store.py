"""The store of keys: what is added is read, what is revoked never again, each change is one revision, on the disk."""

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from penstock.adapters.sql.keys import KeyStore, StoredKey
from penstock.core.errors import ConfigError
from penstock.core.keys import KeyRecord, KeySnapshot
from penstock.core.limits import Level, Principal, RateLimit

LIMIT = RateLimit("key", Level.USER, 5, 1_000_000, 7)
ALICE = Principal("a" * 12, "acme", "alice", is_batch=True, models=("m",), tier="pro", weight=2.5, limits=(LIMIT,))
BOB = Principal("b" * 12, "acme", "bob")
DIGEST = bytes(range(32))


@pytest.fixture
def store(tmp_path: Path) -> KeyStore:
    return KeyStore(tmp_path / "new ? dir" / "keys.db")


def test_there_are_no_keys_before_the_first(store: KeyStore) -> None:
    """Reading a store that nobody has made finds nothing and makes nothing."""
    assert store.read() == KeySnapshot(0, ())
    assert store.read(0) is None
    assert store.list_keys() == []
    assert store.revoke(BOB.key_id, 1) is None
    assert not store.path.parent.exists()


def test_what_is_added_is_read(store: KeyStore) -> None:
    """Keys come back whole, oldest first, each with a revision of its own, also to another process."""
    assert (store.add(ALICE, DIGEST, 10), store.add(BOB, bytes(32), 20)) == (1, 2)
    again = KeyStore(store.path)
    snapshot = again.read()
    assert snapshot is not None
    assert snapshot.revision == 2
    assert [record.to_principal() for record in snapshot.records] == [ALICE, BOB]
    assert [record.digest for record in snapshot.records] == [DIGEST, bytes(32)]
    assert again.list_keys() == [StoredKey(ALICE, 10, None), StoredKey(BOB, 20, None)]


def test_nothing_new_is_not_read_again(store: KeyStore) -> None:
    """Who names the revision it knows gets None until the next change."""
    store.add(BOB, DIGEST, 10)
    assert store.read(1) is None
    store.revoke(BOB.key_id, 20)
    assert store.read(1) == KeySnapshot(2, ())


def test_a_revoked_key_loses_its_hash(store: KeyStore) -> None:
    """Revoking is a revision, once; the row stays for people, without the hash, and its id is not given out again."""
    store.add(ALICE, DIGEST, 10)
    store.add(BOB, DIGEST, 20)
    assert store.revoke(ALICE.key_id, 30) == 3
    assert store.revoke(ALICE.key_id, 40) == 3
    assert store.revoke("c" * 12, 40) is None
    assert store.read() == KeySnapshot(3, (KeyRecord.from_principal(BOB, DIGEST),))
    assert store.list_keys() == [StoredKey(ALICE, 10, 30), StoredKey(BOB, 20, None)]
    with sqlite3.connect(store.path) as connection:
        digests = connection.execute("SELECT digest FROM keys ORDER BY number").fetchall()
    connection.close()
    assert digests == [(None,), (DIGEST,)]
    with pytest.raises(ConfigError):
        store.add(ALICE, DIGEST, 50)
    assert store.read(3) is None


def test_the_file_is_its_owners(store: KeyStore) -> None:
    """Neither the file nor the directory made for it can be read by others, and no other file is left beside it."""
    store.add(ALICE, DIGEST, 10)
    assert stat.S_IMODE(store.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(store.path.parent.stat().st_mode) == 0o700
    assert [path.name for path in store.path.parent.iterdir()] == ["keys.db"]


def test_changes_at_once_are_revisions_of_their_own(store: KeyStore) -> None:
    """Writers that meet, the first one included, wait for each other: no revision is given twice, no key is lost."""

    def add(number: int) -> int:
        return KeyStore(store.path).add(Principal(f"{number:012d}", "t", "u"), DIGEST, 0)

    with ThreadPoolExecutor(4) as pool:
        revisions = list(pool.map(add, range(12)))
    assert sorted(revisions) == list(range(1, 13))
    assert len(store.list_keys()) == 12


def test_commits_are_on_the_disk(store: KeyStore) -> None:
    """The file is in WAL mode, and a transaction of ours is synchronous: a crash takes no revocation back."""
    store.add(ALICE, DIGEST, 10)
    with sqlite3.connect(store.path) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    connection.close()
    with store._writing.begin() as transaction:
        assert transaction.exec_driver_sql("PRAGMA synchronous").scalar_one() == 2  # FULL


@pytest.mark.parametrize("content", [b"no database at all" * 100, b""])
def test_a_file_that_is_no_store_is_named(store: KeyStore, content: bytes) -> None:
    """What cannot be read is an error that names the file and what to do, never a store without keys."""
    store.path.parent.mkdir()
    store.path.write_bytes(content)
    for call in (store.read, store.list_keys, lambda: store.add(ALICE, DIGEST, 1)):
        with pytest.raises(ConfigError, match=r"keys\.db: expected a store of keys .* restore the file") as caught:
            call()
        assert "INSERT" not in caught.value.message


def test_a_store_of_another_version_is_refused(store: KeyStore) -> None:
    """A store that a later program made is not misread."""
    store.add(ALICE, DIGEST, 10)
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE store SET schema = 2")
    connection.close()
    with pytest.raises(ConfigError, match="expected a store of keys of version 1, got 2"):
        store.read()


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    """Where no file can be made the error names it and the system's reason."""
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"keys\.db: expected to write keys there, got: "):
        KeyStore(tmp_path / "file" / "keys.db").add(ALICE, DIGEST, 1)
