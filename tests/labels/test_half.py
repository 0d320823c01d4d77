"""Between float16 and float32: NumPy's results to the bit, whatever the size."""

import subprocess
import sys

import numpy as np
import pytest

from ltd_pipe.labels.format import to_float16, to_float32

ALL = np.arange(2**16, dtype=np.uint16).view(np.float16)


def test_every_float16_is_widened_exactly():
    """All 65,536 of them, NaN included."""
    np.testing.assert_array_equal(to_float32(ALL), ALL.astype(np.float32))


@pytest.mark.parametrize("size", [0, 1, 2**15, 2**15 + 1, 100_003])
@pytest.mark.parametrize("scale", [1e-8, 1e-3, 1, 1e4], ids=str)
def test_rounding_is_numpys(size, scale):
    """Below the normal numbers, around one, and at the upper end; in blocks of any number."""
    numbers = (np.random.default_rng(size).standard_normal(size) * scale).astype(np.float32)
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16)
    np.testing.assert_array_equal(to_float16(numbers).view(np.uint16), expected.view(np.uint16))


@pytest.mark.parametrize("dtype", [">f4", ">f2", "f8", "g", "i8"])
@pytest.mark.parametrize("size", [1000, 2**20])
def test_numbers_of_any_type_are_rounded_once(size, dtype):
    """By way of float32 what is just above a half would become one, and be rounded down."""
    numbers = np.full(size, 1 + 2**-11 + 2**-40).astype(dtype)
    numbers[::3] = -70_000 if dtype in ("f8", "g") else 3
    with np.errstate(over="ignore"):
        expected = numbers.astype(np.float16)
    np.testing.assert_array_equal(to_float16(numbers), expected)
    np.testing.assert_array_equal(to_float32(numbers), numbers.astype(np.float32))


def test_rows_of_any_layout_are_taken():
    """Columns, read-only files, and a given place for the result."""
    numbers = np.random.default_rng(0).random((40, 30), np.float32)[:, ::2]
    numbers.flags.writeable = False
    place = np.empty((40, 15), np.float16)
    assert to_float16(numbers, out=place) is place
    np.testing.assert_array_equal(place, numbers.astype(np.float16))
    np.testing.assert_array_equal(to_float32(place.T), place.T.astype(np.float32))


def test_a_copy_is_a_copy():
    """Writing to what comes back leaves the input alone."""
    numbers = np.ones(4, np.float32)
    to_float32(numbers)[:] = 2
    assert numbers.tolist() == [1, 1, 1, 1]


def test_the_results_are_the_same_before_torch_is_loaded():
    """In a process without it, numbers of every kind; many load it."""
    code = (
        "import hashlib, sys\nimport numpy as np\nfrom ltd_pipe.labels.format import *\n"
        "numbers = np.random.default_rng(0).standard_normal(2**20).astype(np.float32) ** 9\n"
        "def told(n):\n"
        "    half = to_float16(numbers[:n])\n"
        "    both = half.tobytes() + to_float32(half).tobytes()\n"
        "    return hashlib.sha256(both).hexdigest(), 'torch' in sys.modules\n"
        "first = told(100_003)\n"
        "told(2**20)\n"
        "assert (first[0], True, False) == (*told(100_003), first[1])"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
