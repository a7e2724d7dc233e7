"""Which scheme of a model is used."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from manager.config import Scheme
from manager.scheduling import choose_scheme


def scheme(name: str) -> Scheme:
    return Scheme(
        name=name,
        required_devices=(),
        script_path=None,
        command=("server",),
        memory_mb={},
        env={},
        cwd=Path(),
    )


def test_the_first_scheme_of_the_file_is_used_where_nothing_speaks_against_it() -> None:
    asked = []

    def obstacle(candidate: Scheme) -> None:
        asked.append(candidate.name)

    choice = choose_scheme([scheme("dual"), scheme("single")], obstacle)
    assert choice.scheme is not None
    assert choice.scheme.name == "dual"
    assert choice.passed_over == {}
    assert asked == ["dual"]


def test_a_model_without_schemes_has_none() -> None:
    choice = choose_scheme([], lambda _: None)
    assert choice.scheme is None
    assert choice.passed_over == {}


@given(st.lists(st.booleans(), max_size=8))
def test_the_first_usable_one_is_chosen_and_each_before_it_has_its_reason(
    usable: list[bool],
) -> None:
    schemes = [scheme(f"s{number}") for number in range(len(usable))]
    reasons = {
        candidate.name: None if good else f"{candidate.name} is not possible"
        for candidate, good in zip(schemes, usable, strict=True)
    }
    choice = choose_scheme(schemes, lambda candidate: reasons[candidate.name])
    first = usable.index(True) if True in usable else len(usable)
    assert choice.scheme == (schemes[first] if first < len(usable) else None)
    assert choice.passed_over == {f"s{n}": f"s{n} is not possible" for n in range(first)}
