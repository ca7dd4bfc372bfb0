"""What INFO says, and which servers will do."""

import pytest

from penstock.adapters.redis.inspection import Server, complain_about_eviction, complain_about_server, read_info

INFO = (
    b"# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n\r\n# Replication\r\nrole:master\r\n\r\n# Memory\r\n"
    b"maxmemory:0\r\nmaxmemory_policy:noeviction\r\n\r\n# Cluster\r\ncluster_enabled:0\r\n"
)


def test_info_is_read() -> None:
    """Version, run id, role, cluster and eviction come from their lines."""
    assert read_info(INFO) == Server("7.0.15", "abc", is_primary=True, is_cluster=False, eviction="noeviction")
    other = INFO.replace(b"role:master", b"role:slave").replace(b"cluster_enabled:0", b"cluster_enabled:1")
    server = read_info(other.replace(b"noeviction", b"volatile-lru"))
    assert (server.is_primary, server.is_cluster, server.eviction) == (False, True, "volatile-lru")


@pytest.mark.parametrize(
    ("version", "fits"),
    [
        ("6.2.0", True),
        ("7.0.15", True),
        ("8.4", True),
        ("10.0.1", True),
        ("6.0.16", False),
        ("5.0.7", False),
        ("", False),
    ],
)
def test_old_servers_are_refused(version: str, fits: bool) -> None:
    """6.2 and later will do, and numbers are compared as numbers."""
    server = read_info(INFO.replace(b"7.0.15", version.encode()))
    complaint = complain_about_server(server)
    assert (not complaint) is fits
    if not fits:
        assert f"expected Redis 6.2 or later, or Valkey, got version {version}" in complaint


def test_a_replica_is_refused() -> None:
    """Who refuses writes cannot count."""
    assert "name the primary" in complain_about_server(read_info(INFO.replace(b"role:master", b"role:slave")))


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random", "volatile-ttl", "volatile-lfu", "allkeys-lfu"])
def test_every_policy_that_may_evict_is_complained_of(policy: str) -> None:
    """Limiter keys have an expiry, so the volatile policies may take them as well."""
    complaint = complain_about_eviction(read_info(INFO.replace(b"noeviction", policy.encode())))
    assert f"expected maxmemory-policy noeviction, got {policy}" in complaint
    assert complain_about_eviction(read_info(INFO)) == ""
