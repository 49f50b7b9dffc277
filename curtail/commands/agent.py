"""Options of `curtail agent join` and `curtail agent service install`."""

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

Url = Annotated[
    str | None,
    typer.Argument(
        help="URL of the controller, https://HOST:PORT; default: found on the local network.", show_default=False
    ),
]
Home = Annotated[
    Path | None,
    typer.Option(help="Folder for the agent's state; default: ~/.local/state/curtail/agent-SITE.", show_default=False),
]
Address = Annotated[
    str | None,
    typer.Option(
        help="Address at which the site's other machines reach this one; default: that of the interface towards the"
        " controller.",
        show_default=False,
    ),
]
LinkLimit = Annotated[
    str | None,
    typer.Option(help="Bandwidth limit of a job's transfers, e.g. 100Mbit/s.", show_default=False),
]
OnPause = Annotated[
    str | None,
    typer.Option(envvar="CURTAIL_ON_PAUSE", help="Shell command to run when the machine pauses.", show_default=False),
]
OnResume = Annotated[
    str | None,
    typer.Option(envvar="CURTAIL_ON_RESUME", help="Shell command to run before a job starts.", show_default=False),
]


@agent_app.command("join")
def agent_join(
    site: Annotated[str, typer.Option(help="Name of this site.")],
    region: Annotated[str, typer.Option(help="Grid region of the site, as named in the run file.")],
    url: Url = None,
    home: Home = None,
    token_file: TokenFile = None,
    ranks: Annotated[
        int, typer.Option(min=0, max=4096, help="Processes per job; 0: one per GPU, or one without GPUs.")
    ] = 0,
    threads: Annotated[
        int, typer.Option(min=0, help="CPU threads per process; 0: divide the cores among the processes.")
    ] = 0,
    device_batch_samples: Annotated[
        str, typer.Option(help="Micro-batch of one process, in samples; auto: as in the run file.")
    ] = "auto",
    machines: Annotated[
        int, typer.Option(min=1, max=64, help="Number of machines of the site; give the same number on each of them.")
    ] = 1,
    address: Address = None,
    rendezvous_port: Annotated[
        int, typer.Option(min=1, max=65535, help="Port on this machine for the rendezvous of the site's machines.")
    ] = 29400,
    link_limit: LinkLimit = None,
    on_pause: OnPause = None,
    on_resume: OnResume = None,
    hook_limit: Annotated[
        float, typer.Option(min=1, help="Timeout in seconds of the --on-pause and --on-resume commands.")
    ] = 300.0,
    server_name: ServerName = None,
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Allow plain HTTP to another machine; only on a trusted network.")
    ] = False,
    replace: Annotated[
        bool,
        typer.Option("--replace", help="With an operator's token: replace a machine that lost its state."),
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
        list[str], typer.Argument(help="After --: the arguments of `curtail agent join`.", show_default=False)
    ],
    name: UnitName = "curtail-agent",
    system: SystemWide = False,
    user: RunsAs = None,
    dry_run: DryRun = False,
) -> int:
    """Write a systemd unit for an agent, without starting it."""
    words = check_words(("agent", "join"), arguments)
    if any(word in ("-", "--token-file=-") for word in arguments):
        raise UsageError("a systemd unit cannot read a token from stdin", "pass a file to --token-file")
    from curtail.commands.systemd.install import Wanted, install
    from curtail.commands.systemd.units import AGENT

    return install(Wanted(AGENT, words, name, system, user or "", dry_run))
