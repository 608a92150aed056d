"""An invite as a QR code of text characters."""

from __future__ import annotations

import io


def qr_code(invite: str) -> str:
    """Lines of block characters, dark on light. In upper case, which an invite may be read in, the code is smaller."""
    import segno

    code = segno.make(invite.upper(), error="l", micro=False)
    lines = io.StringIO()
    code.terminal(lines, compact=True)
    return lines.getvalue().rstrip("\n")
