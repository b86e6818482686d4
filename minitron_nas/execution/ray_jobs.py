"""Commands that a running Ray cluster carries out; the only module that imports ray.job_submission."""

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeAlias

from minitron_nas.execution import ray_session  # isort: skip  # before ray, for which it sets what ray reads

from aiohttp import ClientError
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from minitron_nas.errors import PlanError

logging.getLogger("ray.dashboard.modules.job.sdk").setLevel(logging.WARNING)  # it tells of each connection

Write: TypeAlias = Callable[[str], object]

_AGAIN_SECONDS = 2.0
_PATIENCE_SECONDS = 60.0
"""A head that has not answered for so long is taken for gone."""
_AND_LOGS = ", last available logs"
"""What Ray repeats behind this of what a job has printed."""
_NO_AGENT = "No available agent"
"""What Ray says of a job as long as the process that starts jobs has not begun."""


@dataclass(frozen=True, slots=True)
class JobEnd:
    """How a job has ended.

    Attributes:
        status: As Ray calls it: SUCCEEDED, FAILED or STOPPED.
        exit_code: Of its command; None if it was not started or was killed.
        message: What Ray says of it.
    """

    status: str
    exit_code: int | None
    message: str


class JobServer:
    """The Jobs API of a cluster's head."""

    def __init__(self, address: str) -> None:
        """Connect.

        Args:
            address: Of the head's dashboard, such as http://head:8265.

        Raises:
            PlanError: If nothing answers there, it is no Ray, or it wants another token.
        """
        if not address.startswith(("http://", "https://")):
            raise PlanError(f"--address {address} must begin with http:// or https://, such as http://head:8265")
        self.address = address
        with _in_our_words(address):
            self._client = JobSubmissionClient(address)

    def submit(self, command: str, environment: Mapping[str, str], about: Mapping[str, str]) -> str:
        """Hand over a command, which is given no CPUs or GPUs, and return the job's id.

        A head that has just begun is given a minute until what starts its jobs has begun, too.

        Args:
            command: A line of shell.
            environment: Variables that it sees beside the head's.
            about: Shown with the job.
        """
        begun = time.monotonic()
        with _in_our_words(self.address):
            while True:
                try:
                    return self._client.submit_job(
                        entrypoint=command, runtime_env={"env_vars": dict(environment)}, metadata=dict(about)
                    )
                except RuntimeError as error:
                    if _NO_AGENT not in str(error) or time.monotonic() - begun > _PATIENCE_SECONDS:
                        raise
                time.sleep(_AGAIN_SECONDS)

    def follow(self, job: str, write: Write) -> JobEnd:
        """Pass on what a job prints, from its beginning, until it has ended, and return how.

        A connection that breaks is made again.

        Args:
            job: Its id.
            write: Gets the text piece by piece.

        Raises:
            PlanError: If the cluster knows no such job, or has not answered for a minute.
        """
        self._details(job)
        tail, heard = _Tail(self._client, job, write), time.monotonic()
        while True:
            with suppress(ClientError, TimeoutError, RuntimeError):  # the connection is broken
                asyncio.run(tail.read())
            try:
                details = self._details(job)
            except PlanError:
                if time.monotonic() - heard > _PATIENCE_SECONDS:
                    raise
            else:
                heard = time.monotonic()
                if details.status.is_terminal():
                    said = (details.message or "").partition(_AND_LOGS)[0]  # they were passed on
                    return JobEnd(details.status.value, details.driver_exit_code, said)
            time.sleep(_AGAIN_SECONDS)

    def stop(self, job: str) -> bool:
        """End a job, and return whether it was running.

        Args:
            job: Its id.

        Raises:
            PlanError: If the cluster knows no such job.
        """
        running = not self._details(job).status.is_terminal()
        with _in_our_words(self.address):
            self._client.stop_job(job)
        while not self._details(job).status.is_terminal():
            time.sleep(_AGAIN_SECONDS / 4)
        return running

    def _details(self, job: str) -> Any:
        with _in_our_words(self.address, job):
            return self._client.get_job_info(job)


class _Tail:
    """What a job prints, each character once, though it be read from the beginning again."""

    def __init__(self, client: JobSubmissionClient, job: str, write: Write) -> None:
        self._client, self._job, self._write = client, job, write
        self._written = 0

    async def read(self) -> None:
        """Pass on what is new, until the job has ended or the connection breaks."""
        read = 0
        pieces: AsyncIterator[str] = self._client.tail_job_logs(self._job)
        async for piece in pieces:
            fresh = piece[max(self._written - read, 0) :]
            read += len(piece)
            if fresh:
                self._write(fresh)
                self._written = read


@contextmanager
def _in_our_words(address: str, job: str | None = None) -> Iterator[None]:
    """Say what to do where Ray refuses."""
    try:
        yield
    except (OSError, RayError, RuntimeError, ValueError) as error:  # of the connection, and of Ray
        if (refusal := ray_session.refused(error, address)) is not None:
            raise refusal from None
        if job is not None and "404" in str(error):
            raise PlanError(f"the cluster at {address} knows no job {job}; `ray job list` shows all") from None
        reason = " ".join(str(error).split())
        raise PlanError(
            f"no Ray cluster takes jobs at {address} ({reason}); give the address of its dashboard, such as "
            "http://head:8265, where `ray start --head --dashboard-host=0.0.0.0` has run with `ray[default]` installed"
        ) from error
