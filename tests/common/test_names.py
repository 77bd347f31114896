"""What is said of unknown names, and how known ones are listed."""

from __future__ import annotations

from oneshot_ml2.common.names import listing, unknown


def test_the_closest_name_is_offered() -> None:
    assert unknown("tuner", "randon", ["autotvm", "random"]) == (
        "no tuner 'randon'; did you mean 'random'? There are: autotvm, random"
    )


def test_without_a_close_one_all_are_listed_in_their_order() -> None:
    assert unknown("tuner", "zzz", iter(["b", "a"])) == "no tuner 'zzz'. There are: b, a"
    assert unknown("tuner", "", []) == "no tuner ''. There are: none"
    assert "did you mean" in unknown("layer", "stem", ["block.stem"], cutoff=0.4)


def test_other_names_that_are_taken_may_be_the_closest() -> None:
    assert unknown("weights", "defualt", ["some@1"], also=["default"]) == (
        "no weights 'defualt'; did you mean 'default'? There are: some@1"
    )


def test_listing_has_two_columns() -> None:
    assert listing({"a": "one", "long": "two"}) == "  a     one\n  long  two"
    assert listing({}) == ""
