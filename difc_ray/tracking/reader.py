"""``python -m difc_ray.tracking.reader RUN_ID`` prints what MLflow has of a run, as one line of JSON.

The tracking URI comes in the environment (``DIFC_RAY_TRACKING_URI``). The line is an object with ``params`` and
``tags``; or with ``absent`` if there is no such run, or ``failed`` if the store cannot be read, and the reason.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

from difc_ray.tracking.failures import RefusedError, judge, reason
from difc_ray.tracking.runs import one_at_a_time
from difc_ray.tracking.settings import URI_VARIABLE, UploadSettings
from difc_ray.tracking.uploader import configure_client, mask_output


def main(run_id: str) -> int:
    """Print the answer; see the module."""
    mask_output()
    configure_client(UploadSettings.from_environ())
    print(json.dumps(answer(os.environ[URI_VARIABLE], run_id)), flush=True)
    return 0


def answer(uri: str, run_id: str) -> dict[str, Any]:
    """What the store has, or why it does not say so."""
    from mlflow.tracking import MlflowClient

    try:
        with one_at_a_time(uri):
            client = MlflowClient(uri, registry_uri=uri)
        data = client.get_run(run_id).data
    except Exception as error:
        verdict = judge(error, uri)
        return {"absent" if isinstance(verdict, RefusedError) else "failed": str(verdict or reason(error))}
    return {"params": dict(data.params), "tags": dict(data.tags)}


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
