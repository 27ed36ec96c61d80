"""The playground in a real browser: it loads, answers, streams, and survives a server that does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import Page, browsing
from serving import Running, chatting, running

from conftest import build
from langbridge.config import RoutingConfig
from langbridge.data import Example
from langbridge.generate import BridgedGenerator, PlainGenerator, Sampling

KEY = "a key that is long enough"


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    with browsing(tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def server(page: Page) -> Iterator[Running]:
    with running(chatting(build()), routing=RoutingConfig(kind="by_language")) as found:
        page.errors.clear()
        page.screen(1280, 900)
        page.open(found.url)
        yield found
        page.leave()


def ask(page: Page, text: str, tokens: int = 12) -> None:
    page.run(f"document.getElementById('most').value = {tokens}; document.getElementById('text').focus()")
    page.type(text)
    page.press("Enter", 13, control=True)


def done(page: Page) -> None:
    page.until("!document.getElementById('ask').disabled")


def text_of(page: Page, name: str) -> str:
    return str(page.run(f"document.getElementById('{name}').textContent"))


def test_it_answers_from_both_sides_and_shows_what_the_lm_hears(page: Page, server: Running) -> None:
    model, sampling = server.service.model, Sampling(max_new_tokens=12)
    ask(page, "Mji mkuu wa nchi hii ni upi jamani?")
    done(page)
    example = [Example(source="Mji mkuu wa nchi hii ni upi jamani?")]
    assert text_of(page, "bridge") == BridgedGenerator(model).answers(example, sampling)[0].text
    assert text_of(page, "plain") == PlainGenerator(model).answers(example, sampling)[0].text
    tokens = len(model.collate.source_ids(example[0].source))
    assert f"{tokens} encoder tokens" in text_of(page, "bridge-facts")
    assert "encoder tokens" not in text_of(page, "plain-facts")
    assert page.run("document.querySelectorAll('#table tbody tr').length") == tokens + 1
    assert "by language: this goes through the bridge" in text_of(page, "route")
    assert not page.errors


def test_pieces_appear_one_after_another(page: Page, server: Running) -> None:
    page.run(
        "window.seen = []; new MutationObserver(() => seen.push(document.getElementById('bridge').textContent.length))"
        ".observe(document.getElementById('bridge'), {childList: true, characterData: true, subtree: true})"
    )
    ask(page, "who?", 60)
    done(page)
    lengths = page.run("seen.filter((n) => n > 0)")
    assert len(set(lengths)) > 5
    assert lengths == sorted(lengths)


def test_a_text_from_right_to_left_is_shown_so(page: Page, server: Running) -> None:
    page.run("document.getElementById('text').focus()")
    page.type("ما هي عاصمة فرنسا؟")
    assert page.run("getComputedStyle(document.getElementById('text')).direction") == "rtl"


def test_it_survives_errors(page: Page, server: Running) -> None:
    """A text that is too long, and a server that is gone: both are told, and the page goes on."""
    ask(page, "x" * 250)
    done(page)
    assert "252 encoder tokens, more than the 200" in text_of(page, "bridge-error")
    page.run("document.getElementById('text').value = ''")
    ask(page, "who?")
    done(page)
    assert not text_of(page, "bridge-error")
    assert text_of(page, "bridge")
    server.service.engine._closing = True  # as if the engine's thread had died
    ask(page, " and who?")
    done(page)
    for name in ("bridge-error", "plain-error"):
        assert "the engine" in text_of(page, name)
    server.stop()
    page.until("fetch('/health').then(() => false, () => true)")
    ask(page, " again")
    done(page)
    assert text_of(page, "bridge-error")


def test_a_key_is_asked_for_and_used(page: Page, tmp_path: Path) -> None:
    with running(chatting(build()), api_keys=(KEY,)) as server:
        page.open(server.url)
        assert page.run("document.getElementById('keybox').hidden")
        ask(page, "who?")
        done(page)
        assert "no valid API key" in text_of(page, "bridge-error")
        assert not page.run("document.getElementById('keybox').hidden")
        page.run(f"document.getElementById('key').value = '{KEY}'")
        page.press("Enter", 13, control=True)
        done(page)
        assert not text_of(page, "bridge-error")
        assert text_of(page, "bridge")


@pytest.mark.parametrize(("width", "phone"), [(1280, False), (360, True)])
def test_it_fits_and_is_used_by_keyboard(page: Page, server: Running, width: int, phone: bool) -> None:
    page.screen(width, 800, phone=phone)
    page.open(server.url)
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    page.until("document.activeElement.id === 'text'")
    seen = []
    for _ in range(14):
        page.press("Tab", 9)
        seen.append(page.run("document.activeElement.id || document.activeElement.textContent"))
    assert [name for name in ("Deutsch", "most", "temperature", "ask") if name not in seen] == []
    ask(page, "who?", 4)
    done(page)
    assert page.run("document.documentElement.scrollWidth <= window.innerWidth")
    assert not page.errors


@pytest.mark.parametrize("dark", [False, True])
def test_text_can_be_read_in_light_and_dark(page: Page, server: Running, dark: bool) -> None:
    """Contrast of 4.5 and more, by the formula of the accessibility guidelines."""
    page.screen(1280, 900, dark=dark)
    page.open(server.url)
    script = """(() => {
        const channel = (c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
        const light = (color) => {
            const [r, g, b] = color.match(/[0-9.]+/g).map(Number).map(channel);
            return 0.2126 * r + 0.7152 * g + 0.0722 * b;
        };
        const ground = (e) => {
            for (; e; e = e.parentElement) {
                const color = getComputedStyle(e).backgroundColor;
                if (!color.endsWith(', 0)')) return color;
            }
            return 'rgb(255, 255, 255)';
        };
        return ['h1', 'header p', '#text', '#ask', '#stop', '#hint', '#route', '.answer', '.row label'].map((name) => {
            const e = document.querySelector(name);
            const [a, b] = [getComputedStyle(e).color, ground(e)].map(light).sort((x, y) => y - x);
            return (a + 0.05) / (b + 0.05);
        });
    })()"""
    assert min(page.run(script)) >= 4.5
    brightness = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)[0]"
    assert (page.run(brightness) < 60) == dark
