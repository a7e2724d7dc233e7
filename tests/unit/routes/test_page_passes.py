"""Passes in the addresses of servers' own pages."""

from __future__ import annotations

from routes.page_passes import HOURS, PagePasses, has_pass

SESSION = {"account": "ann", "generation": 1}


class Now:
    seconds = 0.0


def test_a_pass_is_for_one_model_and_for_hours() -> None:
    passes = PagePasses(lambda: Now.seconds)
    one, other = (passes.issue(SESSION, model) for model in ("a", "b"))
    assert one != other
    for path in (one, f"{one}/", f"{one}/deep/path"):
        found = passes.find(path)
        assert found is not None
        assert (found.model, found.session) == ("a", SESSION)
    Now.seconds += HOURS * 3600 - 1
    assert passes.find(one) is not None
    Now.seconds += 1
    assert passes.find(one) is None


def test_nothing_near_a_pass_is_one() -> None:
    passes = PagePasses()
    good = passes.issue(SESSION, "a")
    code = good.rpartition("@")[2]
    for path in (
        f"/upstream/{code}/",
        f"/upstream/@{code[:-1]}/",
        f"/upstream/@{code}x/",
        f"/upstream/a/@{code}/",
        f"/api/@{code}/",
        f"/upstream/@{'A' * 32}/",
        "/upstream/@/",
    ):
        assert passes.find(path) is None
    assert has_pass(good)
    assert not has_pass("/upstream/@team/x")  # the name of a model, it may be


def test_the_oldest_give_way_so_that_they_stay_few() -> None:
    passes = PagePasses()
    first, *others = (passes.issue(SESSION, "a") for _ in range(1001))
    assert passes.find(first) is None
    assert all(passes.find(path) for path in others)


def test_who_signs_out_ends_the_passes_of_the_account_and_no_others() -> None:
    passes = PagePasses()
    ann, ben = {"account": "ann", "generation": 1}, {"account": "ben", "generation": 1}
    first, second, others = (passes.issue(one, "M") for one in (ann, {**ann, "csrf": "x"}, ben))
    passes.drop(ann)
    assert passes.find(first) is None
    assert passes.find(second) is None
    assert passes.find(others) is not None
