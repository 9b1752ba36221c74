"""A page in a real browser, watched: what it logs, what it asks for, what its plots hold."""

from pathlib import Path
from typing import Any

from playwright.sync_api import Browser, Page, Request


class WatchedPage:
    """A page that was opened from disk, without a network.

    Attributes:
        page: Playwright's.
        faults: console warnings and errors, uncaught errors, requests to anywhere but the page.
    """

    def __init__(self, browser: Browser, path: Path, **context: Any) -> None:
        self.faults: list[str] = []
        self._context = browser.new_context(offline=True, **context)
        self.page: Page = self._context.new_page()
        self.page.on("console", lambda message: self._note(message.type, message.text))
        self.page.on("pageerror", lambda error: self.faults.append(f"error: {error}"))
        self.page.on("request", self._note_request)
        self.page.goto(path.as_uri())

    def close(self) -> None:
        """Close the page."""
        self._context.close()

    def ask(self, expression: str, argument: Any = None) -> Any:
        """Evaluate JavaScript on the page."""
        return self.page.evaluate(expression, argument)

    def values(self, plot: str, axis: str = "y", trace: int = 0) -> list[Any]:
        """Return what plotly holds of a plot's trace."""
        return self.ask(
            "([plot, axis, trace]) => Array.from(document.querySelector("
            "`[data-plot='${plot}']`)._fullData[trace][axis])",
            [plot, axis, trace],
        )

    def plots(self) -> list[str]:
        """Return the names of the plots that are drawn."""
        return self.ask(
            "() => [...document.querySelectorAll('.js-plotly-plot:has(.main-svg)')]"
            ".map((canvas) => canvas.dataset.plot)"
        )

    def _note(self, kind: str, text: str) -> None:
        if kind in ("warning", "error"):
            self.faults.append(f"{kind}: {text}")

    def _note_request(self, request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            self.faults.append(f"request: {request.url}")
