"""Reading the one-file HTML pages."""

from __future__ import annotations

from html.parser import HTMLParser

from kerasnet.page import VARIABLES

VOID = {"meta", "br", "hr", "img", "link", "input"}


class Page(HTMLParser):
    """Collects what the tests ask about, and insists on balanced tags and unique ids."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.ids: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.ids += [value for key, value in attrs if key == "id" and value]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes nothing in HTML"
        self.handle_starttag(tag, attrs)
        self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    @property
    def pictures(self) -> list[str]:
        """What the figures are said to show."""
        return [a["aria-label"] or "" for _, a in self.tags if a.get("role") == "img"]


def check_self_contained(text: str) -> None:
    """Check that a page loads nothing, runs nothing, and refers only to what it holds."""
    page = Page(text)
    assert "http:" not in text
    assert "https:" not in text
    assert "@import" not in text
    assert not {"script", "link", "img", "iframe", "object"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        for key, value in attributes.items():
            assert not key.startswith("on")
            if key in ("src", "href", "xlink:href"):
                assert value is not None
                assert value.startswith("#")
                assert value[1:] in page.ids
            if value and "url(" in value:
                assert value.split("url(#")[1].split(")")[0] in page.ids
    assert len(page.ids) == len(set(page.ids))
    # The style sheet in the head is the only one: matplotlib's would restyle the page.
    assert [tag for tag, _ in page.tags].count("style") == 1
    assert not [colour for colour in VARIABLES if colour in text]
