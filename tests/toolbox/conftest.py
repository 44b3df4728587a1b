"""What the tests of commands share."""

import contextlib

import pytest


@pytest.fixture(scope="module")
def scheduler():
    """Of a cluster with three workers in this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=3, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address


@pytest.fixture
def threads_as_workers(monkeypatch):
    """Workers that a benchmark starts are threads of this process."""
    from distributed import Client, LocalCluster

    @contextlib.contextmanager
    def here(environments):
        workers = {"n_workers": len(environments), "processes": False, "threads_per_worker": 1}
        with LocalCluster(dashboard_address=None, **workers) as cluster, Client(cluster) as client:
            yield client

    monkeypatch.setattr("toolbox.tasks.scale.cluster.processes", here)
