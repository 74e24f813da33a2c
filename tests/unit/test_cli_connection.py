"""The commands' own reading of HTTP: every form in which an answer may come, whole, torn, or no answer at all."""

from __future__ import annotations

import http.client
import random
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gpulockd.cli.connection import LONGEST_LINE, Connection, CutOff, listens

CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
CHUNKED += b"4\r\none\n\r\n6;x=y\r\ntwo\nth\r\n3\r\nree\r\n0\r\nEnd: 1\r\n\r\n"
COUNTED = b"HTTP/1.1 200 OK\r\ncontent-length: 13\r\n\r\none\ntwo\nthree"
CLOSED = b"HTTP/1.0 200 OK\r\n\r\none\ntwo\nthree"
BODY = b"one\ntwo\nthree"


@contextmanager
def answering(path: Path, answers: list[list[bytes]]) -> Iterator[None]:
    """A server that gives each connection in turn the pieces that it is told, then hangs up."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(path))
        door.listen()

        def serve() -> None:
            for pieces in answers:
                with door.accept()[0] as peer:
                    for piece in pieces:
                        if piece:
                            peer.sendall(piece)
                        else:
                            peer.recv(65536)

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join(20)


def torn(answer: bytes, rng: random.Random) -> list[bytes]:
    """An answer in pieces, after a request was read."""
    cuts = sorted(rng.sample(range(1, len(answer)), 4))
    return [b"", *(answer[a:b] for a, b in zip([0, *cuts], [*cuts, len(answer)], strict=True))]


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED, CLOSED], ids=["chunked", "counted", "closed"])
def test_an_answer_is_the_same_in_every_form_and_however_it_is_torn(tmp_path: Path, answer: bytes) -> None:
    """The daemon's server chooses the form, the kernel where it is cut."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    with answering(tmp_path / "s", [torn(answer, rng) for _ in range(20)]):
        for turn in range(20):
            got = Connection(str(tmp_path / "s"), 20.0)
            said = got.request("GET", "/", None, {})
            assert said.status == 200
            if turn % 2:
                assert said.read() == BODY and said.read() == b""
            else:
                assert [said.readline() for _ in range(4)] == [b"one\n", b"two\n", b"three", b""]
            got.close()


def test_two_requests_share_a_connection_and_a_closed_one_is_made_anew(tmp_path: Path) -> None:
    """`status` asks three times; a server that says close means it."""
    closing = COUNTED.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    with answering(tmp_path / "s", [[b"", CHUNKED, b"", closing], [b"", COUNTED]]):
        got = Connection(str(tmp_path / "s"), 20.0)
        for _ in range(3):
            assert got.request("GET", "/", None, {}).read() == BODY
        got.close()


@pytest.mark.parametrize("answer", [CHUNKED, COUNTED], ids=["chunked", "counted"])
def test_a_body_that_is_cut_off_is_an_error_for_who_wants_all_and_an_end_for_who_reads_lines(
    tmp_path: Path, answer: bytes
) -> None:
    """Half an answer must not pass for a whole one; a stream just ends."""
    cut = answer[: answer.index(b"\nth") + 3]
    with answering(tmp_path / "s", [[b"", cut], [b"", cut]]):
        got = Connection(str(tmp_path / "s"), 20.0)
        with pytest.raises(CutOff):
            got.request("GET", "/", None, {}).read()
        got.close()
        said = got.request("GET", "/", None, {})
        assert [said.readline() for _ in range(4)] == [b"one\n", b"two\n", b"th", b""]
        got.close()


@pytest.mark.parametrize(
    "nonsense",
    [b"", b"hello\r\n\r\n", b"HTTP/1.1 abc\r\n\r\n", b"\0" * (LONGEST_LINE * 2), b"HTTP/1.1 200 OK\r\nA: b\r\n"],
    ids=["nothing", "text", "no code", "no line", "half a head"],
)
def test_what_is_no_http_is_an_error(tmp_path: Path, nonsense: bytes) -> None:
    """Anything may listen at a path."""
    with answering(tmp_path / "s", [[b"", nonsense] if nonsense else [b""]]):
        got = Connection(str(tmp_path / "s"), 20.0)
        with pytest.raises(CutOff):
            got.request("GET", "/", None, {})
        got.close()


@pytest.mark.parametrize("size", [b"-4", b"0x4", b"", b"4_0", b"zz"])
def test_a_chunk_without_a_size_is_an_error(tmp_path: Path, size: bytes) -> None:
    """Python reads more as a number than HTTP does."""
    with answering(tmp_path / "s", [[b"", CHUNKED.replace(b"\r\n4\r\n", b"\r\n" + size + b"\r\n", 1)]]):
        got = Connection(str(tmp_path / "s"), 20.0)
        with pytest.raises(CutOff):
            got.request("GET", "/", None, {}).read()
        got.close()


def test_silence_is_an_error_after_its_time_and_a_hang_up_from_elsewhere_an_end(tmp_path: Path) -> None:
    """A keeper's stream is ended by another thread; a stopped daemon must not hold a command for ever."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "s"))
        door.listen()
        got = Connection(str(tmp_path / "s"), 0.2)
        with pytest.raises(TimeoutError):
            got.request("GET", "/", None, {})
        got.close()
        got = Connection(str(tmp_path / "s"), None)
        over = threading.Event()

        def hang_up() -> None:
            while not over.wait(0.2):  # again: the first may come before the connection
                got.shut(socket.SHUT_RDWR)

        thread = threading.Thread(target=hang_up)
        thread.start()
        with pytest.raises((CutOff, BrokenPipeError)):  # cut before or after the request was sent
            got.request("GET", "/", None, {})
        over.set()
        thread.join(20)
        got.close()
    assert not listens(str(tmp_path / "s"))


@pytest.mark.parametrize("path", ["/a b", "/a\r\nHost: x", "/a\n", ""])
def test_a_path_that_would_be_two_requests_is_refused(tmp_path: Path, path: str) -> None:
    """Names come from users; they are quoted, and this is the second door."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "s"))
        door.listen()
        with pytest.raises(ValueError, match="no request"):
            Connection(str(tmp_path / "s"), 1.0).request("GET", path, None, {})


def test_a_request_reads_as_the_standard_librarys_does(tmp_path: Path) -> None:
    """`http.client` is what it stands for: the server must see no difference that matters."""
    heard: list[bytes] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as door:
        door.bind(str(tmp_path / "s"))
        door.listen()

        def serve() -> None:
            for _ in range(2):
                with door.accept()[0] as peer:
                    text = b""
                    while not text.endswith(b"{}"):
                        text += peer.recv(65536)
                    heard.append(text)
                    peer.sendall(COUNTED)

        thread = threading.Thread(target=serve)
        thread.start()
        headers = {"Content-Type": "application/json", "X-Task": "ä"}
        got = Connection(str(tmp_path / "s"), 20.0)
        assert got.request("POST", "/x", b"{}", headers).read() == BODY
        got.close()
        theirs = http.client.HTTPConnection("localhost")
        theirs.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        theirs.sock.connect(str(tmp_path / "s"))
        theirs.request("POST", "/x", b"{}", {name: value.encode() for name, value in headers.items()})
        theirs.getresponse().read()
        theirs.close()
        thread.join(20)
    ours, other = (sorted(text.partition(b"\r\n\r\n")[0].lower().split(b"\r\n")) for text in heard)
    assert ours == other and heard[0].endswith(b"\r\n\r\n{}")
