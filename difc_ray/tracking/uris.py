"""Which store a run is recorded in, whether it answers, and its address without credentials."""

from __future__ import annotations

import base64
import os
import re
import shlex
import shutil
import socket
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from pathlib import Path

from difc_ray.errors import ConfigError
from difc_ray.registry import did_you_mean
from difc_ray.secrets import masked

_WEB = ("http", "https")
_DATABASES = ("postgresql", "mysql", "mssql")
_KNOWN = (*_WEB, "sqlite", *_DATABASES, "databricks")
_DEFAULT_PORTS = {"http": 80, "https": 443, "postgresql": 5432, "mysql": 3306, "mssql": 1433}
_SCHEME = re.compile(r"^([A-Za-z][A-Za-z0-9+.\-]*):")


def resolve_uri(config_uri: str | None, output: Path, environ: Mapping[str, str]) -> str:
    """The tracking URI of a run, absolute, because Ray changes the working directory.

    Args:
        config_uri: ``tracking.uri`` of the configuration.
        output: the output folder.
        environ: environment variables; ``MLFLOW_TRACKING_URI`` counts when the configuration says nothing.

    Returns:
        The configured URI, else the environment's, else ``sqlite:///<output>/mlflow.db``. A relative SQLite path is
        taken from the working directory, as MLflow does.

    Raises:
        ConfigError: a scheme that MLflow does not know, or the file store that it no longer takes.
    """
    source, uri = "tracking.uri", config_uri
    if not uri:
        source, uri = "MLFLOW_TRACKING_URI", environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return f"sqlite:///{output.absolute() / 'mlflow.db'}"
    match = _SCHEME.match(uri)
    scheme = match.group(1).lower() if match else ""
    if scheme.split("+")[0] == "sqlite":
        return _absolute_sqlite(uri, source)
    if scheme in _WEB:
        return _checked_server(uri, source)
    if uri == "databricks" or scheme.split("+")[0] in (*_DATABASES, "databricks"):
        return uri
    if scheme in ("", "file"):
        raise ConfigError(
            f"`{source}` must be a database or a server, got `{masked(uri)}` (MLflow 3.17 refuses the file store). "
            f"Use `sqlite:///{Path('mlflow.db').absolute()}` or `http(s)://host:port`."
        )
    raise ConfigError(
        f"a tracking URI must have a scheme that MLflow knows, got `{masked(uri)}` ({source}). "
        f"{did_you_mean(scheme, _KNOWN)}"
    )


def own_uri(store: str, output: Path, environ: Mapping[str, str]) -> str | None:
    """The URI of a store that a run folder names, if the user's own settings lead there as well.

    A folder may come from somebody else, who would like to be sent what is in it, or to have a database written.

    Args:
        store: the address, without credentials.
        output: the output folder in which the run lies.
        environ: environment variables, whose ``MLFLOW_TRACKING_URI`` may have credentials.

    Returns:
        That variable if it names the store; the store if it is the database beside the run; otherwise None.
    """
    current = environ.get("MLFLOW_TRACKING_URI", "").rstrip("/")
    if current and without_credentials(current) == store:
        return current
    return store if store == resolve_uri(None, output, {}) else None


def sync_command(run_dir: Path, store: str, output: Path, environ: Mapping[str, str]) -> str:
    """What sends the rest of a run's records to its store."""
    named = "" if own_uri(store, output, environ) else f" --uri {shlex.quote(store)}"
    return f"difc-ray sync {shlex.quote(str(run_dir))}{named}"


def without_credentials(uri: str) -> str:
    """The identity of a store: its URI without user name and password.

    >>> without_credentials("http://ann:pw@host:5000")
    'http://host:5000'
    """
    parts = urllib.parse.urlsplit(uri)
    if "@" not in parts.netloc:
        return uri
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rsplit("@", 1)[1]))


def probe(uri: str, timeout_s: float) -> str | None:
    """Ask a store for a sign of life.

    Args:
        uri: a resolved tracking URI.
        timeout_s: patience, in seconds.

    Returns:
        None if it can be used; else the sentence that says what is wrong, and the remedy.
    """
    scheme = uri.split(":", 1)[0].split("+")[0].lower()
    if scheme in _WEB:
        return _probe_server(uri, timeout_s)
    if scheme == "sqlite":
        return _probe_file(Path(sqlite_path(uri)))
    if scheme in _DATABASES:
        return _probe_port(uri, scheme, timeout_s)
    return None


def sqlite_path(uri: str) -> str:
    """The file of a resolved ``sqlite:///`` URI."""
    return uri.split(":///", 1)[1].split("?", 1)[0]


