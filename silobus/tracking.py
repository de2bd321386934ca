"""Inside a job on Azure Machine Learning, this silo's metrics go to the job's MLflow run as well, for its owner to see.

Here lives only that. It is the silo's own workspace: nothing of it reaches the orchestrator. mlflow is used where it is
installed beside AzureML's plugin, and needed nowhere; what goes wrong here never fails a round.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from silobus.metrics import Metric


def track(metrics: Mapping[tuple[str, str], Metric], *, round_number: int) -> None:
    """Logs one number per metric, as `<phase>/<name>`, with the round as its step."""
    if not {"AZUREML_RUN_ID", "MLFLOW_TRACKING_URI"} <= os.environ.keys() or not metrics:
        return
    try:
        import mlflow  # type: ignore[import-not-found, unused-ignore]

        numbers = {f"{phase}/{name}": metric.summary for (name, phase), metric in metrics.items()}
        mlflow.log_metrics(numbers, step=round_number)
    except ImportError:
        return
    except Exception as error:  # noqa: BLE001  # the round matters more than its picture
        sys.stderr.write(f"silobus: the metrics are not in the job's MLflow run: {error}\n")
