import numpy as np
import pytest

from gatokit.schemas.errors import RejectedError
from gatokit.tokenizers.tensors import decode_discrete, encode_discrete


def encode(values, dtype=np.int64, **options):
    array = np.array(values, dtype)
    out = np.zeros((len(array), array.shape[1] + 2), np.uint16)[:, 1:-1]
    encode_discrete(array, out, **options)
    return out


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.uint16, np.int32, np.int64, np.uint64, np.bool_])
@pytest.mark.parametrize("offset", [0, 33024])
def test_the_id_is_the_value_plus_the_offset(dtype, offset):
    ids = encode([[0, 1], [1, 0]], dtype, offset=offset)
    assert ids.tolist() == [[offset, offset + 1], [offset + 1, offset]]
    values = decode_discrete(ids, offset=offset)
    assert values.dtype == np.int64
    assert values.tolist() == [[0, 1], [1, 0]]


def test_both_ends_of_the_range():
    assert encode([[0, 1023]]).tolist() == [[0, 1023]]
    assert encode([[0, 6]], num=7).tolist() == [[0, 6]]


@pytest.mark.parametrize(
    ("values", "dtype", "num", "detail"),
    [
        ([[0], [1024]], np.int64, None, "field observation/x is 1024 at step 1, outside 0 to 1023"),
        ([[0], [-1]], np.int32, None, "field observation/x is -1 at step 1, outside 0 to 1023"),
        ([[0, 7]], np.uint8, 7, "field observation/x is 7 at step 0, outside 0 to 6"),
        ([[2**63]], np.uint64, None, f"field observation/x is {2**63} at step 0, outside 0 to 1023"),
        ([[1500]], np.int64, 2000, "field observation/x is 1500 at step 0, outside 0 to 1023"),
    ],
)
def test_a_value_out_of_range_is_named_and_never_clipped(values, dtype, num, detail):
    with pytest.raises(RejectedError) as error:
        encode(values, dtype, num=num, path="observation/x")
    assert (error.value.reason, error.value.detail) == ("out_of_range", detail)


@pytest.mark.parametrize(("ids", "offset"), [([[7]], 0), ([[33023]], 33024), ([[33031]], 33024)])
def test_an_id_of_no_value_is_refused(ids, offset):
    with pytest.raises(ValueError, match=f"field action has id {ids[0][0]}, "):
        decode_discrete(np.array(ids, np.uint16), num=7, offset=offset, path="action")
