"""Ray's jobs API with deadlines, and with refusals that say what to do."""

from __future__ import annotations

import json
import logging
import os
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from difc_ray.config import masked
from difc_ray.engines.ray.access import token_found, token_wanted
from difc_ray.errors import ClusterError, ConfigError
from difc_ray.jobs.address import Address

CONNECT_S, ANSWER_S = 5.0, 60.0
"""Seconds that a cluster has to take a connection, and to say something on it."""

AGENT_S = 60.0
"""How long a cluster that has just started may have no agent that takes jobs."""

ENDED = ("SUCCEEDED", "FAILED", "STOPPED")

_VARIABLE = "RAY_API_SERVER_ADDRESS"
_CHATTY = ("ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk", "ray._private.runtime_env")


class _Client(JobSubmissionClient):  # type: ignore[misc]  # Ray has no types
    """Ray's client, none of whose requests waits for ever."""

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": (CONNECT_S, ANSWER_S), **options})


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """What is submitted.

    Args:
        submission_id: the job's name on the cluster.
        entrypoint: shell command that the cluster runs.
        runtime_env: Ray's description of what the job runs in.
        metadata: texts that are kept with the job.
        cpus: CPUs that the driver itself holds; 0: it runs on the head and holds none.
        gpus: GPUs that the driver itself holds.
    """

    submission_id: str
    entrypoint: str
    runtime_env: dict[str, Any]
    metadata: dict[str, str] = field(default_factory=dict)
    cpus: int = 0
    gpus: int = 0


@dataclass(frozen=True, kw_only=True)
class JobInfo:
    """What a cluster says of a job.

    Args:
        submission_id: the job's name.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: Ray's words on it.
        entrypoint: shell command, without secrets.
        metadata: texts that were submitted with it.
        runtime_env: what it runs in.
        started, ended: seconds since 1970; None: not yet.
        exit_code: of the driver, if Ray knows it.
    """

    submission_id: str
    status: str
    message: str = ""
    entrypoint: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    started: float | None = None
    ended: float | None = None
    exit_code: int | None = None

    @property
    def over(self) -> bool:
        """Whether it has ended."""
        return self.status in ENDED


