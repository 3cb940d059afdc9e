"""Stop the process as it is, to be started again: what is not acked is delivered again.

For what a worker must not work on after: an error that nobody foresaw, a run or an event loop that
stands still, a database that went back or is another, topics that changed under it.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import Any, NoReturn

logger = logging.getLogger(__name__)

EXIT_CODE = 70  # EX_SOFTWARE


def fail_stop(message: str, **extra: Any) -> NoReturn:
    """Log `message` and end the process without any cleaning up.

    The current exception is logged with it, if there is one.
    """
    logger.critical(message, extra=extra, exc_info=sys.exc_info()[0] is not None)
    logging.shutdown()
    os._exit(EXIT_CODE)
