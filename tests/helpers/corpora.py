"""Archives in the formats in which corpora are published, small, of text written here."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import random
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

Pairs = Sequence[tuple[str, str]]

_TEXT = {
    "de": "der die das Haus Hund Garten läuft sieht groß klein heute morgen nicht mit ohne Straße Äpfel viele",
    "en": "the a house dog garden runs sees big small today tomorrow not with without street apples many it",
    "fr": "le la les maison chien jardin court voit grand petit hier demain sans avec rue pommes été d'eau",
}
_WORDS = {language: text.split() for language, text in _TEXT.items()}


def sentences(languages: tuple[str, str], count: int, seed: int = 1) -> list[tuple[str, str]]:
    """Pairs of sentences of 3 to 12 words that mean nothing; word n of one stands for word n of the other."""
    generator = random.Random(seed)
    pairs = []
    for _ in range(count):
        chosen = [generator.randrange(18) for _ in range(generator.randint(3, 12))]
        source, target = (" ".join(_WORDS[language][index] for index in chosen) for language in languages)
        pairs.append((source[0].upper() + source[1:] + ".", target[0].upper() + target[1:] + "."))
    return pairs


def write_tar(path: Path, members: Mapping[str, str | bytes]) -> Path:
    """A tar archive, gzip-compressed unless ``path`` ends in .tar."""
    with tarfile.open(path, "w" if path.suffix == ".tar" else "w:gz") as tar:
        for name, content in members.items():
            data = content.encode() if isinstance(content, str) else content
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def write_deb(path: Path, files: Mapping[str, str], compression: str = "xz", content_name: str | None = None) -> Path:
    """A .deb package: an ar archive of three members, the last a tar of ``files``."""
    tar_bytes = io.BytesIO()
    with tarfile.open(fileobj=tar_bytes, mode=f"w:{compression}") as tar:  # type: ignore[call-overload]
        for name, text in files.items():
            member = tarfile.TarInfo(name)
            content = text.encode()
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    members = {"debian-binary": b"2.0\n", "control.tar.gz": b"odd"}
    members[content_name or f"data.tar.{compression}"] = tar_bytes.getvalue()
    with path.open("wb") as stream:
        stream.write(b"!<arch>\n")
        for name, content in members.items():
            stream.write(f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(content):<10}`\n".encode())
            stream.write(content + b"\n" * (len(content) % 2))
    return path


def write_checksums(folder: Path) -> None:
    """checksums.json of the archives in ``folder``, which makes `prepare --source` take them for the published ones."""
    archives = [path for path in folder.iterdir() if path.suffix in (".tgz", ".tar", ".gz", ".zip")]
    content = {path.name: {"sha256": hashlib.sha256(path.read_bytes()).hexdigest()} for path in archives}
    (folder / "checksums.json").write_text(json.dumps(content), encoding="utf-8")


def text_of(pairs: Pairs, side: int) -> str:
    return "".join(f"{pair[side]}\n" for pair in pairs)


def segments_of(pairs: Pairs, side: int) -> str:
    """The lines of a test set's document, numbered from 1."""
    return "".join(f'<seg id="{number}"> {pair[side]} </seg>\n' for number, pair in enumerate(pairs, start=1))


def write_iwslt14(folder: Path, train: Pairs, tests: Mapping[str, Pairs]) -> Path:
    """de-en.tgz of pairs (German, English); ``tests`` by name, for example TED.tst2010."""
    members: dict[str, str] = {}
    for side, language in enumerate(("de", "en")):
        talks = []
        for start in range(0, len(train), 40):
            talks.append(
                f"<url>http://www.ted.com/talks/{start}</url>\n<keywords>talks, fixture</keywords>\n"
                f"<talkid>{start}</talkid>\n<title>Talk number {start}</title>\n"
                f"<description>TED Talk Subtitles: number {start}.</description>\n"
            )
            talks.append(text_of(train[start : start + 40], side))
        members[f"de-en/train.tags.de-en.{language}"] = "".join(talks)
        for name, pairs in tests.items():
            members[f"de-en/IWSLT14.{name}.de-en.{language}.xml"] = (
                f'<?xml version="1.0" encoding="UTF-8"?>\n<mteval>\n<refset setid="{name}" srclang="de">\n'
                f'<doc docid="1" genre="lectures">\n<title>A title</title>\n{segments_of(pairs, side)}'
                "</doc>\n</refset>\n</mteval>\n"
            )
    members["de-en/README"] = "fixture\n"
    return write_tar(folder / "de-en.tgz", members)


def write_wmt14_en_fr(folder: Path, corpora: Mapping[str, Pairs], test: Pairs) -> None:
    """The six archives of pairs (English, French), and checksums.json, for they are not the published ones.

    ``corpora`` by name: europarl, commoncrawl, un, news, giga; one that is missing is written with no lines.
    """
    places = {
        "europarl": ("training-parallel-europarl-v7.tgz", "training/europarl-v7.fr-en"),
        "commoncrawl": ("training-parallel-commoncrawl.tgz", "commoncrawl.fr-en"),
        "un": ("training-parallel-un.tgz", "un/undoc.2000.fr-en"),
        "news": ("training-parallel-nc-v9.tgz", "training/news-commentary-v9.fr-en"),
        "giga": ("training-giga-fren.tar", "giga-fren.release2.fixed"),
    }
    for name, (archive, stem) in places.items():
        members: dict[str, str | bytes] = {"training/europarl-v7.cs-en.en": "another pair\n"}
        for side, language in enumerate(("en", "fr")):
            text = text_of(corpora.get(name, ()), side)
            if name == "giga":
                members[f"{stem}.{language}.gz"] = gzip.compress(text.encode(), mtime=0)
            else:
                members[f"{stem}.{language}"] = text
        write_tar(folder / archive, members)
    members = {}
    for side, (kind, language) in enumerate((("src", "en"), ("ref", "fr"))):
        members[f"test-full/newstest2014-fren-{kind}.{language}.sgm"] = (
            f'<{kind}set setid="newstest2014" srclang="any" trglang="{language}">\n<doc sysid="ref" docid="1">\n<p>\n'
            f"{segments_of(test, side)}</p>\n</doc>\n</{kind}set>\n"
        )
    write_tar(folder / "test-full.tgz", members)
    write_checksums(folder)


def write_wmt16_en_de(
    path: Path, splits: Mapping[str, Pairs], codes: str, raw: Mapping[str, Pairs] | None = None, prefix: str = ""
) -> Path:
    """The archive of text in subwords, pairs (English, German) by split; ``raw``: untokenized valid and test."""
    stems = {
        "train": "train.tok.clean.bpe.32000",
        "valid": "newstest2013.tok.bpe.32000",
        "test": "newstest2014.tok.bpe.32000",
    }
    members: dict[str, str] = {f"{prefix}bpe.32000": codes, f"{prefix}vocab.bpe.32000": "unused\n"}
    for side, language in enumerate(("en", "de")):
        for split, pairs in splits.items():
            members[f"{prefix}{stems[split]}.{language}"] = text_of(pairs, side)
        for split, pairs in (raw or {}).items():
            members[f"{prefix}{stems[split].split('.')[0]}.{language}"] = text_of(pairs, side)
    return write_tar(path, members)
