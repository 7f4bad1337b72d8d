"""The files a corpus is made from: where they are, what they are, and how they get here, verified.

``obtain`` takes files from a folder the user names and never touches the network then; otherwise it downloads them.
A download grows under a temporary name, goes on after an interruption, and gets its name when size and checksum are
right. A checksum that nobody published is recorded on first use and holds from then on.
"""

from __future__ import annotations

import dataclasses
import errno
import http.client
import json
import logging
import re
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

from tqdm import tqdm

from data_prep.folders import make_folder
from data_prep.io import read_json, sha256, write_json
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

CHECKSUMS_FILE = "checksums.json"
ATTEMPTS = 4  # connections for one file before the user is asked to go on later
TIMEOUT_SECONDS = 60
_BLOCK_BYTES = 1 << 20
_HTML_START = re.compile(rb"\s*(?:<!--.*?-->\s*)*<(?:!doctype\s+html|html|head|body)\b", re.IGNORECASE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Source:
    """One file of a corpus, as its publisher offers it.

    Attributes:
        name: the file's name here, without folders.
        urls: addresses, tried in order; empty if it can only be fetched by hand.
        licence: terms of use.
        citation: whom to cite.
        size_bytes: None if unknown.
        sha256: 64 hexadecimal digits; None if unknown: recorded on first use and verified after.
        hint: one sentence for fetching it by hand, if the addresses do not say it.
        aliases: other names that people's copies have.
    """

    name: str
    urls: tuple[str, ...]
    licence: str
    citation: str
    size_bytes: int | None = None
    sha256: str | None = None
    hint: str = ""
    aliases: tuple[str, ...] = ()


def obtain(sources: Iterable[Source], dest: Path, source_dir: Path | None = None) -> dict[str, Path]:
    """The path of every source by its name, complete and verified.

    Args:
        dest: folder for downloads and for recorded checksums; made if it is missing.
        source_dir: a folder that already has the files. Then nothing is downloaded, and nothing is written there. Its
            own ``checksums.json``, if it has one, holds instead of what is published (of a mirror, of test files).
    Raises: DataError if a file is missing, damaged, or cannot be downloaded; names the file, the place, the next step.
    """
    sources = tuple(sources)
    if source_dir is not None:
        return _take(sources, dest, source_dir)
    make_folder(dest, "--dest")
    found: dict[str, Path] = {}
    for source in sources:
        path = dest / source.name
        if not path.is_file():
            _download(source, path)
        _verify(source, path, dest, f"Delete {path}, then run the same command again")
        found[source.name] = path
    return found


def _take(sources: tuple[Source, ...], dest: Path, folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise DataError(f"--source {folder}: no such folder. {_advice(sources)}")
    found: dict[str, Path] = {}
    for source in sources:
        for name in (source.name, *source.aliases):
            if (folder / name).is_file():
                found.setdefault(source.name, folder / name)
    missing = [source for source in sources if source.name not in found]
    if missing:
        names = ", ".join(source.name for source in missing)
        raise DataError(f"--source {folder}: missing {names}. {_advice(missing)}")
    own = read_json(folder / CHECKSUMS_FILE) if (folder / CHECKSUMS_FILE).is_file() else {}
    for source in sources:
        remedy = f"Replace it. {_advice([source])}"
        if source.name in own:
            logger.warning("%s: its checksum is taken from %s", source.name, folder / CHECKSUMS_FILE)
            source = dataclasses.replace(source, size_bytes=None, sha256=own[source.name]["sha256"])
        _verify(source, found[source.name], dest, remedy)
    return found


def _advice(sources: Iterable[Source]) -> str:
    """How to go on by hand."""
    fetch = "; ".join(
        f"{source.name} from {source.urls[0]}" if source.urls else f"{source.name}: {source.hint}" for source in sources
    )
    return f"Fetch {fetch}; put it in a folder DIR and add --source DIR."


# --- verification --------------------------------------------------------------------------------------------------


def _verify(source: Source, path: Path, dest: Path, remedy: str) -> None:
    """Raises DataError unless size and checksum are the published ones, or the ones recorded in ``dest``."""
    size = path.stat().st_size
    if source.size_bytes is not None and size != source.size_bytes:
        what = "truncated" if size < source.size_bytes else "another file"
        raise DataError(f"{path}: {what}, it has {size} bytes instead of {source.size_bytes}. {remedy}")
    if size == 0:
        raise DataError(f"{path}: empty. {remedy}")
    page = _html_title(path)
    if page is not None:
        raise DataError(f"{path}: an HTML page{page} instead of {source.name}. {remedy}")
    if source.sha256 is not None:
        digest = sha256(path)
        if digest != source.sha256:
            raise DataError(f"{path}: wrong checksum, SHA-256 {digest} instead of {source.sha256}. {remedy}")
        return
    _verify_recorded(source, path, dest, remedy)


def _verify_recorded(source: Source, path: Path, dest: Path, remedy: str) -> None:
    record_path = dest / CHECKSUMS_FILE
    record: dict[str, Any] = read_json(record_path) if record_path.is_file() else {}
    digest = sha256(path)
    known = record.get(source.name, {}).get("sha256")
    if known is None:
        make_folder(dest, "--dest")
        record[source.name] = {"sha256": digest, "size_bytes": path.stat().st_size, "urls": list(source.urls)}
        write_json(record_path, dict(sorted(record.items())))
        logger.info("%s: nobody published its checksum; SHA-256 %s recorded in %s", path, digest, record_path)
    elif known != digest:
        raise DataError(
            f"{path}: wrong checksum, SHA-256 {digest} instead of {known}, recorded on first use in {record_path}. "
            f"{remedy}, or, if the new file is right, delete {record_path}."
        )


def _html_title(path: Path) -> str | None:
    """' (its title)' or '' if the file is an HTML page, else None."""
    if path.suffix in (".html", ".htm", ".xml"):
        return None
    with path.open("rb") as stream:
        head = stream.read(4096)
    if not _HTML_START.match(head):
        return None
    title = re.search(rb"<title>\s*(.*?)\s*</title>", head, re.IGNORECASE | re.DOTALL)
    return f" ('{title[1].decode('utf-8', 'replace')[:60]}')" if title else ""


# --- download ------------------------------------------------------------------------------------------------------


class _Broken(Exception):
    """A connection that may work the next time; the text says why it did not."""


class _Refused(Exception):
    """An address that will not work the next time either."""


def _download(source: Source, path: Path) -> None:
    """Fetches one file; what an interrupted run left of it is kept and continued."""
    if not source.urls:
        raise DataError(f"{source.name} cannot be downloaded: {source.hint}. {_advice([source])}")
    problems: list[str] = []
    for url in source.urls:
        part = path.with_name(f".{path.name}.part")
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(min(2**attempt, 10) / 10)
            try:
                _fetch(source, url, part)
            except _Broken as error:
                problem = f"{url}: {error}"
                continue
            except _Refused as error:
                problem = f"{url}: {error}"
                break
            except OSError as error:
                raise _write_failed(part, error) from error
            _check_part(source, url, part)
            part.replace(path)
            _tag_of(part).unlink(missing_ok=True)
            logger.info("%s: %d bytes", path, path.stat().st_size)
            return
        problems.append(problem)
    kept = ""
    if part.is_file() and part.stat().st_size:
        kept = " Run the same command again to go on where it stopped."
    raise DataError(
        f"{source.name} (wanted as {path}) could not be downloaded. {'; '.join(problems)}.{kept} By hand: "
        f"{_advice([source])}{' ' + source.hint if source.hint else ''}"
    )


def _check_part(source: Source, url: str, part: Path) -> None:
    """Verifies a complete download before it gets its name; a wrong one is deleted, it cannot be continued."""
    page = _html_title(part)
    try:
        if page is not None:
            raise DataError(
                f"{url} answered with an HTML page{page} instead of {source.name}. By hand: {_advice([source])}"
                f"{' ' + source.hint if source.hint else ''}"
            )
        size = part.stat().st_size
        if source.size_bytes is not None and size != source.size_bytes:
            raise DataError(f"{url} has {size} bytes instead of {source.size_bytes}. By hand: {_advice([source])}")
        if source.sha256 is not None and (digest := sha256(part)) != source.sha256:
            raise DataError(
                f"{url}: wrong checksum, SHA-256 {digest} instead of {source.sha256}. Run the same command again; "
                f"if it stays wrong, the published file has changed. By hand: {_advice([source])}"
            )
    except DataError:
        part.unlink(missing_ok=True)
        _tag_of(part).unlink(missing_ok=True)
        raise


def _tag_of(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _fetch(source: Source, url: str, part: Path) -> None:
    """Appends to ``part`` until it is complete. Raises: _Broken, _Refused, OSError of the disk."""
    have, tag = _resumable(source, url, part)
    request = urllib.request.Request(url, headers={"User-Agent": "lite-transformer", "Accept-Encoding": "identity"})
    if have:
        request.add_header("Range", f"bytes={have}-")
        if tag:
            request.add_header("If-Range", tag)
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing after what we have: whole already, or of another version
            if (error.headers.get("Content-Range") or "").endswith(f"/{have}"):
                return
            part.unlink(missing_ok=True)
            raise _Broken("the file has changed on the server") from None
        if error.code in (408, 429) or error.code >= 500:
            raise _Broken(f"HTTP {error.code} {error.reason}") from None
        raise _Refused(f"HTTP {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"no connection ({getattr(error, 'reason', None) or error})") from None
    except ValueError as error:
        raise _Refused(str(error)) from None
    with response:
        if have and not _continues(response, have):
            have = 0
        _receive(source, response, part, have, url)


def _resumable(source: Source, url: str, part: Path) -> tuple[int, str]:
    """How many bytes of ``part`` may stay, and the server's name for that version of the file.

    Bytes of two versions must not be mixed: without a version from the server only a known checksum would notice.
    """
    try:
        tag = json.loads(_tag_of(part).read_text(encoding="utf-8"))
        size = part.stat().st_size
    except (OSError, ValueError):
        return 0, ""
    if tag.get("url") != url or not (tag.get("version") or source.sha256):
        return 0, ""
    return size, str(tag.get("version") or "")


def _continues(response: Any, have: int) -> bool:
    """Whether the answer starts where we stopped; a server without Range support sends everything again."""
    return response.status == 206 and (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-")


def _receive(source: Source, response: Any, part: Path, have: int, url: str) -> None:
    length = response.headers.get("Content-Length")
    total = have + int(length) if length is not None and length.isdigit() else source.size_bytes
    if total is not None:
        _check_space(part, total - have)
    etag = response.headers.get("ETag") or ""
    version = response.headers.get("Last-Modified") if etag.startswith("W/") or not etag else etag
    _tag_of(part).write_text(json.dumps({"url": url, "version": version or ""}), encoding="utf-8")
    progress = tqdm(
        total=total, initial=have, desc=source.name, unit="B", unit_scale=True, disable=None, leave=False
    )  # fmt: skip
    stream: IO[bytes]
    with part.open("r+b" if have else "wb") as stream, progress:
        stream.seek(have)
        stream.truncate()
        while block := _read(response):
            stream.write(block)
            have += len(block)
            progress.update(len(block))
    if total is not None and have < total:
        raise _Broken(f"broke off after {have} of {total} bytes")


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read1(_BLOCK_BYTES))
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(f"broke off ({error})") from None


def _check_space(part: Path, needed: int) -> None:
    free = shutil.disk_usage(part.parent).free
    if needed > free:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")


def _write_failed(part: Path, error: OSError) -> DataError:
    if error.errno == errno.ENOSPC:
        return DataError(
            f"{part.parent}: the disk is full ({error.strerror}). Make room and run the same command again, "
            "it goes on where it stopped; or take another --dest."
        )
    return DataError(f"{part}: cannot be written ({error.strerror or error}). Choose another --dest.")
