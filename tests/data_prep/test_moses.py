"""Moses' scripts in Python: lines that the Perl scripts made, limits of clean-corpus-n."""

from __future__ import annotations

import pytest

from data_prep.cleaning import Limits
from data_prep.moses import lowercase, normalize_punctuation, remove_non_printing, tokenize
from data_prep.text import TextPipeline

# Input and output of mosesdecoder's tokenizer.perl (2020, abbreviations of its master branch); True: with -a.
TOKENIZED = [
    ("de", False, "Er sagte: „Das ist z.B. Nr. 5, oder?“", "Er sagte : „ Das ist z.B. Nr. 5 , oder ? “"),
    ("de", False, "Am 3. Mai kamen ca. 1.234,56 € an...", "Am 3. Mai kamen ca. 1.234,56 € an ..."),
    ("de", False, "Das war's. Ja", "Das war &apos; s. Ja"),
    ("de", False, "Dr. Müller wohnt in Haus B.", "Dr. Müller wohnt in Haus B ."),
    ("de", False, "usw. und so fort (vgl. S. 12).", "usw. und so fort ( vgl. S. 12 ) ."),
    ("de", False, "a_b@c.de & <b> [1]|2", "a _ b @ c.de &amp; &lt; b &gt; &#91; 1 &#93; &#124; 2"),
    ("de", False, "東京 – ½ …", "東京 – ½ …"),
    ("de", False, "Das kostet 5,", "Das kostet 5 ,"),
    ("de", True, "E-Mail an", "E @-@ Mail an"),
    ("en", False, "It's Mr. Smith's car, isn't it etc.", "It &apos;s Mr. Smith &apos;s car , isn &apos;t it etc ."),
    ("en", False, "the 1990's they'd 3,000 dogs' toys.", "the 1990 &apos;s they &apos;d 3,000 dogs &apos; toys ."),
    ("en", False, "No. 5 is alive. No. Really", "No. 5 is alive . No . Really"),
    ("en", False, "Wait.... what.. no.", "Wait .... what .. no ."),
    ("en", False, "a,b,c,d 1,2,3 A.B. and U.S. troops", "a , b , c , d 1,2,3 A.B. and U.S. troops"),
    ("en", False, "\u00a0odd\u2009blanks \x07 \u200bhere\u00ad", "odd blanks \u200b here \u00ad"),
    ("en", True, "2014-15 'quoted' text.'", "2014 @-@ 15 &apos; quoted &apos; text . &apos;"),
    (
        "fr",
        False,
        "L'été d'aujourd'hui, n'est-ce pas ?",
        "L&apos; été d&apos; aujourd&apos; hui , n&apos; est-ce pas ?",
    ),
    ("fr", False, "M. Dupont a dit : « oui » à 14 h 30.", "M. Dupont a dit : « oui » à 14 h 30 ."),
    ("fr", True, "l ' homme d'1 an a-t-il", "l &apos; homme d &apos; 1 an a @-@ t @-@ il"),
]

# Input and output of normalize-punctuation.perl.
NORMALIZED = [
    ("de", '„Ja“, sagte er – nein."', '"Ja", sagte er - nein".'),
    ("de", "( so ) 5 %  1\u00a0000 :", " (so) 5% 1,000:"),
    ("en", "He said “yes”. It’s ‘fine’ …", 'He said "yes." It\'s \'fine" ...'),
    ("en", "''quoted'' `it` «x» 1\u00a0000", ' " quoted " \'it\' "x" 1.000'),
    ("fr", "« oui »\u00a0: l’été, c’est «\u00a0beau\u00a0»\u00a0!", '" oui ": l"été, c\'est "beau" !'),
    ("fr", 'fin."', 'fin".'),
    ("fr", "d’Or 1\u00a0000\u00a0% ( x ).", "d'Or 1,000% (x)."),
]


@pytest.mark.parametrize(("language", "aggressive", "line", "expected"), TOKENIZED)
def test_tokenizes_as_the_script(language, aggressive, line, expected):
    assert tokenize(line, language, aggressive_dash=aggressive) == expected


def test_escaping_is_an_option():
    assert tokenize("<a> & [b]|c's", "en", escape=False) == "< a > & [ b ] | c 's"


@pytest.mark.parametrize(("language", "line", "expected"), NORMALIZED)
def test_normalizes_as_the_script(language, line, expected):
    assert normalize_punctuation(line, language) == expected


def test_the_other_tokenizer_keeps_its_own_quotes():
    normalize_punctuation("x", "de")  # sacremoses' option for the script's quotes changes tables that all share
    assert TextPipeline("de").tokenize("it ’ is") == "it ' is"


def test_non_printing_characters_become_blanks():
    assert remove_non_printing("a\u00adb\u200bc\td\ufeffe") == "a b c d e"
    assert remove_non_printing("\ue000 \u0378 é\u00a0") == "    é\u00a0"


def test_lower_case_as_the_script():
    assert lowercase("ΑΣ ÉİS ẞ") == "ασ éi̇s ß"


def test_pipeline_of_the_scripts():
    text = TextPipeline("en", tokenizer="moses-scripts", escape=True, lowercase=True)
    # e + accent stays as it is; a soft hyphen separates
    assert text.tokenize("“Cafe\u0301 Bar-bar” co\u00adop…") == "&quot; cafe \u0301 bar @-@ bar &quot; co op ..."
    plain = TextPipeline("en", tokenizer="moses-scripts", normalize=False, aggressive_dash=False)
    assert plain.tokenize("“Bar-bar” co\u00adop…") == "“ Bar-bar ” co \u00ad op …"
    assert plain.detokenize("Well , it 's well-known .") == "Well, it's well-known."


@pytest.mark.parametrize(
    ("source", "target", "kept"),
    [
        (4, 6, True),  # 1.5 exactly
        (6, 4, True),
        (4, 7, False),
        (7, 4, False),
        (10, 10, True),
        (11, 10, False),
        (10, 11, False),
        (2, 2, True),
        (1, 1, False),
        (0, 0, False),
    ],
)
def test_limits(source, target, kept):
    assert Limits(maximum=10, ratio=1.5, minimum=2).keep(" a" * source, "b " * target) is kept


def test_pair_with_a_monstrous_word_is_left_out():
    assert Limits(maximum=5).keep("x" * 1000, "y")
    assert not Limits(maximum=5).keep("y", "x" * 1001)
