"""For all tests: hypothesis measures no time, since CI machines are shared and slow at whim."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("p2pnode", deadline=None)
settings.load_profile("p2pnode")
