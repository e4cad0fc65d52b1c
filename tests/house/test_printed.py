"""That pages may differ from what is printed by what they say of their figures, and by nothing else."""

from __future__ import annotations

import doctest

import _pytest.doctest
import pytest

from tests.cases.printed import PrintedChecker, agrees

PAGE = """MaskedValidation(2000 instances, scheme 'patterns')
maximum likelihood: 66% to 79%, lowest pattern 48%, width 2.18 sd
modality  coverage
    text     0.893"""


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("lowest pattern 48%, width 3.81 sd", "lowest pattern 49%, width 3.80 sd"),  # a step up, a step down
        ("0.893", "0.895"),
        ("-5.5136", "-5.51362048"),  # the page rounds what the code does not
        ("off by 0.0, 1.4", "off by -0.0, 1.5"),
        ("1.5e-05 left", "1.6e-05 left"),
        ("12,345.6 s", "12,345.4 s"),
        ("71±2 and 16.4±1.3", "73±2 and 15.2±1.2"),  # within what the page says of itself
        ("0.34 (se 0.02)", "0.32 (se 0.03)"),
        ("better by 0.203 +- 0.012 nats", "better by 0.211 +- 0.013 nats"),
        ("gap 71% ± 2% closed", "gap 69% ± 3% closed"),
        ("converged in 400 iterations", "converged in 401 iterations"),
        ("tensor([[2., 0.]])", "tensor([[2.0000, 1.2e-07]])"),
        ("drawing first for ...% of 475 names", "drawing first for 31.5% of 475 names"),
        ("R-hat is ... then 0.52", "R-hat is 1.3, 1.4 then 0.53"),
        ("holds 0.8... of them", "holds 0.8734 of them"),
        ("text     0.893", "text 0.893"),
    ],
)
def test_figures_may_be_off_by_what_the_page_says_of_them(page: str, printed: str) -> None:
    assert agrees(page, printed, whitespace=False)


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("lowest pattern 48%", "lowest pattern 51%"),  # three units
        ("width 3.81 sd", "width 3.84 sd"),
        ("latent 0.2", "latent 0.4"),  # two units, which are all of it
        ("0.893", "0.983"),
        ("0.893", "-0.893"),
        ("1.5e-05", "1.5e-04"),
        ("71±2", "74±2"),
        ("71±2", "71±4"),  # the uncertainty is a figure too
        ("0.34 (se 0.02)", "0.37 (se 0.02)"),
        ("tensor([2.])", "tensor([2.1000])"),
        ("nan", "0.0"),
        ("0.0", "nan"),
        ("1.0", "1"),  # another type, which is printed otherwise
        ("width 3.81 sd", "width sd"),
    ],
)
def test_a_wrong_figure_is_wrong(page: str, printed: str) -> None:
    assert not agrees(page, printed, whitespace=False)


@pytest.mark.parametrize(
    ("page", "printed"),
    [
        ("300 instances", "301 instances"),
        ("(500, 2000, 4) (2, 2000)", "(500, 2000, 4) (2, 2001)"),
        ("seed 0", "seed 1"),
        ("19 of 60 instances", "19 of 61 instances"),
        ("(97, 10) R@1 0.39", "(97, 10) R@10 0.39"),
        ("float64", "float32"),
        ("version 1.2.3", "version 1.2.4"),
        ("2026-01-31", "2026-01-30"),
        ("1F600", "1F601"),
        ("holds 0.8...", "holds 0.79"),
        ("19", "190"),
        ("converged", "not converged"),
        ("conformal: 90%", "conformal: 90"),
        ("first ... last", "first"),
        ("first ... last", "first and last, and more"),
        ("one ... two ... three", "one two three four"),
    ],
)
def test_counts_and_words_are_to_the_letter(page: str, printed: str) -> None:
    assert not agrees(page, printed, whitespace=False)


def test_every_line_and_every_word_counts() -> None:
    assert agrees(PAGE, PAGE)
    assert agrees(PAGE, PAGE.replace("2.18", "2.17") + "\n", whitespace=False)
    for separator in ("\n", " "):
        parts = PAGE.split(separator)
        for place in range(len(parts)):
            without = separator.join(parts[:place] + parts[place + 1 :])
            assert agrees(PAGE, without, whitespace=False) == (not parts[place])  # more white space says no more
            twice = separator.join([*parts[: place + 1], *parts[place:]])
            assert agrees(PAGE, twice, whitespace=False) == (not parts[place])


def test_white_space_counts_where_it_is_asked_to() -> None:
    assert not agrees("a  0.5", "a 0.5")
    assert agrees("a  0.5", "a  0.5")


def test_pytest_holds_doctests_to_this() -> None:
    assert _pytest.doctest._get_checker().__class__ is PrintedChecker
    checker = PrintedChecker()
    assert checker.check_output("(0.632, 3)\n", "(0.6324555, 3)\n", doctest.ELLIPSIS)
    assert not checker.check_output("(0.632, 3)\n", "(0.6354555, 3)\n", doctest.ELLIPSIS)
    assert not checker.check_output("(0.632, 3)\n", "(0.6324555, 4)\n", doctest.ELLIPSIS)
    assert not checker.check_output("[1.0, 2.0]\n", "[1.0,  2.0]\n", doctest.ELLIPSIS)
    assert checker.check_output("[1.0, 2.0]\n", "[1.0,  2.0]\n", doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    assert checker.check_output("a\n<BLANKLINE>\n0.50\n", "a\n\n0.51\n", doctest.ELLIPSIS)
    assert not checker.check_output("a\n<BLANKLINE>\n0.50\n", "a\n0.51\n", doctest.ELLIPSIS)
