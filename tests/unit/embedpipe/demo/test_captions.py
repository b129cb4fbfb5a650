import pytest

from embedpipe.demo.captions import caption, phrase_of, words_of


@pytest.mark.parametrize(
    ("words", "phrase"),
    [
        ("pineapple", "a pineapple"),
        ("avocado", "an avocado"),
        ("unicorn", "a unicorn"),
        ("one-piece swimsuit", "a one-piece swimsuit"),
        ("SOS button", "an SOS button"),
        ("NEW button", "a NEW button"),
        ("UP! button", "an UP! button"),
        ("Japanese castle", "a Japanese castle"),
        ("T-Rex", "a T-Rex"),
        ("bus", "a bus"),
        ("rhinoceros", "a rhinoceros"),
        ("grapes", "grapes"),
        ("money with wings", "money with wings"),
        ("nest with eggs", "a nest with eggs"),
        ("busts in silhouette", "busts in silhouette"),
        ("man lifting weights", "a man lifting weights"),
        ("women holding hands", "women holding hands"),
        ("eight o'clock", "eight o'clock"),
        ("Santa Claus", "Santa Claus"),
        ("Mrs. Claus", "Mrs. Claus"),
        ("Statue of Liberty", "Statue of Liberty"),
    ],
)
def test_articles(words, phrase):
    assert phrase_of(words) == phrase


def test_countries_are_flags():
    assert phrase_of("Japan", country_flag=True) == "the flag of Japan"


def test_short_names_become_words():
    assert words_of(":Trinidad_&_Tobago:") == "Trinidad and Tobago"
    assert words_of(":eight_o’clock:") == "eight o'clock"


def test_the_style_takes_its_own_article():
    assert caption("flat", "a pineapple") == "a flat emoji of a pineapple"
    assert caption("outlined", "grapes") == "an outlined emoji of grapes"
