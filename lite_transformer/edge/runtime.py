"""Raw text in, raw text out, with an exported model: no torch, no fairseq."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep.text import TextPipeline
from lite_transformer.edge.engine import Engine
from lite_transformer.edge.folder import SHORTLIST_FILE, Manifest, check_folder
from lite_transformer.edge.search import Found, Settings, greedy, search
from lite_transformer.edge.shortlist import Shortlist
from lite_transformer.edge.shortlist import read as read_shortlist
from lite_transformer.edge.tiers import load_engine
from lite_transformer.edge.vocabulary import END, Vocabulary
from lite_transformer.errors import CheckpointError, ConfigError, DataError

logger = logging.getLogger(__name__)

# Tokens of a batch, padding included: bounds the memory that long lines take.
BATCH_TOKENS = 8192
SEARCH = {field.name for field in dataclasses.fields(Settings)}


@dataclass(frozen=True)
class Hypothesis:
    """A translation of a line.

    Attributes:
        text: raw text. subwords: separated by blanks.
        score: log-probability divided by length^lenpen; of a line that was split, the mean of its pieces.
    """

    text: str
    subwords: str
    score: float


@dataclass(frozen=True)
class _Piece:
    """A line's part that the model can read at once: most often all of it."""

    line: int
    tokens: list[int]