class Jobs:
    """The jobs of one cluster.

    Args:
        address: its dashboard.

    Raises:
        ClusterError: nothing answers there, it is no Ray, or it wants another token.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        for name in _CHATTY:
            logging.getLogger(name).setLevel(logging.ERROR)
        with self._in_our_words(), _variable(address.url):
            self._client = _Client(address.url)

    def submit(self, request: JobRequest, notice: Callable[[str], None]) -> None:
        """Uploads what the job needs and submits it.

        Raises:
            ConfigError: there is such a job already, or Ray does not take the runtime environment.
            ClusterError: the cluster does not take it.
        """
        deadline, told = time.monotonic() + AGENT_S, False
        while True:
            try:
                with self._in_our_words():
                    self._client.submit_job(
                        entrypoint=request.entrypoint,
                        submission_id=request.submission_id,
                        runtime_env=dict(request.runtime_env),
                        metadata=dict(request.metadata),
                        entrypoint_num_cpus=request.cpus or None,
                        entrypoint_num_gpus=request.gpus or None,
                    )
                return
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"the runtime environment must be one that Ray takes, got this: {_line(error)} (--runtime-env). "
                    "Correct it."
                ) from error
            except RuntimeError as error:
                if "No available agent" not in str(error) or time.monotonic() > deadline:
                    raise self._refusal(request.submission_id, error) from error
            if not told:
                notice(f"the cluster has no agent that takes jobs yet; trying again for {AGENT_S:.0f} s")
                told = True
            time.sleep(2.0)

    def info(self, submission_id: str) -> JobInfo:
        """What the cluster says of a job.

        Raises:
            ConfigError: there is no such job.
        """
        with self._in_our_words(), self._known(submission_id):
            return _info(self._client.get_job_info(submission_id))

    def all(self) -> list[JobInfo]:
        """Every submitted job that the cluster remembers, the newest first."""
        with self._in_our_words(), self._known("all"):
            found = [_info(job) for job in self._client.list_jobs() if job.submission_id]
        return sorted(found, key=lambda job: job.started or 0.0, reverse=True)

    def log(self, submission_id: str) -> str:
        """All that a job has printed.

        Raises:
            ConfigError: there is no such job.
        """
        with self._in_our_words(), self._known(submission_id):
            return str(self._client.get_job_logs(submission_id))

    def tail(self, submission_id: str) -> AsyncIterator[str]:
        """What a job prints, from its beginning, as long as it runs."""
        stream: AsyncIterator[str] = self._client.tail_job_logs(submission_id)
        return stream

    def stop(self, submission_id: str) -> bool:
        """Asks a job to end; whether there was something to end.

        Raises:
            ConfigError: there is no such job.
        """
        with self._in_our_words(), self._known(submission_id):
            return bool(self._client.stop_job(submission_id))

    def resources(self) -> dict[str, tuple[float, float]]:
        """Resource -> (in use, total), as far as the cluster tells."""
        try:
            answer = self._client._do_request("GET", "/api/cluster_status").json()
            usage = answer["data"]["clusterStatus"]["loadMetricsReport"]["usage"]
            return {name: (float(used), float(total)) for name, (used, total) in usage.items()}
        except (requests.RequestException, AuthenticationError, KeyError, TypeError, ValueError):
            return {}

    @contextmanager
    def _in_our_words(self) -> Iterator[None]:
        """Around every request."""
        shown, origin = self.address.shown, self.address.origin
        try:
            yield
        except AuthenticationError as error:
            answer = {"Authentication required": "none (401)", "Authentication failed": "another one (403)"}
            found = answer.get(str(error).split(":")[0]) or token_found(error)
            raise ClusterError(token_wanted(shown, found, origin)) from None
        except (ConnectionError, requests.ConnectionError, requests.Timeout) as error:
            late = isinstance(error, requests.ReadTimeout)
            raise ClusterError(
                f"the dashboard of a Ray cluster must answer at {shown}, got {'no answer in time' if late else 'none'} "
                f"({origin}). Start the cluster, forward the port (`kubectl port-forward`, `ray dashboard`, `ssh -L`), "
                "or correct the address."
            ) from error
        except (requests.RequestException, json.JSONDecodeError, KeyError) as error:
            raise self._foreign() from error
        except RuntimeError as error:
            if "Version check returned 404" in str(error):
                raise self._foreign() from error
            raise

    def _foreign(self) -> ClusterError:
        return ClusterError(
            f"the dashboard of a Ray cluster must answer at {self.address.shown}, got the answer of something else "
            f"({self.address.origin}). Correct the address; the dashboard's port is 8265 unless the cluster says "
            "otherwise."
        )

    def _refusal(self, submission_id: str, error: RuntimeError) -> ConfigError | ClusterError:
        """Why a submission was not taken."""
        text = str(error)
        if "already exists" in text:
            return ConfigError(
                f"a job's name must be new on its cluster, got `{submission_id}` (--submission-id). Leave it out, or "
                f"give another one; `difc-ray jobs list{self.address.option}` shows those that there are."
            )
        if "No available agent" in text:
            return ClusterError(
                f"the cluster at {self.address.shown} must have an agent that takes jobs, got none within {AGENT_S:.0f}"
                f" s ({self.address.origin}). If another Ray has its port on the head (52365), start the head with "
                "another `--dashboard-agent-listen-port`; else look at dashboard_agent.log there."
            )
        return ClusterError(
            f"the cluster at {self.address.shown} must take the job, got this: {_line(error)} ({self.address.origin}). "
            "Its dashboard's log, dashboard_JobHead.log, has more."
        )

    @contextmanager
    def _known(self, submission_id: str) -> Iterator[None]:
        """Around requests for one job."""
        try:
            yield
        except RuntimeError as error:
            if "does not exist" in str(error) or "status code 404" in str(error):
                raise ConfigError(
                    f"a job must be one of the cluster at {self.address.shown}, got `{submission_id}` (command line). "
                    f"`difc-ray jobs list{self.address.option}` shows them."
                ) from error
            raise ClusterError(
                f"the cluster at {self.address.shown} must answer for job `{submission_id}`, got this: {_line(error)} "
                f"({self.address.origin}). Try again."
            ) from error


def _info(job: Any) -> JobInfo:
    return JobInfo(
        submission_id=str(job.submission_id or ""),
        status=str(getattr(job.status, "value", job.status)),
        message=masked(str(job.message or "")),
        entrypoint=masked(str(job.entrypoint or "")),
        metadata=dict(job.metadata or {}),
        runtime_env=dict(job.runtime_env or {}),
        started=None if job.start_time is None else job.start_time / 1e3,
        ended=None if job.end_time is None else job.end_time / 1e3,
        exit_code=job.driver_exit_code,
    )


def _line(error: Exception) -> str:
    """What an error of Ray's comes to: the last line, which in a traceback is the error itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = re.sub(r"^Request failed with status code \d+: ", "", lines[-1] if lines else type(error).__name__)
    return masked(text if len(text) <= 300 else text[:297] + "...").rstrip(".")


@contextmanager
def _variable(url: str) -> Iterator[None]:
    """Ray's client takes the variable before its argument."""
    before = os.environ.get(_VARIABLE)
    os.environ[_VARIABLE] = url
    try:
        yield
    finally:
        if before is None:
            del os.environ[_VARIABLE]
        else:
            os.environ[_VARIABLE] = before
