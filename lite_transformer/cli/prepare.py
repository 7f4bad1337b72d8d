"""Makes a corpus ready for training: reads or generates its text, tokenizes, learns subwords, binarizes.

  lite-transformer prepare embedded --dest data/embedded
  lite-transformer prepare multi30k --source DIR --dest data/multi30k --pair en-de
  lite-transformer prepare iwslt14_de_en --dest data/iwslt14_de_en
  lite-transformer prepare parallel --source DIR --dest data/mine --pair fr-en
  lite-transformer prepare linux_docs --dest data/linux_docs

Published files are downloaded to DEST/downloads and verified; with --source DIR they are taken from there, and the
network is not touched. An interrupted run goes on where it stopped when the same command is typed again; finished
steps are kept.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from data_prep.corpora import CORPORA, Corpus, find_corpus, parse_pair
from data_prep.pipeline import Options, prepare
from data_prep.text import SUBWORDS, TOKENIZERS, TextPipeline
from data_prep.workers import default_workers
from lite_transformer.errors import DataError

logger = logging.getLogger(__name__)

# options that are settings of TextPipeline; not given, the corpus's own settings hold
TEXT_OPTIONS = ("normalize", "tokenizer", "aggressive_dash", "escape", "lowercase", "subword")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    width = max(map(len, CORPORA))
    known = "\n".join(f"  {corpus.name:<{width}} {corpus.description}" for corpus in CORPORA.values())
    parser.description = f"{__doc__}\ncorpora:\n{known}"
    parser.add_argument("corpus", metavar="CORPUS", help=f"one of: {', '.join(CORPORA)}")
    parser.add_argument(
        "--dest", type=Path, required=True, metavar="DIR", help="folder to make; DIR/bin is for training"
    )
    parser.add_argument("--source", type=Path, metavar="DIR", help="folder of the corpus's original files; no download")
    parser.add_argument("--pair", metavar="SRC-TGT", help="languages, for example de-en (default: the corpus's usual)")
    flag = argparse.BooleanOptionalAction
    parser.add_argument("--lowercase", action=flag, help="lower-case the text")
    parser.add_argument("--normalize", action=flag, help="Moses punctuation normalisation")
    parser.add_argument("--tokenizer", choices=TOKENIZERS, help="word tokenizer")
    parser.add_argument("--aggressive-dash", action=flag, help="Moses splits hyphenated words")
    parser.add_argument("--escape", action=flag, help="Moses escapes XML's special characters")
    parser.add_argument("--subword", choices=SUBWORDS, help="subword-nmt, SentencePiece, or (language models) none")
    parser.add_argument("--bpe-merges", type=int, metavar="N", help="BPE merges, or pieces of SentencePiece")
    parser.add_argument(
        "--joined-dictionary", action=flag, help="one dictionary for both languages (default, but for iwslt14_de_en)"
    )
    parser.add_argument(
        "--limit", type=int, metavar="N", help="only the first N pairs of each split: a slice for trying things"
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="of generated text (default 1)")
    parser.add_argument(
        "--workers", type=int, default=default_workers(), metavar="N",
        help="processes (default: one for each processor, here %(default)s)",
    )  # fmt: skip


def run(args: argparse.Namespace) -> int:
    corpus = find_corpus(args.corpus)
    if args.workers < 1:
        raise DataError(f"--workers {args.workers}: at least 1 is needed.")
    if args.limit is not None and args.limit < 1:
        raise DataError(f"--limit {args.limit}: at least 1 is needed.")
    pair = parse_pair(args.pair, corpus)
    chosen = {name: getattr(args, name) for name in TEXT_OPTIONS if getattr(args, name) is not None}
    _refuse_choices(corpus, chosen, args.bpe_merges)
    _refuse_by_languages(corpus, chosen, args)
    text = TextPipeline(language=pair[0], **{**corpus.text, **chosen}).to_json()
    options = Options(
        corpus=corpus,
        pair=pair,
        source=args.source,
        text={name: text[name] for name in TEXT_OPTIONS},
        merges=corpus.merges if args.bpe_merges is None else args.bpe_merges,
        joined_dictionary=corpus.joined_dictionary if args.joined_dictionary is None else args.joined_dictionary,
        seed=args.seed,
        limit=args.limit,
    )
    logger.info("corpus %s: %s", corpus.name, corpus.description)
    logger.info("licence: %s", corpus.licence)
    fetched = f"{args.dest / 'downloads'} (downloaded)" if corpus.sources or corpus.fetch else "nothing (generated)"
    logger.info("reading %s; writing raw, bpe and bin to %s", args.source or fetched, args.dest)
    record = prepare(options, args.dest, args.workers)
    counts = ", ".join(f"{split} {count}" for split, count in record["lines"].items())
    sizes = ", ".join(f"{language} {size}" for language, size in record["dictionary_sizes"].items())
    what = f"a slice of {corpus.name}" if args.limit else corpus.name
    if corpus.is_monolingual:
        counts += "; tokens: " + ", ".join(f"{split} {count}" for split, count in record["tokens"].items())
    else:
        what += f" {'-'.join(pair)}"
    sys.stdout.write(
        f"{what} is ready in {args.dest} (lines: {counts}; dictionary: {sizes}). "
        f"Next: lite-transformer train CONFIG --data {args.dest / 'bin'} --save-dir DIR\n"
    )
    return 0


def _refuse_choices(corpus: Corpus, chosen: dict[str, object], merges: int | None) -> None:
    """Raises DataError if an option would change text that is published ready-made."""
    if corpus.write_subwords is None and not (corpus.is_monolingual and corpus.verbatim):
        return
    given = [*chosen, *(["bpe-merges"] if merges is not None else [])]
    if given:
        names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        units = "subwords" if corpus.write_subwords else "words"
        raise DataError(f"corpus {corpus.name} is published tokenized and in {units}: leave out {names}.")


def _refuse_by_languages(corpus: Corpus, chosen: dict[str, object], args: argparse.Namespace) -> None:
    """Raises DataError if an option is for corpora of two languages and this has one, or the reverse."""
    if not corpus.is_monolingual and chosen.get("subword") == "none":
        raise DataError(f"corpus {corpus.name} needs subwords: --subword bpe or sentencepiece.")
    if corpus.is_monolingual and args.joined_dictionary is not None:
        raise DataError(f"corpus {corpus.name} is text of one language: leave out --joined-dictionary.")
    subword = chosen.get("subword", corpus.text.get("subword"))
    if corpus.is_monolingual and subword == "none" and args.bpe_merges is not None:
        raise DataError("--bpe-merges without subwords: add --subword bpe, or leave it out.")
