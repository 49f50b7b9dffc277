"""`agent join`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.cli.arguments import check_name, default_state, read_token, samples_at_once
from curtail.cli.root import agent_app


@agent_app.command("join")
def agent_join(
    site: Annotated[str, typer.Option(help="Name of this site.")],
    region: Annotated[str, typer.Option(help="Grid region of the site, as in the run file.")],
    url: Annotated[
        str | None,
        typer.Argument(help="The controller, http://HOST:PORT; found by zeroconf if not given.", show_default=False),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the agent's state; by default ~/.local/state/curtail/agent-SITE.", show_default=False
        ),
    ] = None,
    token_file: Annotated[
        Path | None,
        typer.Option(help="File with the join token; else CURTAIL_TOKEN in the environment.", show_default=False),
    ] = None,
    ranks: Annotated[int, typer.Option(min=0, help="Processes of a job; 0: one for each GPU, or one.")] = 0,
    threads: Annotated[int, typer.Option(min=0, help="CPU threads of each process; 0: the cores, split.")] = 0,
    device_batch_samples: Annotated[
        str, typer.Option(help="Samples that a process takes through the model at once; auto: as the run file says.")
    ] = "auto",
    machines: Annotated[
        int, typer.Option(min=1, max=64, help="How many machines the site has; the same number at each of them.")
    ] = 1,
    address: Annotated[
        str | None,
        typer.Option(
            help="Where the site's other machines reach this one; by default as it reaches the controller.",
            show_default=False,
        ),
    ] = None,
    rendezvous_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port of this machine at which the site's machines meet.")
    ] = 29400,
    link_limit: Annotated[
        str | None,
        typer.Option(help="Most that a job's transfers take of the link, such as 100Mbit/s.", show_default=False),
    ] = None,
) -> int:
    """Join a run with this machine and train whenever its region permits."""
    check_name("site", site)
    check_name("region", region)
    from agent.join import JoinOptions, run
    from agent.link import parse_rate

    return run(
        JoinOptions(
            url=url, site=site, region=region, home=home or default_state() / f"agent-{site}",
            token=read_token(token_file), ranks=ranks, threads=threads,
            device_batch_samples=samples_at_once(device_batch_samples),
            machines=machines, address=address, rendezvous_port=rendezvous_port,
            link_bytes_s=parse_rate(link_limit) if link_limit else 0.0,
        )
    )  # fmt: skip
