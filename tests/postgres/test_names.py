import random
import string

import pytest

from harness.config.project import checkout_id
from harness.postgres import names
from harness.postgres.names import Kind

PROJECT, RUN = "0123456789", "a" * 16


def test_every_name_that_is_built_is_parsed_back() -> None:
    project, run = "0123456789", "a" * 16
    built = {
        names.template(project, "f" * 64): (Kind.TEMPLATE, "f" * 16),
        names.building(project, "f" * 64): (Kind.BUILDING, "f" * 16),
        names.baseline(project, "f" * 64): (Kind.BASELINE, "f" * 16),
        names.spare(project, "f" * 64): (Kind.SPARE, "f" * 16),
        names.lease(project, run, "gw2", 0): (Kind.LEASE, run),
        names.kept(project, run): (Kind.KEPT, run),
        names.mark(project, run, "2_0", 3): (Kind.MARK, run),
        names.retired(project): (Kind.RETIRED, None),
    }
    for name, (kind, owner) in built.items():
        parsed = names.parse(name)
        assert parsed is not None, name
        assert (parsed.project, parsed.kind, str(parsed)) == (project, kind, name)
        assert owner is None or parsed.owner == owner


def test_names_fit_63_bytes_and_stay_distinct_whatever_the_worker_is_called() -> None:
    rng = random.Random(7)
    alphabet = string.ascii_letters + string.digits + "äöüß€ '\"/_-🐘"
    workers = {"".join(rng.choices(alphabet, k=rng.randint(1, 80))) for _ in range(2000)}
    workers |= {"ü" * 63, "gw1", "GW1", "gw1_0", "1", "10", "1_0"}
    built = {(w, i): names.lease("0123456789", "b" * 16, w, i) for w in workers for i in (0, 1, 10)}
    assert max(len(name.encode()) for name in built.values()) <= 63 - len("_n")
    assert len(set(built.values())) == len(built)
    assert all(names.parse(name) is not None for name in built.values())


def test_a_lease_name_stays_readable() -> None:
    assert names.lease("0123456789", "c" * 16, "gw2", 0) == "pgh_0123456789_l_cccccccccccccccc_gw2_0"


def test_foreign_names_are_not_ours() -> None:
    for name in (
        "postgres",
        "pgh_",
        "pgh_0123456789_l_short",
        "pgh_0123456789_q_aaaaaaaaaaaaaaaa",
        "xpgh_0123456789_t_aaaaaaaaaaaaaaaa",
        "pgh_0123456789_t_aaaaaaaaaaaaaaaa; drop",
        "pgh_0123456789_t_AAAAAAAAAAAAAAAA",
    ):
        assert names.parse(name) is None, name


def test_checkouts_differ_by_machine_and_by_path() -> None:
    ids = {
        checkout_id(machine, root)
        for machine in ("m1", "m2")
        for root in ("/a/app", "/b/app", "/a/app ", "/a'")
    }
    assert len(ids) == 8


def test_a_run_is_named_by_its_seed() -> None:
    assert names.run_id("x") == names.run_id("x") != names.run_id("y")
    assert names.run_id() != names.run_id()
    assert names.run_id("x") != names.SANDBOX


def test_a_lease_and_what_is_claimed_for_it() -> None:
    name = names.lease(PROJECT, RUN, "gw2", 1)
    parsed = names.parse(name)
    assert parsed is not None
    assert (parsed.worker, parsed.index, parsed.claiming) == ("gw2", 1, False)
    fresh = names.parse(names.claiming(name))
    assert fresh is not None
    assert (fresh.kind, fresh.owner) == (names.Kind.LEASE, RUN)
    assert (fresh.worker, fresh.index, fresh.claiming) == ("gw2", 1, True)
    assert names.claiming(name) == f"{name}_n"


@pytest.mark.parametrize("worker", ["n", "gw0", "0", "w" * 12, "a worker's word", "ends_n"])
def test_no_worker_looks_claimed(worker: str) -> None:
    parsed = names.parse(names.lease(PROJECT, RUN, worker, 0))
    assert parsed is not None
    assert not parsed.claiming
    assert parsed.worker == names.plain(worker)


def test_a_mark_and_its_lease() -> None:
    lease = names.parse(names.lease(PROJECT, RUN, "2", 0))
    assert lease is not None
    mark = names.parse(names.mark(PROJECT, RUN, lease.tail, 3))
    assert mark is not None
    assert mark.marked_lease == str(lease)
    assert (mark.worker, mark.index, mark.claiming) == ("", 0, False)
    assert lease.marked_lease == ""
