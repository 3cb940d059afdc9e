"""`streams relay`: publish committed rows until SIGTERM or Ctrl-C; or look after relays."""

from __future__ import annotations

import asyncio
import gc
import signal
from collections.abc import Callable

import click

from streams import log, telemetry
from streams.cli.choose import Commands, say_json
from streams.cli.relay_acts import adopt, switch
from streams.cli.relay_status import status
from streams.registry import configured
from streams.settings import Settings, load

MODES = ("auto", "cdc", "poll", "debezium")


@click.group(cls=Commands, invoke_without_command=True)
@click.option(
    "--mode", type=click.Choice(MODES), help="Default: relay.mode of faust.yml, which is auto."
)
@click.pass_context
def relay(ctx: click.Context, mode: str | None) -> None:
    """Publish what is committed to the outbox; a second relay of the same name stands by.

    With a command: look at the relay, or tell it what to do.
    """
    if ctx.invoked_subcommand is not None:
        return
    settings = load()
    log.setup(settings.log, debug=bool(ctx.obj and ctx.obj["debug"]))
    telemetry.setup(settings.telemetry, "relay")
    wanted = mode or settings.relay.mode
    if wanted == "debezium":
        _print_connector(settings)
    from streams.relay import Relay

    publisher = Relay(settings, configured(settings), wanted)
    # Rows refer to nothing that refers back to them: looking for circles among them was up to a
    # third of the work.
    gc.freeze()
    gc.set_threshold(100_000)
    try:
        with asyncio.Runner() as runner:
            _stop_on_signals(runner.get_loop(), publisher.stop)
            runner.run(publisher.run())
    finally:
        telemetry.close()


for command in (status, switch, adopt):
    relay.add_command(command)


def _print_connector(settings: Settings) -> None:
    from streams.relay.debezium.config import connector, public

    configuration = {"name": settings.relay.name, "config": public(connector(settings))}
    say_json(configuration)


def _stop_on_signals(loop: asyncio.AbstractEventLoop, stop: Callable[[], None]) -> None:
    """The first SIGTERM or SIGINT stops in order; the second one ends the process."""
    signals = (signal.SIGTERM, signal.SIGINT)

    def stop_once() -> None:
        for number in signals:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        stop()

    for number in signals:
        loop.add_signal_handler(number, stop_once)
