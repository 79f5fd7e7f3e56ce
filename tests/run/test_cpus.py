"""Decoding processes and the memory that they share."""

from types import SimpleNamespace

from uic_core.run import cpus


def test_decoding_processes_are_as_many_as_shared_memory_holds(monkeypatch, capsys):
    batch = 10 * 2**20
    assert cpus.sharing(0, batch) == 0
    usage = SimpleNamespace(free=64 * 2**20)
    monkeypatch.setattr(cpus.shutil, "disk_usage", lambda path: usage)
    assert cpus.sharing(1, batch) == 1
    assert capsys.readouterr().out == ""
    assert cpus.sharing(8, batch) == 1
    assert "/dev/shm has room for 1 of 8 decoding processes" in capsys.readouterr().out
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")  # who share it
    assert cpus.sharing(8, batch) == 0


def test_threads_0_are_one():
    assert [cpus.workers(threads) for threads in (0, 1, 3)] == [0, 0, 2]
    with cpus.pool(0) as pool:
        assert list(pool.map(abs, [-1, -2])) == [1, 2]
