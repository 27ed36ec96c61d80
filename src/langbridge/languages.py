"""Names, scripts and codes of the languages we meet. ISO 639-3 codes; two-letter codes are understood too."""

import re
from dataclasses import dataclass

from langbridge.errors import DataError

PIVOT = "eng"
"""The language trained on."""
DEVELOPMENT = ("deu", "swh", "tel", "kat")
"""The languages on which choices may be made; every other one is for testing only."""


@dataclass(frozen=True)
class Language:
    """One language."""

    code: str
    short: str
    name: str
    script: str


_TABLE = """
afr af Afrikaans Latn|amh am Amharic Ethi|ara ar Arabic Arab|bel be Belarusian Cyrl|ben bn Bengali Beng
bul bg Bulgarian Cyrl|cat ca Catalan Latn|ces cs Czech Latn|cmn zh Chinese Hans|dan da Danish Latn|deu de German Latn
ell el Greek Grek|eng en English Latn|epo eo Esperanto Latn|est et Estonian Latn|eus eu Basque Latn|fin fi Finnish Latn
fra fr French Latn|glg gl Galician Latn|hat ht Haitian_Creole Latn|hau ha Hausa Latn
heb he Hebrew Hebr|hin hi Hindi Deva|hun hu Hungarian Latn|hye hy Armenian Armn|ind id Indonesian Latn
isl is Icelandic Latn|ita it Italian Latn|jpn ja Japanese Jpan|kat ka Georgian Geor
kor ko Korean Hang|lit lt Lithuanian Latn|mal ml Malayalam Mlym|mar mr Marathi Deva|nld nl Dutch Latn
pan pa Punjabi Guru|pes fa Persian Arab|pol pl Polish Latn|por pt Portuguese Latn|quy qu Quechua Latn
ron ro Romanian Latn|rus ru Russian Cyrl|som so Somali Latn|spa es Spanish Latn|swh sw Swahili Latn
tam ta Tamil Taml|tel te Telugu Telu|tgl tl Tagalog Latn|tha th Thai Thai|tur tr Turkish Latn
ukr uk Ukrainian Cyrl|urd ur Urdu Arab|vie vi Vietnamese Latn|yor yo Yoruba Latn|yue yue Cantonese Hant
"""

LANGUAGES = {
    code: Language(code, short, name.replace("_", " "), script)
    for row in _TABLE.split("\n")
    for code, short, name, script in (cell.split() for cell in row.split("|") if cell)
}
_BY_SHORT = {language.short: code for code, language in LANGUAGES.items()}
_ALIASES = {"arb": "ara", "zho": "cmn", "ekk": "est", "swa": "swh", "fas": "pes", "que": "quy", "qve": "quy"}
"""Codes of other data sets -> ours; one code stands for the varieties of Quechua, whatever data set they come from."""


_CODE = re.compile(r"([a-z]{2,3})(_[A-Z][a-z]{3})?")


def our_code(text: str) -> str:
    """Return our code for a two- or three-letter one of a data set; codes unknown to us are kept."""
    return _ALIASES.get(text, _BY_SHORT.get(text, text))


def any_code(text: str) -> str:
    """Return our code for any language's two- or three-letter one, its script (`swh_Latn`) left out.

    Codes unknown to us are kept; raises DataError for what is no language code.
    """
    found = _CODE.fullmatch(text)
    if found is None:
        raise DataError(f"{text!r} is no language code: wanted two or three small letters, such as sw or swh.")
    return our_code(found[1])


def code_of(text: str, known: list[str]) -> str:
    """Return the code among `known` that `text` means; raises DataError when there is none."""
    code = text if text in known else our_code(text)
    if code not in known:
        raise DataError(f"no data for language {text!r}; there is: {' '.join(sorted(known))}.")
    return code


def name_of(code: str) -> str:
    """Return the English name of a language, or the code itself when it is unknown to us."""
    return LANGUAGES[code].name if code in LANGUAGES else code


def script_of(code: str) -> str:
    """Return the ISO 15924 script of a language, or `Zyyy` when it is unknown to us."""
    return LANGUAGES[code].script if code in LANGUAGES else "Zyyy"
