"""The line about a run's resets."""

from harness.pytest_plugin.summary import Summary


def test_the_first_reset_of_each_process_is_told_apart() -> None:
    run = Summary()
    assert run.resets() == ""
    for worker, times in {"gw0": (100.0, 1.0, 2.0), "gw1": (200.0, 3.0)}.items():
        one = Summary()
        for milliseconds in times:
            one.count("restore", milliseconds)
        run.add(worker, one.sendable())
    assert run.resets() == "5 resets, 2.0 ms each, 150 ms the first of each process (5 put back)"


def test_a_process_with_one_reset_has_no_others() -> None:
    run = Summary()
    run.count("clone", 40.0)
    assert run.resets() == "1 resets, 40 ms the first of each process (1 new clones)"
