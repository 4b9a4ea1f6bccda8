"""The log of a server on standard error: plain lines, or JSON, one object a line."""

import json
import logging
import sys
import time


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        values = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        values |= getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return json.dumps(values)


class _Lines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return "".join(letter if letter.isprintable() or letter == "\n" else "?" for letter in text)


def log_to_standard_error(*, as_json: bool) -> logging.Handler:
    """Send the server's and uvicorn's log to standard error, and return the handler."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if as_json else _Lines("%(asctime)s %(levelname)s %(message)s"))
    for name, level in (("resnetkit.serve", logging.INFO), ("uvicorn", logging.WARNING)):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.propagate = False
        logger.addHandler(handler)
    return handler
