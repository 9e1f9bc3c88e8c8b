"""From submitted to ended: why a job waits, what it prints, how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

import aiohttp

from difc_ray.errors import ClusterError
from difc_ray.jobs.client import JobInfo, JobRequest, Jobs
from difc_ray.jobs.runtime_env import STOP_WINDOW

PENDING_S = 30.0
"""From when on, and how often, it is said why a job has not started."""

QUIET_S = 10.0
"""After this long without a line it is asked whether the job still runs."""

LOST_S = 60.0
"""How long the cluster may be out of reach while a job is followed."""

_POLL_S = 0.5
_INSTALLED = ("pip", "uv", "conda")
_LATE_S, _STARTING_S = 15.0, 5.0
_RAYS_WINDOW_S = 3.0


def follow(
    jobs: Jobs, submission_id: str, show: Callable[[str], None], notice: Callable[[str], None],
    request: JobRequest | None = None,
) -> JobInfo:  # fmt: skip
    """Shows what a job prints until it has ended.

    Args:
        jobs: of the cluster.
        submission_id: which one.
        show: takes text as it comes.
        notice: takes sentences on the job.
        request: what was submitted, if it was just now.

    Returns:
        How it ended.

    Raises:
        ClusterError: the cluster was out of reach for a minute; the job may go on.
    """
    info = _started(jobs, submission_id, notice, request)
    seen, reached = 0, time.monotonic()
    while True:
        shown = _Shown(show, seen)
        with contextlib.suppress(RuntimeError, aiohttp.ClientError, OSError, asyncio.TimeoutError):
            asyncio.run(_tail(jobs, submission_id, shown))
        seen = shown.seen
        try:
            info = jobs.info(submission_id)
            reached = time.monotonic()
            if info.over:
                show(jobs.log(submission_id)[seen:])
                return info
        except ClusterError as error:
            if time.monotonic() - reached > LOST_S:
                raise ClusterError(
                    f"{error} Job `{submission_id}` may still run: `difc-ray jobs logs {submission_id} --follow"
                    f"{jobs.address.option}`."
                ) from error
        time.sleep(_POLL_S)


def why_pending(jobs: Jobs, info: JobInfo, request: JobRequest | None) -> str:
    """Why a job has not started, as far as anybody can tell."""
    wanted = {"CPU": request.cpus, "GPU": request.gpus} if request else {}
    there = jobs.resources()
    for name, number in wanted.items():
        used, total = there.get(name, (0.0, 0.0))
        if there and number > total:
            return (
                f"its driver wants {number:g} {name}s on one node, and the whole cluster has {total:g}: it waits until "
                "such a node joins"
            )
        if there and number > total - used:
            return f"its driver wants {number:g} {name}s, and {used:g} of {total:g} are in use: it waits for other jobs"
    installed = [name for name in _INSTALLED if info.runtime_env.get(name)]
    if installed:
        return (
            f"its runtime environment installs packages ({', '.join(installed)}), which may take long, and for ever "
            "where the cluster reaches no package index; Ray gives up after 10 min unless "
            "`config.setup_timeout_seconds` says otherwise"
        )
    return f"Ray says: {info.message.rstrip('.') or 'nothing'}"


def exit_code(info: JobInfo) -> int:
    """The exit code of a job's command, as far as Ray tells it.

    Of a stopped job it does not tell: 143, as of a process that has heard SIGTERM. 1: there was no command to have one.
    """
    if info.status == "SUCCEEDED":
        return 0
    if info.status == "STOPPED":
        return 143
    code = 1 if info.exit_code is None else info.exit_code
    return 128 - code if code < 0 else code or 1


def stop(jobs: Jobs, submission_id: str, *, wait: bool) -> tuple[JobInfo, bool]:
    """Stops a job, and waits until it has ended.

    Ray keeps the request for a job that has not started until it does, however long that takes: that is not waited for.

    Returns:
        What the cluster says of it then, and whether it had not ended before.

    Raises:
        ConfigError: there is no such job.
        ClusterError: it does not end within its window.
    """
    info = jobs.info(submission_id)
    if info.over:
        return info, False
    jobs.stop(submission_id)
    window = window_of(info)
    began = time.monotonic()
    while wait and not info.over:
        waited = time.monotonic() - began
        if info.status == "PENDING" and waited > _STARTING_S:
            break
        if info.status != "PENDING" and waited > window + _LATE_S:
            raise ClusterError(
                f"a stopped job must end within {window:g} s, got `{submission_id}`, which is still {info.status} "
                f"({jobs.address.shown}). Look again with `difc-ray jobs list{jobs.address.option}`."
            )
        time.sleep(_POLL_S)
        info = jobs.info(submission_id)
    return info, True


def window_of(info: JobInfo) -> float:
    """Seconds that Ray gives a job between SIGTERM and SIGKILL."""
    variables = info.runtime_env.get("env_vars") or {}
    try:
        return float(variables.get(STOP_WINDOW, _RAYS_WINDOW_S))
    except (TypeError, ValueError):
        return _RAYS_WINDOW_S


def _started(jobs: Jobs, submission_id: str, notice: Callable[[str], None], request: JobRequest | None) -> JobInfo:
    """Waits until a job is no longer pending."""
    began = told = time.monotonic()
    info = jobs.info(submission_id)
    while info.status == "PENDING":
        now = time.monotonic()
        if now - told >= PENDING_S:
            told = now
            notice(
                f"job `{submission_id}` is PENDING for {now - began:.0f} s: {why_pending(jobs, info, request)}. "
                f"`difc-ray jobs stop {submission_id}{jobs.address.option}` takes it back, or ends it as it starts."
            )
        time.sleep(_POLL_S)
        info = jobs.info(submission_id)
    return info


class _Shown:
    """Text that is shown once, although every connection begins with the log's first line.

    Args:
        show: takes text.
        seen: characters that were shown before.
    """

    def __init__(self, show: Callable[[str], None], seen: int) -> None:
        self._show, self.seen, self._came = show, seen, 0

    def take(self, text: str) -> None:
        """A piece of the log."""
        fresh = text[max(0, self.seen - self._came) :]
        self._came += len(text)
        if fresh:
            self.seen = self._came
            self._show(fresh)


async def _tail(jobs: Jobs, submission_id: str, shown: _Shown) -> None:
    """Shows a job's log until it ends, or the connection does."""
    stream = aiter(jobs.tail(submission_id))
    waiting: asyncio.Future[str | None] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(stream, None))
            done, _ = await asyncio.wait({waiting}, timeout=QUIET_S)
            if done:
                text, waiting = waiting.result(), None
                if text is None:
                    return
                shown.take(text)
            elif (await asyncio.to_thread(jobs.info, submission_id)).over:
                return
    finally:
        if waiting is not None:
            waiting.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await waiting