class Translator:
    """An exported model, ready to translate. Make one with `load`.

    Attributes:
        manifest: what the folder says of itself.
        max_source_tokens: longest source that the model reads, the end of the sentence included.
        untranslated: numbers of the lines that could not be translated, and gave empty ones.
    """

    def __init__(
        self,
        manifest: Manifest,
        engine: Engine,
        source: tuple[TextPipeline, Vocabulary],
        target: tuple[TextPipeline, Vocabulary],
        shortlist: Shortlist | None = None,
    ):
        self.manifest = manifest
        self.engine = engine
        self._source, self._source_words = source
        self._target, self._target_words = target
        self._shortlist = shortlist
        self.max_source_tokens = manifest.max_source_tokens
        self.untranslated: set[int] = set()

    @classmethod
    def load(cls, folder: str | Path, threads: int = 1, engine: str = "auto", shortlist: bool = False) -> Translator:
        """The model in a folder that `lite-transformer export` made; every file of it is checked first.

        Args:
            threads: that one step of the model is computed by.
            engine: 'native' (compiled), 'portable' (ONNX Runtime), or 'auto': native where it can run.
            shortlist: whether a translation may have only words that its source makes likely: faster, and not exact.
        Raises: CheckpointError naming the file that is missing, damaged, foreign, or of a newer format; ConfigError if
            ``threads`` is not a positive number, the engine cannot run here, or there is no shortlist.
        """
        if not isinstance(threads, int) or threads < 1:
            raise ConfigError(f"threads {threads}: a whole number of at least 1 is needed")
        folder = Path(folder)
        manifest = check_folder(folder)
        sides = []
        for side, language in (("source", manifest.source_language), ("target", manifest.target_language)):
            try:
                pipeline = TextPipeline.from_json(manifest.text[language], folder)
                if pipeline.subword != "none" and not manifest.files.get(pipeline.codes, {}).get("size_bytes"):
                    raise CheckpointError(
                        f"{folder}: its subword model {pipeline.codes} is empty or not listed. Export the model again"
                    )
                pipeline.split("")  # reads the subword model
            except (DataError, TypeError) as error:
                raise CheckpointError(f"{folder}: its text settings cannot be used ({error})") from None
            sides.append((pipeline, Vocabulary(folder / manifest.vocabulary[side])))
        sizes = [manifest.model.get(f"{side}_vocabulary") for side in ("source", "target")]
        found = [len(words) for _, words in sides]
        if sizes != found:
            raise CheckpointError(f"{folder}: dictionaries of {found} subwords, the model has {sizes}")
        words = None
        if shortlist:
            if SHORTLIST_FILE not in manifest.files:
                raise ConfigError(f"{folder} has no shortlist: export the model with --shortlist BIN")
            words = read_shortlist(folder / SHORTLIST_FILE, (found[0], found[1]))
        source, target = sides
        return cls(manifest, load_engine(engine, folder, manifest, threads, shortlist), source, target, words)

    def translate(self, lines: Sequence[str], batch_size: int = 32, first: int = 1, **options: float) -> list[str]:
        """The best translation of each line, one for one and in order; an empty line stays empty.

        Lines with more tokens than the model reads are split at blanks, and their parts translated one by one. A line
        that cannot be translated (too little memory, say) gives an empty one, its number is added to ``untranslated``,
        and an error is logged.

        Args:
            batch_size: lines that are translated together.
            first: number of the first line, for messages.
            options: attributes of `Settings`, such as beam=4; those left out are the model's.
        Raises: ConfigError naming the option that cannot be.
        """
        return [found[0].text if found else "" for found in self.hypotheses(lines, batch_size, first, **options)]

    def hypotheses(
        self, lines: Sequence[str], batch_size: int = 32, first: int = 1, **options: float
    ) -> list[list[Hypothesis]]:
        """As `translate`, but all finished hypotheses of each line, best first: none for an empty line, else 1 to N."""
        settings = self.settings(**options)
        if batch_size < 1:
            raise ConfigError(f"batch_size {batch_size}: at least 1 is needed")
        pieces = [piece for index, line in enumerate(lines) for piece in self._pieces(index, line, first + index)]
        found: list[list[Found]] = [[] for _ in pieces]
        for batch in _batches([len(piece.tokens) for piece in pieces], batch_size):
            results = self._search([pieces[index] for index in batch], settings, first)
            for index, result in zip(batch, results, strict=True):
                found[index] = result
        of_lines: list[list[list[Found]]] = [[] for _ in lines]
        for piece, result in zip(pieces, found, strict=True):
            of_lines[piece.line].append(result)
        return [self._joined(parts) for parts in of_lines]

    def stream(self, line: str, **options: float) -> Iterator[str]:
        """The greedy translation of a line while it is made: the text so far, each time a word is complete.

        Args:
            options: max_len_a, max_len_b and min_len of `Settings`.
        """
        settings = self.settings(beam=1, **options)
        before, shown = "", ""
        for piece in self._pieces(0, line, 1):
            length = int(settings.max_len_a * len(piece.tokens) + settings.max_len_b)
            limit = min(length, self.manifest.max_target_tokens - 1)
            written: list[int] = []
            self._restrict([piece.tokens], beam=2)  # the greedy search looks at three tokens
            for token in greedy(self.engine, piece.tokens, limit, settings.min_len):
                if written and self._is_whole(written[-1], token):
                    text = _one_line(f"{before} {self._text(self._target_words.decode(written))}")
                    if text != shown:
                        shown = text
                        yield text
                written.append(token)
            before = _one_line(f"{before} {self._text(self._target_words.decode(written))}")
        if before != shown:
            yield before

    def settings(self, **options: float) -> Settings:
        """The search that ``options`` ask for, completed by the model's. Raises: ConfigError."""
        unknown = sorted(set(options) - SEARCH)
        if unknown:
            raise ConfigError(f"unknown option {unknown[0]}; known: {', '.join(sorted(SEARCH))}")
        settings = Settings(**{**self.manifest.search, **options})
        settings.check_for(len(self._target_words), self.manifest.max_target_tokens)
        fixed = self.manifest.model.get("fixed")
        if fixed and settings.beam > fixed["beam"]:
            raise ConfigError(
                f"beam {settings.beam}: the model was exported for at most {fixed['beam']}, with fixed shapes"
            )
        return settings

    def encode(self, line: str) -> list[int]:
        """Raw text -> tokens with the end of the sentence; no token at all if there is nothing to translate."""
        tokens = self._source_words.encode(self._source.encode(line))
        return [*tokens, END] if tokens else []

    # --- parts of lines ---

    def _pieces(self, index: int, line: str, number: int) -> list[_Piece]:
        try:
            line.encode()
        except UnicodeEncodeError:
            logger.warning("line %d: not UTF-8; what cannot be read counts as unknown characters", number)
            line = line.encode("utf-8", "replace").decode()
        tokens = self.encode(line)
        if not tokens:
            return []
        limit = self.max_source_tokens
        if len(tokens) <= limit:
            return [_Piece(index, tokens)]
        parts = self._cut(line, limit)
        logger.warning(
            "line %d: %d tokens, the model reads %d; translated in %d parts", number, len(tokens), limit, len(parts)
        )
        return [_Piece(index, part) for part in parts]

    def _cut(self, line: str, limit: int) -> list[list[int]]:
        """A line's tokens in parts of at most ``limit``, cut at blanks; inside a word if it alone is longer."""
        tokens = self.encode(line)
        if len(tokens) <= limit:
            return [tokens] if tokens else []
        words = line.split()
        if len(words) > 1:
            middle = len(words) // 2
            return self._cut(" ".join(words[:middle]), limit) + self._cut(" ".join(words[middle:]), limit)
        body = tokens[:-1]
        return [[*body[start : start + limit - 1], END] for start in range(0, len(body), limit - 1)]

    def _joined(self, parts: list[list[Found]]) -> list[Hypothesis]:
        """The hypotheses of a line, hypothesis n of a split line being hypothesis n of each part."""
        if not parts or not all(parts):
            return []
        hypotheses = []
        for rank in range(min(map(len, parts))):
            subwords = [self._target_words.decode(part[rank].tokens) for part in parts]
            text = _one_line(" ".join(map(self._text, subwords)))
            score = sum(part[rank].score for part in parts) / len(parts)
            hypotheses.append(Hypothesis(text, " ".join(subwords), score))
        return hypotheses

    # --- search and text ---

    def _search(self, pieces: Sequence[_Piece], settings: Settings, first: int) -> list[list[Found]]:
        sources = [piece.tokens for piece in pieces]
        try:
            size, longest = self._restrict(sources, settings.beam), self.manifest.max_target_tokens
            found = search(self.engine, sources, settings, size, longest)
            for piece, hypotheses in zip(pieces, found, strict=True):
                if hypotheses and len(hypotheses[0].tokens) == longest:
                    logger.warning(
                        "line %d: its translation has %d tokens, all that the model writes, and may be cut",
                        first + piece.line, longest,
                    )  # fmt: skip
            return found
        except Exception as error:  # memory, most likely: one line too long must not lose the others
            if len(pieces) > 1:
                return [found for piece in pieces for found in self._search([piece], settings, first)]
            reason = " ".join(str(error).split()) or type(error).__name__
            self.untranslated.add(first + pieces[0].line)
            logger.error("line %d: cannot be translated, left empty (%s)", first + pieces[0].line, reason)
            return [[]]

    def _restrict(self, sources: Sequence[Sequence[int]], beam: int) -> int:
        """Restricts the engine to the shortlist of these sources, if there is one; returns the number of candidates."""
        size = len(self._target_words)
        if self._shortlist is None:
            return size
        allowed = self._shortlist.allowed(sources)
        if not 2 * beam < len(allowed) < size:  # too few for the search, or all of them
            self.engine.restrict(None)
            return size
        self.engine.restrict(allowed)
        return len(allowed)

    def _is_whole(self, last: int, following: int) -> bool:
        """Whether a word ends between two tokens."""
        symbols = self._target_words.symbols
        if self._target.subword == "sentencepiece":
            return symbols[following].startswith("\u2581")
        return self._target.subword == "none" or not symbols[last].endswith("@@")

    def _text(self, subwords: str) -> str:
        return self._target.decode(subwords)


def _one_line(text: str) -> str:
    """One output line a line, whatever the model writes."""
    return " ".join(text.split())


def _batches(lengths: Sequence[int], batch_size: int) -> Iterator[list[int]]:
    """Indices of lines of like length, shortest first, within both limits of a batch."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lambda index: lengths[index]):
        if batch and (len(batch) == batch_size or lengths[index] * (len(batch) + 1) > BATCH_TOKENS):
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch
