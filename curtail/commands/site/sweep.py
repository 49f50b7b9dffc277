"""`curtail site sweep`: releases the machines of a run whose controller is stopped."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from controller.auth.token_files import check_run
from controller.home.home import lock
from controller.provision.driver import ProvisionError
from controller.provision.drivers import driver_of
from controller.provision.start import run_label
from controller.store import reading
from curtail.config import config_from_json
from curtail.errors import CurtailError, Refused
from curtail.system.home_files import STORE


def sweep(home: Path, dry_run: bool, as_json: bool) -> int:
    """Run `curtail site sweep`; returns the exit code: 1 if a provisioner could not be asked.

    Raises: Refused: the controller is running. CurtailError: there is no run in `home`.
    """
    check_run(home)
    try:
        held = lock(home)
    except Refused:
        raise Refused(
            f"the controller of {home} is running and releases orphans itself", "use `curtail site down` for a site"
        ) from None
    with held, reading(home / STORE) as tx:
        run = tx.run()
    if run is None:
        raise CurtailError(f"the store in {home} holds no run")
    config = config_from_json(run.config)
    found, failed = [], False
    for site, section in config.sites.items():
        driver = driver_of(config, site, run_label(config.run.name, run.id))
        if driver is None:
            continue
        try:
            for seen in driver.observe():
                if not dry_run:
                    driver.release(seen, section.grace, False)
                found.append({"site": site, "machine": seen.machine, "id": seen.native, "was": seen.reason})
        except ProvisionError as error:
            failed = True
            print(f"{site}: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps(found))
    else:
        word = "exists" if dry_run else "asked to drain and end"
        for one in found:
            print(f"{one['site']}/{one['machine']} ({one['id']}): {word}")
        if not found and not failed:
            print("no machine of this run exists")
    return 1 if failed else 0
