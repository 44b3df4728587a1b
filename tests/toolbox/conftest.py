"""What the tests of commands share."""

import pytest


@pytest.fixture(scope="module")
def scheduler():
    """Of a cluster with three workers in this process."""
    from distributed import LocalCluster

    with LocalCluster(
        n_workers=3, threads_per_worker=1, processes=False, dashboard_address=None
    ) as cluster:
        yield cluster.scheduler_address
