"""The data that cross between a solution and its tests: plain values come back equal, nothing else comes at all."""

from __future__ import annotations

import enum
import json
import math
from collections import Counter, OrderedDict, defaultdict, deque, namedtuple
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mify.eval.inside.apart import NotPlainDataError, decode, encode


def refuse(value: Any) -> Any:
    raise NotPlainDataError(type(value).__name__)


def there_and_back(value: Any) -> Any:
    return decode(json.loads(json.dumps(encode(value, refuse))), refuse)


scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text() | st.binary()
    | st.decimals(allow_nan=False) | st.fractions() | st.complex_numbers(allow_nan=False) | st.datetimes()
    | st.dates() | st.timedeltas()
)  # fmt: skip
keys = st.none() | st.booleans() | st.integers() | st.text() | st.tuples(st.integers(), st.text())
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(keys, inner) | st.sets(keys)
    | st.frozensets(keys) | st.lists(inner).map(deque),
    max_leaves=20,
)  # fmt: skip


@settings(max_examples=40, deadline=None)
@given(values)
def test_plain_values_come_back_equal_and_of_the_same_type(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)


@pytest.mark.parametrize(
    "value",
    [float("inf"), -float("inf"), -0.0, 2**63, -(2**200), range(3, 30, 2), bytearray(b"ab"), int, list, "\ud800",
     time(1, 2), [[], [[]]], {1: {2: {3: ()}}}],
)  # fmt: skip
def test_edges(value: Any) -> None:
    back = there_and_back(value)
    assert back == value
    assert type(back) is type(value)
    assert math.copysign(1, back) == math.copysign(1, value) if isinstance(value, float) else True


def test_nan_comes_back_as_nan() -> None:
    assert math.isnan(there_and_back(float("nan")))


class Liar(int):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = int.__hash__

    def __pos__(self) -> int:
        return 42


class LyingList(list):
    def __eq__(self, other: object) -> bool:
        return True

    def __iter__(self) -> Any:
        return iter([42])


class LyingText(str):
    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = str.__hash__

    def __str__(self) -> str:
        return "42"


@pytest.mark.parametrize(("value", "plain"), [(Liar(7), 7), (LyingList([7]), [7]), (LyingText("x"), "x")])
def test_a_subclass_is_reduced_to_what_it_holds(value: Any, plain: Any) -> None:
    back = there_and_back(value)
    assert type(back) is type(plain)
    assert back == plain


def test_relatives_of_plain_types() -> None:
    Point = namedtuple("Point", "x y")
    Colour = enum.IntEnum("Colour", "RED BLUE")
    assert there_and_back(Point(1, 2)) == (1, 2)
    assert there_and_back(Colour.BLUE) == 2
    assert there_and_back(OrderedDict(a=1)) == {"a": 1}
    assert there_and_back(Counter("aab")) == {"a": 2, "b": 1}
    assert there_and_back(defaultdict(list, {1: [2]})) == {1: [2]}
    assert there_and_back(np.float64(0.5)) == 0.5
    assert there_and_back(np.int32(7)) == 7
    assert there_and_back(np.bool_(True)) is True
    array = there_and_back(np.arange(6, dtype=np.int16).reshape(2, 3))
    assert array.dtype == np.int16
    assert array.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    "value", [object(), len, lambda: 0, (i for i in ()), ..., NotPlainDataError, datetime(2020, 1, 1).strftime]
)
def test_what_is_no_data_is_refused(value: Any) -> None:
    with pytest.raises(NotPlainDataError):
        there_and_back([value])


def test_a_list_that_holds_itself_is_refused() -> None:
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(NotPlainDataError, match="nested"):
        encode(endless, refuse)


@pytest.mark.parametrize(
    "message",
    [{"unknown": 1}, {}, {"int": "1", "float": 2}, {"type": "exit"}, {"type": "os.system"}, {"int": "x"},
     {"bytes": "zz"}, {"dict": [[1]]}, {"dict": [[[1], 2]]}, {"set": [[1]]}, {"date": "never"}, {"range": ["a"]}],
)  # fmt: skip
def test_a_message_that_is_no_value_raises(message: Any) -> None:
    with pytest.raises((ValueError, TypeError, StopIteration)):
        decode(message, refuse)


def test_equal_sets_have_equal_texts() -> None:
    one, other = set(range(100)), {99 - number for number in range(100)}
    assert encode(one, refuse) == encode(other, refuse)
    assert there_and_back(Decimal("1.10")).as_tuple() == Decimal("1.10").as_tuple()
    assert there_and_back(Fraction(1, 3)) == Fraction(1, 3)
    assert there_and_back((date(2020, 2, 29), timedelta(1, 2, 3))) == (date(2020, 2, 29), timedelta(1, 2, 3))
