"""The page for a person behind a port-forward: one HTML document, nothing fetched, no script."""

from agent.status_page.history import History
from agent.status_page.page import POLICY, page

__all__ = ["POLICY", "History", "page"]
