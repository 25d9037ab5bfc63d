"""What a command that takes hours keeps of its own log, in the folder that it writes."""

import contextlib
import io
import logging
from collections.abc import Iterator
from pathlib import Path

from data_prep.errors import UserError
from launch.job import LogFile

LOG = "launch.log"
printed = logging.getLogger("launch.printed")
printed.propagate = False  # into the log file only, not onto the screen
printed.setLevel(logging.INFO)


@contextlib.contextmanager
def log_file(path: Path) -> Iterator[None]:
    """Keeps what the launcher logs, tracebacks too.

    Args:
        path: Of the file, which is made when first needed.
    """
    handler = LogFile(path)
    loggers = (logging.getLogger(), printed)
    for logger in loggers:
        logger.addHandler(handler)
    try:
        with contextlib.redirect_stdout(_ToLog()):
            yield
    except UserError:
        raise
    except Exception as error:
        printed.error("it failed", exc_info=error)
        raise
    finally:
        for logger in loggers:
            logger.removeHandler(handler)
        handler.close()


class _ToLog(io.TextIOBase):
    """Takes what libraries print, Ray's reports of dead processes above all, and keeps it off the screen."""

    def write(self, text: str) -> int:
        """Logs the lines that are not empty."""
        for line in filter(None, map(str.strip, text.splitlines())):
            printed.info("%s", line)
        return len(text)
