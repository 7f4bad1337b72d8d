"""The tables that `lite-transformer reproduce` makes, as data: corpus, experiments, whose figures they stand beside.

A row's experiment is a file of configs/, its label is the one of records and of results/literature.json. A row without
an experiment is published, but nobody said how it was trained.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from lite_transformer.errors import ConfigError
from lite_transformer.scoring.protocols import PROTOCOLS, Protocol
from lite_transformer.scoring.text_protocols import TEXT_PROTOCOLS, TextProtocol

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class TableRow:
    """One system of a table.

    Attributes:
        name: what --rows takes.
        label: what the table, the records and the literature call it.
        config: its experiment, '' if there is none.
        note: why there is none.
    """

    name: str
    label: str
    config: str
    note: str = ""

    @property
    def family(self) -> str:
        """The kind of model: rows of one family are one line of the plot."""
        return next(
            (kind for kind in ("Lite", "LightConv", "Evolved Transformer") if kind in self.label), "Transformer"
        )


@dataclass(frozen=True)
class Table:
    """What a table compares.

    Attributes:
        corpus, pair: what `lite-transformer prepare` is told; a corpus of one language has no pair.
        languages: source and target of every row, in either order of ``pair``; none of a language model.
        published: how the figures of others are called: those of the paper, or other literature.
        paper_rows: its rows; or, if there are none, ``prefix``: of every experiment whose name begins with it.
        macs_lengths: source and target length of the pass that is counted.
        smoke_pairs, smoke_merges: pairs of each split and subword merges of a smoke run; 0: none are learnt.
    """

    name: str
    title: str
    corpus: str
    pair: tuple[str, ...]
    languages: tuple[str, ...]
    published: str = "literature"
    paper_rows: tuple[TableRow, ...] = ()
    prefix: str = ""
    macs_lengths: tuple[int, int] = (30, 30)
    smoke_pairs: int = 100
    smoke_merges: int = 500

    @property
    def task(self) -> str:
        """The task of the records, as `lite-transformer evaluate` names it."""
        return "-".join([self.corpus, *self.languages])

    @property
    def is_of_language_models(self) -> bool:
        return not self.pair

    @property
    def protocol(self) -> Protocol | TextProtocol:
        return TEXT_PROTOCOLS[self.corpus] if self.is_of_language_models else PROTOCOLS[self.corpus]

    @property
    def metrics(self) -> tuple[str, ...]:
        """The scores that are published, the one that is plotted last."""
        if self.protocol.metric == "perplexity":
            return ("perplexity",)
        return ("rouge1", "rouge2", "rougeL") if self.protocol.metric == "rouge" else ("tokenized_bleu",)

    @property
    def other_metrics(self) -> tuple[str, ...]:
        """Scores that are only measured."""
        if self.protocol.metric == "perplexity":
            return ()
        return ("rougeLsum",) if self.protocol.metric == "rouge" else ("sacrebleu",)

    @property
    def rows(self) -> tuple[TableRow, ...]:
        return self.paper_rows or _rows_of(self.prefix)


# What records and literature call experiments whose own name would say less.
_DYNAMIC = "5+4 layers, dynamic with gate, pre-norm"
_LABELS = {
    "embedded_de_en": "Lite 128, 3+3 layers",
    **{f"multi30k_{pair}_transformer": "Transformer-Tiny" for pair in ("en_de", "de_en", "en_fr")},
    **{f"multi30k_{pair}_transformer_100m": "Transformer 200, 4+4 layers, pre-norm" for pair in ("en_de", "en_fr")},
    **{f"multi30k_{pair}_lite": "Lite 160, 6+4 layers" for pair in ("en_de", "de_en", "en_fr")},
    **{f"multi30k_{pair}_lite_100m": f"Lite 248, {_DYNAMIC}" for pair in ("en_de", "en_fr")},
    **{
        f"libreoffice_help_{pair}_{name}": label
        for pair in ("de_en", "en_de")
        for name, label in (
            ("lite", f"Lite 160, {_DYNAMIC}"),
            ("lite_100m", f"Lite 248, {_DYNAMIC}"),
            ("transformer", "Transformer-Tiny, pre-norm"),
            ("transformer_100m", "Transformer 200, 4+4 layers, pre-norm"),
        )
    },
    "linux_docs_lite_small": "Lite 448, 6 layers",
    "linux_docs_lite_large": "Lite 672, 6 layers",
    "linux_docs_transformer_small": "Transformer 256, 6 layers",
    "linux_docs_transformer_large": "Transformer 384, 6 layers",
    "debian_synopses_lite": f"Lite 160, {_DYNAMIC}",
    "debian_synopses_transformer": "Transformer-Tiny, pre-norm",
}


def _rows_of(prefix: str) -> tuple[TableRow, ...]:
    """A row for every experiment whose name begins with ``prefix``."""
    rows = []
    for stem in sorted({path.stem for folder in (CHECKOUT, Path()) for path in (folder / "configs").glob("*.yaml")}):
        if stem == prefix or stem.startswith(f"{prefix}_"):
            name = stem.removeprefix(prefix).strip("_") or stem
            label = " ".join(word.upper() if word[0].isdigit() else word.capitalize() for word in name.split("_"))
            rows.append(TableRow(name, _LABELS.get(stem, label), stem))
    return tuple(rows)


def _row(prefix: str, kind: str, size: str) -> TableRow:
    label = {"lite": "Lite Transformer", "transformer": "Transformer", "lightconv": "LightConv"}[kind]
    return TableRow(f"{kind}_{size}", f"{label} {size.upper()}", f"{prefix}_{kind}_{size}")


def _paper_rows(prefix: str, *budgets: Mapping[str, str]) -> tuple[TableRow, ...]:
    return tuple(_row(prefix, kind, size) for budget in budgets for kind, size in budget.items())


_WMT_BUDGETS = tuple(
    {"transformer": macs, "lite": dim} for macs, dim in (("87m", "200"), ("338m", "408"), ("527m", "496"))
)

TABLES: Mapping[str, Table] = MappingProxyType(
    {
        table.name: table
        for table in (
            Table(
                "iwslt", "IWSLT'14 German to English", "iwslt14_de_en", ("de", "en"), ("de", "en"), "paper",
                _paper_rows(
                    "iwslt14_de_en",
                    {"transformer": "63m", "lightconv": "52m", "lite": "160"},
                    {"transformer": "139m", "lightconv": "115m", "lite": "240"},
                    {"transformer": "215m", "lightconv": "204m", "lite": "320"},
                ),
            ),
            Table(
                "wmt_en_de", "WMT'16 English to German", "wmt16_en_de", ("en", "de"), ("en", "de"), "paper",
                (
                    *_paper_rows("wmt16_en_de", *_WMT_BUDGETS),
                    TableRow("evolved", "Evolved Transformer", "", "another architecture, not built here"),
                ),
                smoke_merges=0,
            ),
            Table(
                "wmt_en_fr", "WMT'14 English to French", "wmt14_en_fr", ("en", "fr"), ("en", "fr"), "paper",
                (
                    *_paper_rows("wmt14_en_fr", *_WMT_BUDGETS),
                    TableRow("transformer_base", "Transformer base", "", "its training was never published"),
                    TableRow("lite_largest", "Lite Transformer, largest", "", "its dimensions were never published"),
                ),
            ),
            Table(
                "cnn_dm", "CNN/DailyMail summaries", "cnn_dm", ("article", "summary"), ("article", "summary"), "paper",
                (
                    TableRow("transformer_2g", "Transformer base", "cnn_dm_transformer_2g"),
                    _row("cnn_dm", "lite", "496"),
                ),
                macs_lengths=(30, 60), smoke_pairs=40,
            ),
            *(
                Table(
                    f"multi30k_{source}_{target}", f"Multi30k {title}", "multi30k", pair, (source, target),
                    prefix=f"multi30k_{source}_{target}",
                )
                for source, target, pair, title in (
                    ("en", "de", ("en", "de"), "English to German"),
                    ("de", "en", ("en", "de"), "German to English"),
                    ("en", "fr", ("en", "fr"), "English to French"),
                )
            ),
            *(
                Table(
                    f"libreoffice_{source}_{target}", f"LibreOffice help, {title}", "libreoffice_help", ("de", "en"),
                    (source, target), prefix=f"libreoffice_help_{source}_{target}",
                )
                for source, target, title in (("de", "en", "German to English"), ("en", "de", "English to German"))
            ),
            Table(
                "synopses", "Debian synopses", "debian_synopses", ("description", "synopsis"),
                ("description", "synopsis"), prefix="debian_synopses", macs_lengths=(110, 10),
            ),
            Table(
                "wikitext103", "WikiText-103, language models", "wikitext103", (), (), "paper",
                (
                    *_paper_rows(
                        "wikitext103",
                        {"transformer": "256", "lite": "408"},
                        {"transformer": "320", "lite": "512"},
                        {"lite": "640"},
                        {"transformer": "512", "lite": "896"},
                    ),
                    TableRow("transformer_768", "Transformer 768", "", "its training was never published"),
                ),
                macs_lengths=(0, 30), smoke_merges=0, smoke_pairs=600,
            ),
            Table(
                "linux_docs", "Linux and Python documentation, language models", "linux_docs", (), (),
                prefix="linux_docs", macs_lengths=(0, 30), smoke_merges=0, smoke_pairs=600,
            ),
            Table(
                "embedded", "the embedded corpus, German to English", "embedded", ("de", "en"), ("de", "en"),
                prefix="embedded_de_en", smoke_merges=300,
            ),
        )
    }
)  # fmt: skip


def find_table(name: str) -> Table:
    """The table of that name. Raises: ConfigError listing the known ones."""
    if name not in TABLES:
        raise ConfigError(f"unknown table '{name}'. Known: {', '.join(TABLES)}")
    return TABLES[name]


def choose_rows(table: Table, names: str | None) -> tuple[TableRow, ...]:
    """The rows of a comma-separated list, in the table's order; all that have an experiment without one.

    Raises: ConfigError naming what is unknown, given twice, or has no experiment.
    """
    rows = {row.name: row for row in table.rows}
    if names is None:
        return tuple(row for row in rows.values() if row.config)
    chosen = [name.strip() for name in names.split(",")]
    for name in chosen:
        if name not in rows:
            raise ConfigError(f"--rows: table {table.name} has no row '{name}'. Rows: {', '.join(rows)}")
        if not rows[name].config:
            raise ConfigError(f"--rows {name}: there is no experiment for it ({rows[name].note})")
    return tuple(row for name, row in rows.items() if name in chosen)
