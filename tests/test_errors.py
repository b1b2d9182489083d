"""What every error promises."""

import pickle

from ipfs_store.errors import InvalidLayer, IpfsStoreError


def test_a_message_is_one_line_that_any_terminal_and_any_encoding_takes() -> None:
    error = InvalidLayer("a\nb\r\x1b[31m\x9b \u2028\udc80 é 名前", hint="as\nit is")
    assert error.message == str(error) == "a\\nb\\r\\x1b[31m\\x9b \\u2028\\udc80 é 名前"
    assert error.message.encode() and len(error.message.splitlines()) == 1
    assert error.hint == "as\nit is"


def test_an_error_goes_through_a_pipe() -> None:
    again = pickle.loads(pickle.dumps(IpfsStoreError("what", hint="how")))
    assert (again.message, again.hint) == ("what", "how")
