"""The embedded corpus: localisation pairs in German, English and French that need no network.

Values (dates, times, amounts, quantities, numbers, names) are drawn at random and rendered in both languages, by
Babel from CLDR's locale data and by num2words for numbers in words; ``embedded_sentences`` puts several into one
sentence. The task is real: fields change places (4. Mai 2021 / May 4, 2021), clocks change from 24 to 12 hours,
nouns agree with numbers.

Splits are disjoint by value: the hash of a value, not of its rendering, says which split may draw it, so a date of
the test split is in no training line, in no style. Names of closed classes (territories, languages, currencies,
scripts, time zones) must recur inside longer lines; there, and wherever else no open value occurs, the hash of the
whole line decides. No source line occurs twice, neither within nor across splits, so each has one translation.
"""

from __future__ import annotations

import dataclasses
import datetime
import functools
import hashlib
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_prep.embedded_sentences import SENTENCES, SLOTS
from data_prep.text import clean_whitespace
from lite_transformer.errors import DataError

LANGUAGES = ("de", "en", "fr")
SIZES = {"test": 1000, "valid": 1000, "train": 44000}  # in the order of making: test never yields to train
SHARES = {"test": 0.03, "valid": 0.03}  # of all values; the rest is train's

Value = tuple[Any, ...]


def _codes(text: str) -> tuple[str, ...]:
    """The words of a block of text: long tables stay readable."""
    return tuple(text.split())


