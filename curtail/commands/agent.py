"""`agent join` and `agent service install`."""

from pathlib import Path
from typing import Annotated

import typer

from curtail.commands.options import (
    DryRun,
    RunsAs,
    ServerName,
    SystemWide,
    TokenFile,
    UnitName,
    check_name,
    default_state,
    read_token,
    samples_at_once,
)
from curtail.commands.program import agent_app, agent_service_app, check_words
from curtail.errors import UsageError


@agent_app.command("join")
def agent_join(
    site: Annotated[str, typer.Option(help="Name of this site.")],
    region: Annotated[str, typer.Option(help="Grid region of the site, as in the run file.")],
    url: Annotated[
        str | None,
        typer.Argument(help="The controller, https://HOST:PORT; found by zeroconf if not given.", show_default=False),
    ] = None,
    home: Annotated[
        Path | None,
        typer.Option(
            help="Folder of the agent's state; by default ~/.local/state/curtail/agent-SITE.", show_default=False
        ),
    ] = None,
    token_file: TokenFile = None,
    ranks: Annotated[int, typer.Option(min=0, max=4096, help="Processes of a job; 0: one for each GPU, or one.")] = 0,
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
    on_pause: Annotated[
        str | None,
        typer.Option(
            envvar="CURTAIL_ON_PAUSE", help="Command for the shell, run when the machine pauses.", show_default=False
        ),
    ] = None,
    on_resume: Annotated[
        str | None,
        typer.Option(
            envvar="CURTAIL_ON_RESUME", help="Command for the shell, run before a job starts.", show_default=False
        ),
    ] = None,
    hook_limit: Annotated[float, typer.Option(min=1, help="Seconds that each of these may take.")] = 300.0,
    server_name: ServerName = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Plain HTTP to another machine, where the whole network is trusted.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="With an operator's token: take the place of a machine that was wiped."),
    ] = False,
) -> int:
    """Join a run with this machine and train whenever its region permits."""
    check_name("site", site)
    check_name("region", region)
    from agent.hooks import Commands
    from agent.http.bandwidth import parse_rate
    from agent.join import JoinOptions, run

    return run(
        JoinOptions(
            url=url, site=site, region=region, home=home or default_state() / f"agent-{site}",
            token=read_token(token_file), ranks=ranks, threads=threads,
            device_batch_samples=samples_at_once(device_batch_samples),
            machines=machines, address=address, rendezvous_port=rendezvous_port,
            link_bytes_s=parse_rate(link_limit) if link_limit else 0.0,
            server_name=server_name, insecure=insecure, replace=replace,
            hooks=Commands((on_pause or "").strip(), (on_resume or "").strip(), hook_limit),
        )
    )  # fmt: skip


@agent_service_app.command("install")
def agent_service_install(
    arguments: Annotated[
        list[str], typer.Argument(help="After --: the arguments of curtail agent join.", show_default=False)
    ],
    name: UnitName = "curtail-agent",
    system: SystemWide = False,
    user: RunsAs = None,
    dry_run: DryRun = False,
) -> int:
    """Write the systemd unit of an agent. Nothing is started."""
    words = check_words(("agent", "join"), arguments)
    if any(word in ("-", "--token-file=-") for word in arguments):
        raise UsageError("a unit has no stdin to read a token from", "give --token-file the name of a file")
    from curtail.commands.systemd.install import Wanted, install
    from curtail.commands.systemd.units import AGENT

    return install(Wanted(AGENT, words, name, system, user or "", dry_run))
