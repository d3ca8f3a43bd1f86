"""Bodies that are JSON and yet hold what no text can."""

from __future__ import annotations

import json
import re

from plaudit.serve.refusal import RefusalError

_ESCAPED_HALF = re.compile(rb"\\u[dD][89a-fA-F]")


def refuse_half_characters(body: bytes) -> None:
    """Half of a UTF-16 pair is valid in JSON and in no text; tokenizers and answers fail on it.

    Raises:
        RefusalError: there is one, or the body is not UTF-8.
    """
    try:
        body.decode()
        if _ESCAPED_HALF.search(body):
            json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeDecodeError:
        raise RefusalError("bad_request", "The body is not UTF-8.") from None
    except UnicodeEncodeError:
        raise RefusalError(
            "bad_request", "A text holds half of a UTF-16 surrogate pair; send whole characters."
        ) from None