TERRITORIES = _codes(
    """
    AD AE AF AG AL AM AO AR AT AU AZ BA BB BD BE BF BG BH BI BJ BN BO BR BS BT BW BY BZ CA CD CF CG CH CI CL CM CN
    CO CR CU CV CY CZ DE DJ DK DM DO DZ EC EE EG ER ES ET FI FJ FR GA GB GE GH GM GN GR GT GY HN HR HT HU ID IE IL
    IN IQ IR IS IT JM JO JP KE KG KH KR KW KZ LA LB LI LK LR LT LU LV LY MA MC MD ME MG MK ML MM MN MR MT MU MX MY
    MZ NA NE NG NI NL NO NP NZ OM PA PE PG PH PK PL PT PY QA RO RS RU RW SA SD SE SG SI SK SN SO SR SY TD TG TH TJ
    TM TN TO TR TW TZ UA UG US UY UZ VE VN YE ZA ZM ZW
    """
)
NAMED_LANGUAGES = _codes(
    """
    af am ar az be bg bn bs ca cs cy da de el en es et eu fa fi fr ga gl gu he hi hr hu hy id is it ja ka kk km kn
    ko ku ky la lb lo lt lv mg mk ml mn mr ms mt my ne nl no pa pl ps pt ro ru sk sl so sq sr sv sw ta te tg th tk
    tr uk ur uz vi xh yi zh zu
    """
)
SCRIPTS = _codes(
    """
    Arab Armn Beng Brai Cyrl Deva Egyp Ethi Geor Goth Grek Gujr Hang Hebr Hira Kana Khmr Laoo Latn Mong Mymr Phnx
    Runr Sinh Taml Telu Tibt
    """
)
CURRENCIES = _codes(
    """
    EUR USD GBP CHF JPY CNY INR CAD AUD NZD SEK NOK DKK PLN CZK HUF RON BGN TRY RUB UAH ILS EGP ZAR BRL MXN ARS CLP
    COP KRW THB VND SGD HKD ISK SAR MAD KES
    """
)
WORD_CURRENCIES = ("EUR", "USD")  # those whose amounts num2words spells well in all three languages
UNITS = {
    "length": "length-kilometer length-meter length-centimeter length-millimeter length-mile length-foot length-inch",
    "weight": "mass-kilogram mass-gram mass-milligram mass-tonne mass-ounce",
    "duration": "duration-second duration-minute duration-hour duration-day duration-week duration-month duration-year",
    "volume": "volume-liter volume-milliliter volume-cubic-meter volume-gallon",
    "area": "area-square-meter area-square-kilometer area-hectare",
    "storage": "digital-byte digital-kilobyte digital-megabyte digital-gigabyte digital-terabyte",
    "temperature": "temperature-celsius temperature-fahrenheit",
    "speed": "speed-kilometer-per-hour speed-meter-per-second speed-mile-per-hour",
    "power": "power-watt power-kilowatt power-horsepower energy-kilowatt-hour energy-kilojoule energy-kilocalorie",
    "other": "pressure-hectopascal pressure-bar frequency-megahertz frequency-gigahertz electric-volt electric-ampere",
}
ZONES = _codes(
    """
    Europe_Central Europe_Eastern Europe_Western America_Eastern America_Central America_Mountain America_Pacific
    Japan China India Korea Israel Arabian Moscow Singapore Australia_Eastern New_Zealand Argentina Brasilia
    Africa_Eastern
    """
)
PERIODS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400, "week": 604800, "month": 2592000, "year": 31536000}
FIRST_DAY = datetime.date(1950, 1, 1)  # one century, so that a two-digit year stands for one year only
DAYS = (datetime.date(2049, 12, 31) - FIRST_DAY).days + 1


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of value.

    Attributes:
        draw: a random value.
        keys: what decides on the split: every (kind, value) that a rendering gives away; families share kinds, so that
            no date of the test split is in train, be it alone, in an interval or in a sentence. Empty: a closed class.
        render: (value, variant, language) -> text.
        variants: styles; where two look alike in the source language but not in the target's, the first one stands.
    """

    draw: Callable[[random.Random], Value]
    keys: Callable[[Value], list[tuple[str, Any]]]
    render: Callable[[Value, str, str], str]
    variants: tuple[str, ...] = ("",)


# --- dates and times


def _draw_date(rng: random.Random) -> Value:
    return (FIRST_DAY + datetime.timedelta(days=rng.randrange(DAYS)),)


def _date_keys(value: Value) -> list[tuple[str, Any]]:
    return [("date", value[0])]


def _render_date(value: Value, variant: str, language: str) -> str:
    from babel import dates

    if variant in ("full", "long", "medium", "short"):
        return dates.format_date(value[0], variant, locale=language)
    return str(dates.format_skeleton(variant, value[0], locale=language))


def _draw_time(rng: random.Random) -> Value:
    return (datetime.time(rng.randrange(24), rng.randrange(60), rng.randrange(60)),)


def _time_keys(value: Value) -> list[tuple[str, Any]]:
    return [("time", (value[0].hour, value[0].minute))]


def _render_time(value: Value, variant: str, language: str) -> str:
    from babel import dates

    return dates.format_time(value[0], variant, locale=language)


def _draw_zoned_time(rng: random.Random) -> Value:
    return (*_draw_time(rng), rng.choice(ZONES))


def _render_zoned_time(value: Value, variant: str, language: str) -> str:
    from babel import dates

    # CLDR's full pattern with the zone's name from CLDR: no time zone database is needed on the user's machine.
    pattern = _locale(language).time_formats["full"].pattern.replace("zzzz", "'@'")
    return dates.format_time(value[0], pattern, locale=language).replace("@", _zone_name(value[1], language))


def _draw_datetime(rng: random.Random) -> Value:
    return (*_draw_date(rng), *_draw_time(rng))


def _render_datetime(value: Value, variant: str, language: str) -> str:
    from babel import dates

    moment = datetime.datetime.combine(value[0], value[1], tzinfo=datetime.UTC)
    return dates.format_datetime(moment, variant, tzinfo=datetime.UTC, locale=language)


def _draw_interval(rng: random.Random) -> Value:
    (start,) = _draw_date(rng)
    end = min(start + datetime.timedelta(days=rng.randint(1, 40)), FIRST_DAY + datetime.timedelta(days=DAYS - 1))
    return (start, end) if end > start else _draw_interval(rng)


def _render_interval(value: Value, variant: str, language: str) -> str:
    from babel import dates

    start, end = value
    return dates.format_interval(start, end, "yMMMd", locale=language)


def _render_hours(value: Value, variant: str, language: str) -> str:
    from babel import dates

    start, end = sorted(value)
    return dates.format_interval(start, end, "hm" if language == "en" else "Hm", locale=language)


def _draw_month(rng: random.Random) -> Value:
    return (datetime.date(rng.randint(1950, 2049), rng.randint(1, 12), 1),)


def _draw_past(rng: random.Random) -> Value:
    return (-rng.randint(1, 400), rng.choice(tuple(PERIODS)))


def _draw_relative(rng: random.Random) -> Value:
    number, period = _draw_past(rng)
    return (rng.choice((-1, 1)) * number, period)


def _render_relative(value: Value, variant: str, language: str) -> str:
    from babel import dates

    delta = datetime.timedelta(seconds=value[0] * PERIODS[value[1]])
    return dates.format_timedelta(delta, granularity=value[1], threshold=1e12, add_direction=True, locale=language)


# --- numbers, amounts, quantities


def _draw_number(rng: random.Random) -> Value:
    digits = rng.randint(2, 7)
    decimals = rng.choice((0, 0, 1, 2, 3))
    return (_scaled(rng.randrange(10 ** (digits - 1), 10**digits), decimals),)


def _scaled(digits: int, decimals: int) -> Any:
    """digits * 10^-decimals, exactly and without trailing zeros."""
    from decimal import Decimal

    return Decimal(digits).scaleb(-decimals).normalize() + 0


def _render_number(value: Value, variant: str, language: str) -> str:
    from babel import numbers

    if variant == "percent":
        return numbers.format_percent(value[0].scaleb(-2), locale=language, decimal_quantization=False)
    return numbers.format_decimal(value[0], locale=language)


def _draw_percent(rng: random.Random) -> Value:
    return (_scaled(rng.randrange(1, 10000), rng.choice((1, 2))),)


def _draw_compact(rng: random.Random) -> Value:
    return (_scaled(rng.randrange(10, 10000), 1), rng.choice((6, 9)), rng.choice(("EUR", "USD", "GBP")))


def _render_compact(value: Value, variant: str, language: str) -> str:
    from babel import numbers

    number, magnitude, currency = value
    number = int(number.scaleb(magnitude))
    if variant == "currency":
        return numbers.format_compact_currency(number, currency, fraction_digits=1, locale=language)
    kind: Any = variant
    return numbers.format_compact_decimal(number, format_type=kind, fraction_digits=1, locale=language)


def _draw_amount(rng: random.Random) -> Value:
    from babel import numbers

    currency = rng.choice(CURRENCIES)
    digits = rng.randint(3, 6)
    return (_scaled(rng.randrange(10 ** (digits - 1), 10**digits), numbers.get_currency_precision(currency)), currency)


def _render_amount(value: Value, variant: str, language: str) -> str:
    from babel import numbers

    number, currency = value
    kind: Any = variant
    return numbers.format_currency(number, currency, format_type=kind, locale=language)


def _quantities_family(*kinds: str) -> Family:
    units = " ".join(UNITS[kind] for kind in kinds).split()

    def draw(rng: random.Random) -> Value:
        largest, decimals = rng.choice(
            ((3, 0), (999, 0), (999, 0), (999, 1))
        )  # one and few often: they decide on plurals
        return (_scaled(rng.randint(1, largest), decimals), rng.choice(units))

    return Family(draw, _whole("quantity"), _render_quantity, ("long", "short"))


def _render_quantity(value: Value, variant: str, language: str) -> str:
    from babel import units

    number, unit = value
    length: Any = variant
    return units.format_unit(number, unit, length=length, locale=language)


def _draw_word_number(rng: random.Random) -> Value:
    return (rng.choice((rng.randint(0, 999), rng.randint(0, 999), rng.randint(1100, 1999))),)


def _render_words(value: Value, variant: str, language: str) -> str:
    from num2words import num2words

    if 1100 <= value[0] < 2000:
        variant = "year"  # what such numbers mostly are; their long forms are hardly used
    return str(num2words(value[0], lang=language, to=variant))


def _draw_word_amount(rng: random.Random) -> Value:
    return (rng.randint(1, 99), rng.randint(1, 99), rng.choice(WORD_CURRENCIES))


def _render_word_amount(value: Value, variant: str, language: str) -> str:
    from num2words import num2words

    return str(num2words(value[0] + value[1] / 100, lang=language, to="currency", currency=value[2]))


# --- names


@functools.cache
def _locale(language: str) -> Any:
    from babel import Locale

    return Locale(language)


@functools.cache
def _zone_name(zone: str, language: str) -> str:
    return str(_locale(language).meta_zones[zone]["long"]["standard"])


def _name(kind: str, code: str, language: str) -> str:
    if kind == "zones":
        return _zone_name(code, language)
    return str(getattr(_locale(language), kind)[code])


NAMES = {
    "territories": TERRITORIES,
    "languages": NAMED_LANGUAGES,
    "scripts": SCRIPTS,
    "currencies": CURRENCIES,
    "zones": ZONES,
}


def _names_family(kind: str) -> Family:
    return Family(
        draw=lambda rng: (rng.choice(NAMES[kind]),),
        keys=lambda value: [],
        render=lambda value, variant, language: _name(kind, value[0], language),
    )


def _draw_list(rng: random.Random) -> Value:
    kind = rng.choice(("territories", "territories", "languages", "currencies"))
    return (kind, *rng.sample(NAMES[kind], rng.randint(2, 4)))


def _render_list(value: Value, variant: str, language: str) -> str:
    from babel import lists

    style: Any = variant
    return lists.format_list([_name(value[0], code, language) for code in value[1:]], style=style, locale=language)


def _draw_variety(rng: random.Random) -> Value:
    return (rng.choice(NAMED_LANGUAGES), rng.choice(TERRITORIES))


def _render_variety(value: Value, variant: str, language: str) -> str:
    return f"{_name('languages', value[0], language)} ({_name('territories', value[1], language)})"


def _whole(kind: str) -> Callable[[Value], list[tuple[str, Any]]]:
    return lambda value: [(kind, value)]


FAMILIES: Mapping[str, Family] = {
    "date": Family(_draw_date, _date_keys, _render_date, ("full", "long", "medium", "short", "yMMMEd")),
    "time": Family(_draw_time, _time_keys, _render_time, ("medium", "short")),
    "zoned_time": Family(_draw_zoned_time, _time_keys, _render_zoned_time),
    "datetime": Family(
        _draw_datetime,
        lambda value: _date_keys(value) + _time_keys(value[1:]),
        _render_datetime,
        ("full", "long", "medium", "short"),
    ),
    "interval": Family(_draw_interval, lambda value: [("date", day) for day in value], _render_interval),
    "hours": Family(
        lambda rng: (*_draw_time(rng), *_draw_time(rng)),
        lambda value: _time_keys(value) + _time_keys(value[1:]),
        _render_hours,
    ),
    "month": Family(_draw_month, _whole("month"), _render_date, ("yMMMM",)),
    "quarter": Family(
        lambda rng: (datetime.date(rng.randint(1950, 2049), rng.choice((1, 4, 7, 10)), 1),),
        _whole("quarter"),
        _render_date,
        ("yQQQQ", "yQQQ"),
    ),
    "relative": Family(_draw_relative, _whole("relative"), _render_relative),
    "past": Family(_draw_past, _whole("relative"), _render_relative),
    "number": Family(_draw_number, _whole("number"), _render_number),
    "percent": Family(_draw_percent, _whole("percent"), _render_number, ("percent",)),
    "compact": Family(
        _draw_compact, lambda value: [("compact", value[:2])], _render_compact, ("short", "long", "currency")
    ),
    "amount": Family(_draw_amount, _whole("amount"), _render_amount, ("standard", "name")),
    "quantity": _quantities_family(*UNITS),
    "length": _quantities_family("length"),
    "weight": _quantities_family("weight"),
    "duration": _quantities_family("duration"),
    "temperature": _quantities_family("temperature"),
    "mixture": _quantities_family("weight", "volume"),
    "words": Family(_draw_word_number, _whole("words"), _render_words, ("cardinal", "ordinal", "year")),
    "amount_words": Family(_draw_word_amount, _whole("amount_words"), _render_word_amount),
    "territory": _names_family("territories"),
    "language": _names_family("languages"),
    "script": _names_family("scripts"),
    "currency": _names_family("currencies"),
    "zone": _names_family("zones"),
    "list": Family(_draw_list, lambda value: [], _render_list, ("standard", "or")),
    "variety": Family(_draw_variety, lambda value: [], _render_variety),
}

# How often a line is one value of a family, and how often a sentence or two; families that are exhausted yield.
WEIGHTS = {
    "date": 7, "time": 3, "zoned_time": 3, "datetime": 6, "interval": 4, "hours": 3, "month": 1, "quarter": 1,
    "relative": 4, "number": 5, "percent": 2, "compact": 3, "amount": 6, "quantity": 7, "words": 4, "amount_words": 3,
    "territory": 1, "language": 1, "script": 1, "currency": 1, "zone": 1, "list": 6, "variety": 3,
    "sentence": 36, "two_sentences": 5,
}  # fmt: skip


def find_sources(source: Path | None, pair: tuple[str, str]) -> dict[str, Path]:
    """Nothing: the corpus is generated. Raises: DataError if a source folder is given all the same."""
    if source is not None:
        raise DataError(f"corpus embedded is generated and reads no files; leave out --source {source}.")
    return {}


def read_splits(files: Mapping[str, Path], pair: tuple[str, str], seed: int) -> dict[str, tuple[list[str], list[str]]]:
    """{"train": (source lines, target lines), ...} with the numbers of lines in SIZES."""
    return generate(pair, seed)


def generate(
    pair: tuple[str, str], seed: int, sizes: Mapping[str, int] = SIZES
) -> dict[str, tuple[list[str], list[str]]]:
    """The corpus of a language pair; the same for the same pair, seed and sizes (and versions of Babel and num2words).

    Args:
        pair: two different languages of LANGUAGES.
        sizes: lines by split.
    """
    writer = _Writer(pair, seed)
    total = sum(sizes.values())
    splits: dict[str, tuple[list[str], list[str]]] = {}
    with tqdm(total=total, desc="generate embedded corpus", unit="line", disable=None, leave=False) as progress:
        for split, size in sizes.items():
            rng = random.Random(f"{seed}:{split}")
            lines: list[tuple[str, str]] = []
            while len(lines) < size:
                line = writer.line(split, rng)
                if line is not None:
                    lines.append(line)
                    progress.update()
            splits[split] = ([source for source, _ in lines], [target for _, target in lines])
    return splits


def split_of(kind: str, value: Any, seed: int) -> str:
    """The split that may use a value: a hash of seed, kind and value decides."""
    digest = hashlib.sha256(f"{seed}|{kind}|{value!r}".encode()).digest()
    position = int.from_bytes(digest[:8], "big") / 2**64
    for split, share in SHARES.items():
        if position < share:
            return split
        position -= share
    return "train"


class _Writer:
    """Draws lines of one language pair, none twice, none with two translations."""

    def __init__(self, pair: tuple[str, str], seed: int) -> None:
        self.pair = pair
        self.seed = seed
        self.translations: dict[str, str] = {}  # of every line and every part of one
        self.used: set[str] = set()

    def line(self, split: str, rng: random.Random) -> tuple[str, str] | None:
        """A new line of the split; None if the draw was a repetition or belongs to another split."""
        (kind,) = rng.choices(tuple(WEIGHTS), tuple(WEIGHTS.values()))
        if kind == "two_sentences":
            drawn = [self._sentence(split, rng), self._sentence(split, rng)]
        elif kind == "sentence":
            drawn = [self._sentence(split, rng)]
        else:
            drawn = [self._part(kind, FAMILIES[kind].variants, split, rng)]
        parts = [part for part in drawn if part is not None]
        if len(parts) < len(drawn):
            return None
        source, target = " ".join(part[0] for part in parts), " ".join(part[1] for part in parts)
        is_open = any(part[2] for part in parts)
        if not is_open and split_of("line", source, self.seed) != split:
            return None
        if source in self.used or not self._agrees(source, target):
            return None
        self.used.add(source)
        return source, target

    def _sentence(self, split: str, rng: random.Random) -> tuple[str, str, bool] | None:
        """A sentence with all its slots filled, and whether any of them holds an open value."""
        sentence = rng.choice(SENTENCES)
        filled: list[dict[str, str]] = [{}, {}]
        is_open = False
        for slot in _slots(sentence[self.pair[0]]):
            family, variants = SLOTS[slot.rstrip("23")]
            part = self._part(family, variants or FAMILIES[family].variants, split, rng)
            if part is None:
                return None
            filled[0][slot], filled[1][slot] = part[:2]
            is_open = is_open or part[2]
        source, target = (sentence[language].format(**texts) for language, texts in zip(self.pair, filled, strict=True))
        return source, target, is_open

    def _part(self, name: str, variants: Sequence[str], split: str, rng: random.Random) -> tuple[str, str, bool] | None:
        """A value of the split in both languages, and whether it is open (not of a closed class)."""
        family = FAMILIES[name]
        value = family.draw(rng)
        while any(split_of(kind, key, self.seed) != split for kind, key in family.keys(value)):
            value = family.draw(rng)
        variant = rng.choice(variants)
        source, target = self._render(family, value, variant)
        for earlier in family.variants[: family.variants.index(variant)]:
            if (other := self._render(family, value, earlier))[0] == source:
                target = other[1]  # the styles look alike in this source language: translate as the first one
                break
        return (source, target, bool(family.keys(value))) if self._agrees(source, target) else None

    def _render(self, family: Family, value: Value, variant: str) -> tuple[str, str]:
        source, target = (clean_whitespace(family.render(value, variant, language)) for language in self.pair)
        return source, target

    def _agrees(self, source: str, target: str) -> bool:
        """Whether the source has no other translation so far."""
        return self.translations.setdefault(source, target) == target


@functools.cache
def _slots(sentence: str) -> tuple[str, ...]:
    """The names of a sentence's slots, in order."""
    from string import Formatter

    return tuple(name for _, name, _, _ in Formatter().parse(sentence) if name)
