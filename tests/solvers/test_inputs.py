"""What comes from outside: one family of errors, one budget of memory, JSON of one meaning."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from solvers.files import check_outputs
from solvers.grid import GRIDS
from solvers.inputs.errors import InputError, ModelError, ResourceError, RestoboxError, reading
from solvers.inputs.memory import budget, check_array, check_bytes
from solvers.inputs.strict_json import parse_object, read_object
from solvers.processes.continuous import VE
from solvers.processes.process import VP

# -- errors ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InputError, ModelError, ResourceError])
def test_each_error_is_a_value_error_too(kind):
    assert issubclass(kind, RestoboxError)
    assert issubclass(kind, ValueError)


@given(st.text(max_size=4000))
def test_an_error_is_one_line(text):
    said = str(InputError(text))
    assert said.isprintable()
    assert len(said) < 20_000
    assert (
        said == text
        or not text.isprintable()
        or "  " in text
        or text != text.strip()
        or (len(text) > 1500)
    )


@pytest.mark.parametrize(
    "raised",
    [KeyError("network"), ZeroDivisionError("float division by zero"), RecursionError("depth"),
     TypeError("x"), IndexError("list"), AttributeError("no such thing"), AssertionError()],
)  # fmt: skip
def test_words_of_a_library_are_not_a_users(raised):
    with pytest.raises(ModelError) as caught, reading("a.bin", "a model", ModelError):
        raise raised
    said = str(caught.value)
    assert said.startswith("a.bin can't be read as a model")
    assert not str(raised) or str(raised).strip("'") not in said


def test_what_says_enough_passes():
    """Other errors name the file, in words of one line."""
    for error in (FileNotFoundError("a"), ImportError("b"), ResourceError("c")):
        with pytest.raises(type(error), match=str(error)), reading("x", "y"):
            raise error
    with pytest.raises(InputError, match=r"x can.t be read as y \(no such"), reading("x", "y"):
        raise ModelError("no such key")
    with pytest.raises(ModelError, match=r"^x has no key$"), reading("x", "y"):
        raise ModelError("x has no key")
    with pytest.raises(InputError, match=r"\(crc\)"), reading("x", "y"):
        raise OSError("crc\nmore lines")
    with pytest.raises(ResourceError, match="more memory"), reading("x", "y"):
        raise MemoryError


def test_one_output_is_not_two():
    check_outputs(["a", "b"])
    with pytest.raises(InputError, match="two outputs have the name a"):
        check_outputs(["a", "a"])


# -- memory ----------------------------------------------------------------------------------------


def test_the_budget_is_a_share_of_the_machine_or_what_the_user_says(monkeypatch):
    import psutil

    monkeypatch.delenv("RESTOBOX_MAX_BYTES", raising=False)
    assert budget() == psutil.virtual_memory().total // 2
    monkeypatch.setenv("RESTOBOX_MAX_BYTES", "1000")
    assert budget() == 1000
    check_bytes("it", 1000)
    with pytest.raises(ResourceError, match="it needs"):
        check_bytes("it", 1001)
    for text in ("", "-1", "0", "1.5", "1e9", "many", "9" * 30):
        monkeypatch.setenv("RESTOBOX_MAX_BYTES", text)
        with pytest.raises(InputError, match="number of bytes"):
            budget()


@given(st.lists(st.integers(1, 2**62), min_size=1, max_size=32), st.integers(1, 16))
def test_sizes_never_overflow(shape, itemsize):
    size = itemsize
    for n in shape:
        size *= n
    if 2 * size > budget():
        with pytest.raises(ResourceError, match="RESTOBOX_MAX_BYTES"):
            check_array("file", shape, itemsize)
    else:
        check_array("file", shape, itemsize)


@pytest.mark.parametrize("shape", [(0,), (3, 0), (-1, 4)])
def test_empty_arrays(shape):
    with pytest.raises(InputError, match="empty"):
        check_array("file", shape, 4)


# -- JSON ------------------------------------------------------------------------------------------

plain = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)  # fmt: skip


@settings(max_examples=20)
@given(st.dictionaries(st.text(), plain))
def test_what_json_writes_is_read(content):
    assert parse_object(json.dumps(content), "it") == content


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": 1, "a": 2}', "'a' is given twice"),
        ('{"b": {"a": 1, "c": [], "a": 1}}', "'a' is given twice"),
        ('{"a": NaN}', "no finite number"),
        ('{"a": -Infinity}', "no finite number"),
        ('{"a": 1e400}', "no finite number"),
        ('{"a": ' + "[" * 100_000, "nested too deeply"),
        ('{"a":' * 100_000, "nested too deeply"),
        ("[1]", "holds a list"),
        ("null", "holds a NoneType"),
        ("{", "not readable JSON"),
        ("", "not readable JSON"),
        ('{"a": ' + "1" * 5000 + "}", "not readable JSON"),
    ],
)
def test_json_of_two_meanings_or_none(text, says):
    with pytest.raises(ModelError, match=says):
        parse_object(text, "it", ModelError)


def test_json_files(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_object(tmp_path / "none.json")
    (tmp_path / "a.json").write_bytes(b'{"\xff": 1}')
    with pytest.raises(InputError, match="not readable JSON"):
        read_object(tmp_path / "a.json")
    (tmp_path / "a.json").write_bytes(b" " * (2**24 + 1))
    with pytest.raises(InputError, match="at most"):
        read_object(tmp_path / "a.json")


# -- numbers without end ---------------------------------------------------------------------------


@pytest.mark.parametrize("count", [0, -1, 10**9, 2**62, 2.5, True])
@pytest.mark.parametrize("process", [VP.linear(1000), VE(0.002, 80.0)], ids=["vp", "ve"])
def test_steps(process, count):
    for grid in (GRIDS["log-snr"], GRIDS["karras"], GRIDS["linspace"]):
        with pytest.raises(ValueError, match="whole number from 1 to"):
            grid(process, count)


@pytest.mark.parametrize("levels", [0, -1, 2_000_000_000])
def test_levels(levels):
    with pytest.raises(ValueError, match="num_train_timesteps"):
        VP.from_diffusers({"num_train_timesteps": levels})