def ui_command(uri: str, experiment_id: str | None, run_id: str | None) -> str:
    """The shell command that shows a run."""
    if uri.split(":", 1)[0].lower() in _WEB:
        page = f"/#/experiments/{experiment_id}/runs/{run_id}" if experiment_id and run_id else ""
        return f"python -m webbrowser {shlex.quote(without_credentials(uri) + page)}"
    own = Path(sys.executable).with_name("mlflow")
    command = "mlflow" if shutil.which("mlflow") == str(own) or not own.exists() else _nearest(own)
    return f"{command} ui --backend-store-uri {shlex.quote(masked(uri))}"


def explain_status(uri: str, status: int, text: str) -> str | None:
    """The remedy for an HTTP status that has one, as a sentence; None for others."""
    host = urllib.parse.urlsplit(uri).netloc.rsplit("@", 1)[-1]
    if status == 403 and "Invalid Host header" in text:
        return (
            f"The MLflow server refuses the host name `{host}` (403 Invalid Host header). Start it with "
            f"`mlflow server --allowed-hosts {shlex.quote(host)}`, or use its IP address."
        )
    if status in (401, 403, 407):
        return (
            f"The MLflow server at `{masked(uri)}` refuses our credentials ({status}). Set MLFLOW_TRACKING_USERNAME "
            "and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN."
        )
    return None


def _absolute_sqlite(uri: str, source: str) -> str:
    scheme, separator, path = uri.partition(":///")
    if not separator or not path or path.startswith(":memory:"):
        raise ConfigError(
            f"a SQLite tracking URI must name a file, got `{uri}` ({source}). Write `sqlite:///relative/path.db` or, "
            "with four slashes, `sqlite:////absolute/path.db`."
        )
    file, question, options = path.partition("?")
    return f"{scheme}:///{Path(file).absolute()}{question}{options}"


def _checked_server(uri: str, source: str) -> str:
    parts = urllib.parse.urlsplit(uri)
    try:
        usable = bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:  # what should be a port is no number: a `/`, `?` or `#` in the password
        usable = False
    if not usable:
        raise ConfigError(
            "a tracking server must be http(s)://host:port, got "
            f"`{masked(uri) if '@' in uri else parts.scheme + '://…'}` ({source}). Percent-encode "
            "special characters of a password, or set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD instead."
        )
    return uri.rstrip("/")


def _probe_server(uri: str, timeout_s: float) -> str | None:
    """Ask for one experiment: unlike ``/health``, this passes the host check and the login."""
    request = urllib.request.Request(
        f"{without_credentials(uri)}/api/2.0/mlflow/experiments/search?max_results=1", headers=_authorization(uri)
    )
    shown = masked(uri)
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as answer:
            text = answer.read(4096).decode("utf-8", "replace")
    except urllib.error.HTTPError as error:
        with error:
            text = error.read(4096).decode("utf-8", "replace")
        advice = explain_status(uri, error.code, text)
        return advice or (
            f"`{shown}` answers with HTTP {error.code}. Check that an MLflow server runs there, and whether it needs a "
            "path prefix."
        )
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        what = f"no answer within {timeout_s:g} s" if isinstance(reason, TimeoutError) else masked(str(reason))
        return f"The MLflow server at `{shown}` cannot be reached: {what}. Start it, or correct `tracking.uri`."
    if text.lstrip().startswith("{"):
        return None
    return f"`{shown}` answers, but not as an MLflow server. Correct `tracking.uri`."


def _authorization(uri: str) -> dict[str, str]:
    """The header that MLflow's client would send."""
    parts = urllib.parse.urlsplit(uri)
    user, password = parts.username, parts.password
    if user is None and (token := os.environ.get("MLFLOW_TRACKING_TOKEN")):
        return {"Authorization": f"Bearer {token}"}
    if user is None:
        user, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    else:
        user, password = urllib.parse.unquote(user), urllib.parse.unquote(password or "")
    if not user:
        return {}
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password or ''}".encode()).decode()}


def _probe_file(file: Path) -> str | None:
    folder = file if file.exists() else next(parent for parent in file.parents if parent.exists())
    if os.access(folder, os.W_OK) and not file.is_dir():
        return None
    return f"The MLflow database `{file}` cannot be written. Choose another `tracking.uri`, or change its permissions."


def _probe_port(uri: str, scheme: str, timeout_s: float) -> str | None:
    parts = urllib.parse.urlsplit(uri)
    try:
        host, port = parts.hostname or "localhost", parts.port or _DEFAULT_PORTS[scheme]
        socket.create_connection((host, port), timeout_s).close()
    except (OSError, ValueError) as error:
        return f"The database at `{masked(uri)}` cannot be reached: {error}. Start it, or correct `tracking.uri`."
    return None


def _nearest(executable: Path) -> str:
    """The shorter of the absolute and the relative path of an executable."""
    relative = os.path.relpath(executable)
    return shlex.quote(str(executable) if relative.startswith("..") else relative)
