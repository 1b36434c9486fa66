"""The client commands against a scripted node: what goes to stdout, byte for byte, and the exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fake_node import FakeNode, Script, error, get_reply, put_reply, scan_reply, store

import dynamo
from dynamo.cli import main
from dynamo.model import messages as m
from dynamo.model.messages import Message
from dynamo.wire.documents import encode_document

Run = Callable[..., tuple[int, bytes, bytes]]


@pytest.fixture
def script() -> Script:
    return store()


@pytest.fixture
def node(script: Script) -> Iterator[FakeNode]:
    with FakeNode(lambda message: script(message)) as node:
        yield node


@pytest.fixture
def run(capsysbinary: pytest.CaptureFixture[bytes], monkeypatch: pytest.MonkeyPatch, node: FakeNode) -> Run:
    monkeypatch.setenv("DYNAMO_AT", node.address)

    def run(*arguments: str) -> tuple[int, bytes, bytes]:
        code = main(arguments)
        return code, *capsysbinary.readouterr()

    return run


def answering(*replies: Message) -> Script:
    left = iter(replies)
    return lambda message: next(left)


# --- data -----------------------------------------------------------------------------------------------------------------------------


def test_writes_print_the_token_alone(run: Run) -> None:
    token = b"cHV0LXRva2Vu"
    assert run("put", "alice", "hello") == (0, token + b"\n", b"")
    assert run("set", "alice", "hello", "-o", "raw") == (0, token + b"\n", b"")
    assert run("set", "alice", "hello", "-b", "people")[0] == 0
    code, out, _ = run("delete", "alice", "--blind", "-o", "json", "-b", "people")
    assert (code, json.loads(out)) == (0, {"key": "alice", "bucket": "people", "context": token.decode()})


@pytest.mark.parametrize("script", [answering(get_reply(b"a\n", b"\xff"))])
def test_get_prints_each_value_and_a_newline(run: Run) -> None:
    code, out, err = run("get", "k")
    assert (code, out) == (0, b"a\n\n\xff\n") and b"2 siblings" in err


@pytest.mark.parametrize("script", [answering(get_reply(b"a\n", b"\xff"))])
def test_get_raw_prints_the_exact_bytes(run: Run) -> None:
    assert run("get", "k", "-o", "raw")[:2] == (0, b"a\n\xff")


@pytest.mark.parametrize("script", [answering(get_reply("hé".encode(), b"\xff"))])
def test_get_json_is_one_line_of_the_documented_fields(run: Run) -> None:
    code, out, _ = run("get", "alice", "-o", "json", "--no-siblings")
    dots = [{"dot": f"0000000000000007:{i}", "time": "1970-01-01T00:00:01.000000Z"} for i in (1, 2)]
    expected = {
        "key": "alice",
        "bucket": "default",
        "found": True,
        "context": "dG9rZW4",
        "siblings": [{"value": "hé", "encoding": "utf-8"} | dots[0], {"value": "/w==", "encoding": "base64"} | dots[1]],
    }
    assert code == 4 and out.count(b"\n") == 1 and out.endswith(b"\n")
    assert json.loads(out) == expected and list(json.loads(out)) == list(expected)


def test_a_key_that_is_no_text_says_so(run: Run) -> None:
    code, out, _ = run("get", b"\xffk".decode("utf-8", "surrogateescape"), "-o", "json")
    absent = {"key": "/2s=", "bucket": "default", "key_encoding": "base64", "found": False, "context": "dG9rZW4", "siblings": []}
    assert (code, json.loads(out)) == (3, absent)


def test_absent_prints_nothing_and_exits_with_3(run: Run) -> None:
    code, out, err = run("get", "nobody")
    assert (code, out) == (3, b"") and b"owners that answered: 3" in err


def test_a_dash_reads_the_value_from_stdin(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(b"\x00\xff\r\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    assert run("set", "k", "-")[0] == 0
    assert run("get", "k", "-o", "raw")[:2] == (0, b"\x00\xff\r\n")


def test_options_reach_the_node(run: Run, node: FakeNode) -> None:
    run("put", "k", "v", "-b", "people", "--context", "dG9rZW4", "--timeout", "2")
    request = node.requests[0]
    assert request[2:7] == (b"people", b"k", b"v", b"token", m.MODE_PUT) and request[9] <= 2000
    run("delete", "k", "--context", "dG9rZW4")
    assert node.requests[1][4:6] == (None, b"token")


@pytest.mark.parametrize("timeout", ["inf", "1e12", "5000000"])
def test_a_time_without_end_is_one(run: Run, timeout: str) -> None:
    assert run("set", "k", "v", "--timeout", timeout)[0] == 0
    assert run("get", "k", "--timeout", timeout) == (0, b"v\n", b"")


def test_unseen_siblings_are_talk(run: Run, monkeypatch: pytest.MonkeyPatch, node: FakeNode) -> None:
    monkeypatch.setattr(node, "script", answering(put_reply(unseen=2)))
    code, out, err = run("put", "k", "v")
    assert (code, out) == (0, b"cHV0LXRva2Vu\n") and b"2 siblings" in err


@pytest.mark.parametrize(("unseen", "said"), [(1, b"1 sibling beside it"), (2, b"2 siblings beside it")])
def test_one_sibling_is_one(run: Run, monkeypatch: pytest.MonkeyPatch, node: FakeNode, unseen: int, said: bytes) -> None:
    monkeypatch.setattr(node, "script", answering(put_reply(unseen=unseen)))
    assert run("set", "k", "v")[2].startswith(said)


def test_a_value_with_a_dash_goes_behind_two_and_an_option_that_is_none_says_so(run: Run) -> None:
    assert run("set", "k", "--", "-5")[0] == 0 and run("get", "k")[1] == b"-5\n"
    assert run("set", "-o", "json", "--", "-k", "--v")[0] == 0 and run("get", "--", "-k")[1] == b"--v\n"
    code, _, err = run("set", "k", "-5")
    assert code == 2 and b"dynamo set KEY -- -5" in err
    assert b"goes behind" in run("put", "--help")[1]


# --- update -----------------------------------------------------------------------------------------------------------------------------

ECHO = ("sh", "-c", "cat; printf '\\0\\n' ")


@pytest.mark.parametrize("script", [lambda message: get_reply(b"1", b"\xff") if message[0] == m.GET else put_reply(unseen=1)])
def test_update_writes_what_a_command_makes_of_the_read_under_its_context(run: Run, node: FakeNode) -> None:
    read = run("get", "k", "-b", "people", "-o", "json")[1]
    code, out, err = run("update", "-b", "people", "k", *ECHO)
    assert (code, out) == (0, b"cHV0LXRva2Vu\n") and b"1 sibling beside it" in err
    assert node.requests[-1][:7] == (m.PUT, node.requests[-1][1], b"people", b"k", read + b"\0\n", b"token", m.MODE_PUT)
    assert json.loads(run("update", "-o", "json", "k", "true")[1]) == {"key": "k", "bucket": "default", "context": "cHV0LXRva2Vu"}
    assert node.requests[-1][4] == b""


def test_update_of_an_absent_key_and_again(run: Run) -> None:
    add = "import json, sys; print(sum(int(s['value']) for s in json.load(sys.stdin)['siblings']) + 1, end='')"
    for count in (1, 2, 3):
        assert run("update", "counter", sys.executable, "-P", "-c", add)[0] == 0
        assert run("get", "counter", "-o", "raw")[1] == b"%d" % count


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("sh", "-c", "echo half; exit 3"), b"sh exited with 3; nothing was written"),
        (("sh", "-c", "kill -9 $$"), b"sh was ended by signal 9; nothing was written"),
        (("no-such-command-at-all",), b"no-such-command-at-all"),
        (("/",), b"ermission denied"),
    ],
)
def test_update_writes_nothing_where_its_command_fails(run: Run, node: FakeNode, command: tuple[str, ...], said: bytes) -> None:
    code, out, err = run("update", "k", *command)
    assert (code, out) == (1, b"") and said in err and len(err.splitlines()) == 1
    assert [request[0] for request in node.requests] == [m.GET]


# --- scan -------------------------------------------------------------------------------------------------------------------------------


ENTRIES = ((b"a\tb", b"1\n"), (b"\xff", b"\x00"), ("ö".encode(), "é".encode()))


@pytest.mark.parametrize("script", [lambda message: scan_reply(*ENTRIES)])
def test_scan_prints_a_line_a_value_or_the_exact_keys(run: Run, node: FakeNode) -> None:
    expected = "a\\tb\t1\\n\n\\xff\t\\x00\nö\té\n".encode()
    assert run("scan", "pre", "-b", "people") == (0, expected, b"")
    assert run("scan", "-o", "raw") == (0, b"a\tb\0\xff\0\xc3\xb6\0", b"")
    assert [request[2:6] for request in node.requests] == [(b"people", b"pre", b"", 0), (b"default", b"", b"", 0)]


@pytest.mark.parametrize("script", [lambda message: (*scan_reply()[:4], ((b"bad", b"", (), b"x"), *scan_reply((b"z", b"1"))[4]), b"", 2)])
def test_scan_prints_all_but_what_is_damaged_and_says_so(run: Run) -> None:
    for form, expected in (("table", b"z\t1\n"), ("raw", b"z\0")):
        code, out, err = run("scan", "-o", form)
        assert (code, out) == (1, expected)
        assert b"b'bad' is damaged" in err and b"Traceback" not in err


@pytest.mark.parametrize("script", [lambda message: scan_reply((b"a", b"1")) if message[0] == m.SCAN else get_reply(b"1")])
def test_scan_json_is_a_line_of_get_json_for_each_key(run: Run) -> None:
    assert run("scan", "-o", "json")[1] == run("get", "a", "-o", "json")[1]


@pytest.mark.parametrize("script", [answering(scan_reply((b"a", b"1"), (b"b", b"2"), cursor=b"c"), scan_reply((b"c", b"3")))])
def test_scan_names_the_cursor_where_it_stops(run: Run, node: FakeNode) -> None:
    code, out, err = run("scan", "--limit", "2")
    assert (code, out) == (0, b"a\t1\nb\t2\n")
    cursor = err.decode().split()[-1]
    assert run("scan", "--cursor", cursor) == (0, b"c\t3\n", b"")
    assert [request[4:6] for request in node.requests] == [(b"", 2), (b"behind b", 0)]


@pytest.mark.parametrize("script", [answering(scan_reply((b"a", b"1"), cursor=b"c"), error(1, required=2, received=1))])
def test_scan_that_fails_says_how_to_go_on_and_has_its_exit_code(run: Run) -> None:
    code, out, err = run("scan")
    assert (code, out) == (5, b"a\t1\n") and b"--cursor YmVoaW5kIGE" in err


@pytest.mark.parametrize("script", [lambda message: scan_reply(*ENTRIES)])
def test_a_reader_that_has_seen_enough_is_no_mishap(node: FakeNode, run: Run) -> None:
    environ = {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent), "DYNAMO_AT": node.address}
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([sys.executable, "-P", "-m", "dynamo", "scan"], env=environ, stdout=write, stderr=subprocess.PIPE, timeout=30)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


# --- exit codes -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "script"),
    [
        (5, answering(error(1, required=2, received=1))),
        (6, lambda message: None),
        (1, answering(error(3))),
        (7, answering(error(13))),
        (1, answering(error(99))),
    ],
)
def test_errors_have_their_exit_code_and_are_talk(code: int, run: Run) -> None:
    got, out, err = run("get", "k", "--timeout", "0.2")
    assert (got, out) == (code, b"") and err.startswith(b"dynamo: ") and b"Traceback" not in err


def test_a_token_that_was_cut_is_refused_as_one_of_another_key_is(run: Run, monkeypatch: pytest.MonkeyPatch, node: FakeNode) -> None:
    monkeypatch.setattr(node, "script", lambda message: error(3))
    for token in ("dG9rZW4", "dG9rZW", "dG9rZ", "dG9r"):  # some of them are no base64 any more, others reach the node
        code, out, err = run("put", "k", "v", "--context", token)
        assert (code, out) == (1, b"") and err.startswith(b"dynamo: ")


def test_an_error_of_a_write_tells_if_it_may_have_been_applied(run: Run, monkeypatch: pytest.MonkeyPatch, node: FakeNode) -> None:
    monkeypatch.setattr(node, "script", answering(error(1, maybe_applied=True, required=2, received=1), error(1, required=2, received=1)))
    assert b"may have been applied" in run("put", "k", "v")[2]
    assert b"may have been applied" not in run("put", "k", "v")[2]


def test_nobody_there_is_unavailable(run: Run) -> None:
    assert run("get", "k", "--at", "127.0.0.1:1")[0] == 5


@pytest.mark.parametrize(
    "arguments",
    [
        ("get",),
        ("nonsense",),
        ("put", "k"),
        ("delete", "k"),
        ("delete", "k", "--blind", "--context", "dG9rZW4"),
        ("put", "k", "v", "--context", "!"),
        ("put", "k", "v", "--context", ""),
        ("delete", "k", "--context", ""),
        ("get", "k", "-o", "xml"),
        ("get", "k", "--at", "h:port"),
        ("get", "k", "--timeout", "0"),
        ("get", "k", "--timeout", "nan"),
        ("get", "k", "--timeout", "-1"),
        ("get", "k", "--timeout", "-inf"),
        ("scan", "--limit", "0"),
        ("scan", "--cursor", "!"),
        ("scan", "one", "two"),
        ("stats", "-o", "raw"),
        ("serve", "--durability", "perhaps"),
        ("set", "k", "-5"),
        ("update", "k"),
        ("update",),
    ],
)
def test_usage_exits_with_2_and_asks_no_node(arguments: tuple[str, ...], run: Run, node: FakeNode) -> None:
    code, out, err = run(*arguments)
    assert (code, out) == (2, b"") and err and not node.requests


@pytest.mark.parametrize("arguments", [("serve",), ("serve", "--data", "d", "--n", "0"), ("serve", "-c", "absent.toml")])
def test_a_bad_configuration_exits_with_7(arguments: tuple[str, ...], run: Run) -> None:
    assert run(*arguments)[:2] == (7, b"")


@pytest.mark.parametrize("command", ["serve", "demo", "version", "get", "put", "set", "delete", "update", "scan", "stats", "cluster", "ring"])
def test_every_command_explains_itself(command: str, run: Run) -> None:
    code, out, _ = run(command, "--help")
    assert code == 0 and b"Usage: dynamo " + command.encode() in out


# --- views of the cluster ---------------------------------------------------------------------------------------------------------------


FIRST = {"name": "n1", "id": "aa", "address": "h:1", "zone": "", "capacity": 1.0, "status": "normal", "reachable": True, "partitions": 8, "recovering": 1}
STATUS = {"cluster": "c" * 36, "ring": 3, "n": 3, "r": 2, "w": 2, "partitions": 8, "nodes": [FIRST]}
LATER = STATUS | {"later": 1, "nodes": [FIRST | {"later": 1}]}  # what a newer node may add, and the documented fields leave out


@pytest.mark.parametrize("script", [lambda message: (m.CLUSTER_STATUS_REPLY, 0, encode_document(LATER))])
def test_cluster_status(run: Run) -> None:
    code, out, _ = run("cluster", "status", "-o", "json")
    assert code == 0 and json.loads(out) == STATUS
    code, out, _ = run("cluster", "status")
    assert code == 0 and out.splitlines()[-1].split() == [b"n1", b"aa", b"h:1", b"-", b"1.0", b"normal", b"yes", b"8", b"1"]


PREFLIST = {
    "key": "k", "position": 1 << 63, "partition": 4, "owners": [{"name": "n1", "address": "h:1", "id": "aa"}],
    "fallbacks": [{"name": "n2", "address": "h:2"}],
}  # fmt: skip


@pytest.mark.parametrize("script", [lambda message: (m.PREFERENCE_LIST_REPLY, 0, encode_document(PREFLIST))])
def test_ring_preflist(run: Run, node: FakeNode) -> None:
    code, out, _ = run("ring", "preflist", "k", "-b", "people", "-o", "json")
    owners, fallbacks = [{"name": "n1", "address": "h:1"}], [{"name": "n2", "address": "h:2"}]
    whole = {"key": "k", "bucket": "people", "position": 1 << 63, "partition": 4, "owners": owners, "fallbacks": fallbacks}
    assert code == 0 and json.loads(out) == whole and node.requests[0][2:] == (b"people", b"k")
    assert run("ring", "preflist", "k")[1].splitlines()[-1].split() == [b"fallback", b"n2", b"h:2"]


COUNTS = {"node": "n1", "address": "h:1", "steps": 7, "commits": 3}


@pytest.mark.parametrize("script", [lambda message: (m.STATS_REPLY, 0, encode_document(COUNTS))])
def test_stats(run: Run) -> None:
    code, out, _ = run("stats", "-o", "json")
    assert code == 0 and json.loads(out) == COUNTS
    code, out, _ = run("stats")
    assert code == 0 and [line.split() for line in out.splitlines()] == [[b"node", b"n1"], [b"address", b"h:1"], [b"commits", b"3"], [b"steps", b"7"]]


def test_version(run: Run) -> None:
    code, out, _ = run("version")
    words = dict(word.split("=") for word in out.decode().split())
    assert code == 0 and list(words) == ["version", "python", "core", "lmdb"]
    assert run("--version") == (0, out, run("version")[2])
    assert words["version"] == dynamo.__version__ and words["core"] in ("compiled", "pure")


def test_client_commands_import_no_trio(node: FakeNode) -> None:
    code = "import sys; from dynamo.cli import main; main(['get', 'k']); sys.exit('trio' in sys.modules or 'lmdb' in sys.modules)"
    environ = {"PYTHONPATH": str(Path(dynamo.__file__).parent.parent), "DYNAMO_AT": node.address}
    assert subprocess.run([sys.executable, "-P", "-c", code], env=environ, timeout=30, capture_output=True).returncode == 0
