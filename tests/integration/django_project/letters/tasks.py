"""The tasks of the project, which ``manage.py runconsumers`` runs."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from letters.models import Letter

try:
    from django.tasks import task
except ImportError:
    from django_tasks import task


@task
def send(pk: int) -> str:
    """Send a letter.  It is there: the task was published when its transaction was committed."""
    letter = Letter.objects.get(pk=pk)
    letter.is_sent = True
    letter.save()
    return letter.text


@task
def fail() -> None:
    """Fail each time."""
    raise LookupError("no such street")


@task(takes_context=True)
def wait(context: Any, folder: str) -> int:
    """Say in *folder* which process runs this attempt, and return when there is a file ``go``."""
    begun = Path(folder, f"begun-{context.attempt}")
    begun.with_suffix(".new").write_text(str(os.getpid()))
    begun.with_suffix(".new").rename(begun)
    while not Path(folder, "go").exists():
        time.sleep(0.01)
    return int(context.attempt)
