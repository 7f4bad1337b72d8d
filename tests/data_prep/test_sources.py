"""Obtaining files: downloads from a local server that behaves and misbehaves, folders, checksums."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import http.server
import json
import threading

import pytest

from data_prep import sources
from data_prep.sources import Source, obtain
from lite_transformer.errors import DataError

CONTENT = bytes(range(256)) * 400
DIGEST = hashlib.sha256(CONTENT).hexdigest()


class Handler(http.server.BaseHTTPRequestHandler):
    """Serves CONTENT as the server's ``mode`` says, and notes the Range header of every request."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments):
        pass

    def do_GET(self):
        server = self.server
        server.ranges.append(self.headers.get("Range"))
        self.close_connection = True
        if server.mode == "missing":
            self.send_error(404)
            return
        if server.mode == "html":
            self.answer(b"<!DOCTYPE html>\n<html><head><title>Please sign in</title></head></html>")
            return
        start = 0
        wanted = self.headers.get("Range")
        fresh = self.headers.get("If-Range") in (None, server.etag)
        if wanted and fresh and server.mode != "ignores ranges":
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(server.content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(server.content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
        breaks = server.mode == "always breaks" or (server.mode == "breaks once" and len(server.ranges) == 1)
        self.answer(server.content[start:], start, breaks)

    def answer(self, body, start=0, breaks=False):
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", self.server.etag)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{start + len(body) - 1}/{start + len(body)}")
        self.end_headers()
        self.wfile.write(body[: len(body) // 3] if breaks else body)


@contextlib.contextmanager
def serving(mode="behaves", content=CONTENT):
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.mode, server.content, server.ranges, server.etag = mode, content, [], '"one"'
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr(sources.time, "sleep", lambda seconds: None)


def source(server, **changes):
    urls = (f"http://127.0.0.1:{server.server_address[1]}/corpus.tgz",)
    return Source(**{"name": "corpus.tgz", "urls": urls, "licence": "free", "citation": "nobody", **changes})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_download_is_verified_and_kept(tmp_path):
    with serving() as server:
        item = source(server, size_bytes=len(CONTENT), sha256=DIGEST)
        for _ in range(2):
            assert obtain([item], tmp_path / "new" / "folder") == {
                "corpus.tgz": tmp_path / "new" / "folder" / "corpus.tgz"
            }
        assert server.ranges == [None], "a file that is there was fetched again"
    assert (tmp_path / "new" / "folder" / "corpus.tgz").read_bytes() == CONTENT
    assert names(tmp_path / "new" / "folder") == ["corpus.tgz"]


@pytest.mark.parametrize("known", [DIGEST, None])
def test_broken_connection_goes_on_where_it_stopped(tmp_path, known):
    with serving("breaks once") as server:
        obtain([source(server, sha256=known)], tmp_path)
        assert server.ranges == [None, f"bytes={len(CONTENT) // 3}-"]
    assert (tmp_path / "corpus.tgz").read_bytes() == CONTENT


def test_later_run_goes_on_and_nothing_has_the_final_name_before(tmp_path):
    with serving("always breaks") as server:
        item = source(server)
        with pytest.raises(DataError, match=r"corpus\.tgz.*broke off after \d+ of 102400 bytes.*same command again"):
            obtain([item], tmp_path)
        assert len(server.ranges) == sources.ATTEMPTS
        assert names(tmp_path) == [".corpus.tgz.part", ".corpus.tgz.part.json"]
        had = (tmp_path / ".corpus.tgz.part").stat().st_size
        assert had > len(CONTENT) // 3
        server.mode = "behaves"
        obtain([item], tmp_path)
        assert server.ranges[-1] == f"bytes={had}-"
    assert (tmp_path / "corpus.tgz").read_bytes() == CONTENT
    assert names(tmp_path) == [sources.CHECKSUMS_FILE, "corpus.tgz"]


def interrupt(item, folder, server):
    server.mode = "always breaks"
    with pytest.raises(DataError):
        obtain([item], folder)
    server.mode = "behaves"


def test_server_without_ranges_sends_everything_again(tmp_path):
    with serving() as server:
        interrupt(source(server), tmp_path, server)
        server.mode = "ignores ranges"
        obtain([source(server)], tmp_path)
    assert (tmp_path / "corpus.tgz").read_bytes() == CONTENT


def test_versions_of_a_file_are_not_mixed(tmp_path):
    with serving() as server:
        interrupt(source(server), tmp_path, server)
        server.etag, server.content = '"two"', CONTENT[::-1]
        obtain([source(server)], tmp_path)
    assert (tmp_path / "corpus.tgz").read_bytes() == CONTENT[::-1]


def test_complete_part_needs_no_more_bytes(tmp_path):
    with serving() as server:
        interrupt(source(server), tmp_path, server)
        (tmp_path / ".corpus.tgz.part").write_bytes(CONTENT)
        obtain([source(server)], tmp_path)
        assert server.ranges[-1] == f"bytes={len(CONTENT)}-"
    assert (tmp_path / "corpus.tgz").read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("mode", "changes", "message"),
    [
        ("html", {}, r"answered with an HTML page \('Please sign in'\) instead of corpus\.tgz.*--source DIR"),
        ("missing", {"hint": "Ask its authors."}, r"HTTP 404 .*--source DIR\. Ask its authors\."),
        ("behaves", {"sha256": "0" * 64}, rf"wrong checksum, SHA-256 {DIGEST} instead of 0000.*Run the same command"),
        ("behaves", {"size_bytes": 5}, r"has 102400 bytes instead of 5"),
        ("behaves", {"urls": ("http://127.0.0.1:9/corpus.tgz",)}, r"no connection .*By hand: Fetch corpus\.tgz from"),
        ("behaves", {"urls": (), "hint": "ask its authors"}, r"cannot be downloaded: ask its authors.*--source DIR"),
    ],
)
def test_bad_answers_leave_nothing(tmp_path, mode, changes, message):
    with serving(mode) as server, pytest.raises(DataError, match=message):
        obtain([source(server, **changes)], tmp_path)
    assert names(tmp_path) == []


def test_second_address_helps(tmp_path):
    with serving() as server:
        urls = ("http://127.0.0.1:9/corpus.tgz", *source(server).urls)
        obtain([source(server, urls=urls)], tmp_path)
    assert (tmp_path / "corpus.tgz").read_bytes() == CONTENT


def test_full_disk(tmp_path, monkeypatch):
    with serving() as server, monkeypatch.context() as patch:
        patch.setattr(sources.shutil, "disk_usage", lambda path: type("Usage", (), {"free": 1000}))
        with pytest.raises(DataError, match=r"the disk is full \(0 MB are needed.*Make room and run the same command"):
            obtain([source(server)], tmp_path)

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    with serving() as server, monkeypatch.context() as patch:
        patch.setattr(sources, "_receive", full)
        with pytest.raises(DataError, match="the disk is full"):
            obtain([source(server)], tmp_path)
    assert names(tmp_path) == []


def test_unknown_checksum_is_recorded_once_and_verified_after(tmp_path):
    with serving() as server:
        item = source(server)
        obtain([item], tmp_path)
    record = json.loads((tmp_path / sources.CHECKSUMS_FILE).read_text(encoding="utf-8"))
    assert record == {"corpus.tgz": {"sha256": DIGEST, "size_bytes": len(CONTENT), "urls": list(item.urls)}}
    (tmp_path / "corpus.tgz").write_bytes(CONTENT[:-1] + b"x")
    with pytest.raises(DataError, match=rf"wrong checksum.* instead of {DIGEST}, recorded on first use in .*Delete"):
        obtain([item], tmp_path)


def test_source_folder_is_used_without_network(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "_download", None)
    folder = tmp_path / "mine"
    folder.mkdir()
    item = Source("corpus.tgz", ("http://example.invalid/corpus.tgz",), "free", "nobody", len(CONTENT), DIGEST)
    advice = r"Fetch corpus\.tgz from http://example\.invalid/corpus\.tgz; put it in a folder DIR and add --source DIR"
    with pytest.raises(DataError, match=rf"--source .*mine: missing corpus\.tgz\. {advice}"):
        obtain([item], tmp_path / "dest", folder)
    with pytest.raises(DataError, match=rf"no such folder\. {advice}"):
        obtain([item], tmp_path / "dest", tmp_path / "nowhere")
    (folder / "corpus.tgz").write_bytes(CONTENT[:-1])
    with pytest.raises(DataError, match=r"corpus\.tgz: truncated, it has 102399 bytes instead of 102400"):
        obtain([item], tmp_path / "dest", folder)
    (folder / "corpus.tgz").write_bytes(CONTENT)
    assert obtain([item], tmp_path / "dest", folder) == {"corpus.tgz": folder / "corpus.tgz"}
    assert names(folder) == ["corpus.tgz"]


def test_own_checksums_of_a_source_folder_hold(tmp_path):
    item = Source("corpus.tgz", ("u",), "free", "nobody", 5, "0" * 64)
    (tmp_path / "corpus.tgz").write_bytes(CONTENT)
    own = tmp_path / sources.CHECKSUMS_FILE
    own.write_text(json.dumps({"corpus.tgz": {"sha256": DIGEST}}), encoding="utf-8")
    assert obtain([item], tmp_path / "dest", tmp_path)["corpus.tgz"].read_bytes() == CONTENT
    own.write_text(json.dumps({"corpus.tgz": {"sha256": "1" * 64}}), encoding="utf-8")
    with pytest.raises(DataError, match=r"wrong checksum.* instead of 1111"):
        obtain([item], tmp_path / "dest", tmp_path)


def test_other_names_of_a_file_are_found(tmp_path):
    (tmp_path / "corpus-v1.tgz").write_bytes(CONTENT)
    item = Source("corpus.tgz", ("u",), "free", "nobody", aliases=("corpus-v1.tgz",))
    assert obtain([item], tmp_path / "dest", tmp_path) == {"corpus.tgz": tmp_path / "corpus-v1.tgz"}


@pytest.mark.parametrize(("content", "message"), [(b"", "empty"), (b"\n<html><body>no</body>", "an HTML page instead")])
def test_source_folder_with_no_archive(tmp_path, content, message):
    (tmp_path / "corpus.tgz").write_bytes(content)
    with pytest.raises(DataError, match=rf"corpus\.tgz: {message}.*Replace it"):
        obtain([Source("corpus.tgz", ("u",), "free", "nobody")], tmp_path, tmp_path)
