"""What the agent tells its job through environment variables."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from curtail.errors import UsageError


@dataclass(frozen=True, slots=True)
class JobEnvironment:
    """The variables, parsed."""

    url: str  # of the controller
    credential_file: Path
    site: str
    fence: int
    job: str
    cache: Path
    folder: Path  # of this job
    threads: int
    device_batch_samples: int = 0  # samples per rank and forward pass at this site; 0: the run's value
    link_bytes_s: float = 0.0  # limit of transfers, bytes per second; 0: no limit
    server_name: str = ""  # that the controller's certificate must hold; "": the host in `url`
    insecure: bool = False  # plain HTTP to another machine is allowed


def read_environment(values: Mapping[str, str]) -> JobEnvironment:
    """Parse the environment of this process.

    Raises: UsageError: a variable is missing or not a number.
    """
    try:
        return JobEnvironment(
            url=values["CURTAIL_URL"],
            credential_file=Path(values["CURTAIL_CREDENTIAL_FILE"]),
            site=values["CURTAIL_SITE"],
            fence=int(values["CURTAIL_FENCE"]),
            job=values["CURTAIL_JOB"],
            cache=Path(values["CURTAIL_CACHE"]),
            folder=Path(values["CURTAIL_JOB_FOLDER"]),
            threads=int(values.get("CURTAIL_THREADS", "1")),
            device_batch_samples=int(values.get("CURTAIL_DEVICE_BATCH", "0")),
            link_bytes_s=float(values.get("CURTAIL_LINK", "0")),
            server_name=values.get("CURTAIL_SERVER_NAME", ""),
            insecure=values.get("CURTAIL_INSECURE", "0") == "1",
        )
    except (KeyError, ValueError) as error:
        raise UsageError(f"this job was started without {error}", "jobs are started by `curtail agent join`") from None
