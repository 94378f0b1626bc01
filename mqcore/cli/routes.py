"""`mqcore routes` and `mqcore routes prune`: list bindings, and remove unused ones."""

from collections.abc import Iterable, Sequence
from typing import Annotated

import typer

from mqcore.app import App
from mqcore.broker import Broker
from mqcore.cli.common import At, confirm, load_app
from mqcore.cli.options import DefaultToList, command
from mqcore.cli.output import amount, print_json, print_table
from mqcore.config.settings import Settings
from mqcore.errors import ConfigurationError
from mqcore.rules.routing import Binding

__all__ = ["app", "data_of", "describe", "leftovers", "list_routes", "prune"]

app = typer.Typer(
    name="routes",
    cls=DefaultToList,
    help="Bindings of routers: list and prune them. `mqcore routes NAME` is `mqcore routes list "
    "NAME`.",
)


def list_routes(
    router: Annotated[
        str | None,
        typer.Argument(
            metavar="ROUTER", help="Only the bindings of this router.", show_default=False
        ),
    ] = None,
    *,
    at: At,
) -> None:
    """List the bindings that the broker stores."""

    async def work(broker: Broker) -> Sequence[Binding]:
        every = await broker.bindings()
        names = dict.fromkeys(binding.router for binding in every)
        if router is not None and router not in names:
            raise ConfigurationError(
                f"no router {router!r} has bindings; routers with bindings: "
                f"{', '.join(names) or 'none'}"
            )
        return [binding for binding in every if router in (None, binding.router)]

    _print(at.run(work), json=at.json, empty="the broker has no bindings")


def prune(
    target: Annotated[
        str,
        typer.Argument(
            metavar="MODULE:APP", help="The app, for instance shop:app.", show_default=False
        ),
    ],
    *,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    at: At,
) -> None:
    """Remove bindings of the app's routers that are in neither its code nor its settings.

    This includes bindings that another application has added to the same router. Other routers are
    not changed.
    """
    settings, user_app = at.settings(), load_app(target)

    async def find(broker: Broker) -> list[Binding]:
        return leftovers(await broker.bindings(), user_app, settings)

    async def work(broker: Broker) -> None:
        await broker.unbind(*unused)

    unused = at.run(find)
    if unused:
        confirm(
            f"Remove {amount(len(unused), 'binding')}: {'; '.join(map(describe, unused))}?", yes=yes
        )
        at.run(work)
    if at.json:
        print_json({"removed": [data_of(binding) for binding in unused]})
    else:
        print(f"{amount(len(unused), 'binding')} removed")
        for binding in unused:
            print(f"  {describe(binding)}")


def leftovers(bindings: Iterable[Binding], user_app: App, settings: Settings) -> list[Binding]:
    """Return the bindings of the app's routers that are in neither its code nor its settings."""
    names = {router.name for router in user_app.routers}
    declared = {binding for router in user_app.routers for binding in router.bindings}
    for router in user_app.routers:
        declared.update(settings.router_bindings(router.name, router.kind))
    return [binding for binding in bindings if binding.router in names and binding not in declared]


def describe(binding: Binding) -> str:
    """Return a binding for people, on one line."""
    matched = _matched(binding)
    return (
        f"{binding.router} ({binding.kind}) -> {binding.queue}{f', {matched}' if matched else ''}"
    )


def data_of(binding: Binding) -> dict[str, object]:
    """Return a binding for programs."""
    return {
        "router": binding.router,
        "kind": binding.kind,
        "queue": binding.queue,
        "key": binding.pattern,
        "headers": dict(binding.headers),
        "match": binding.match,
    }


def _matched(binding: Binding) -> str:
    if binding.kind == "headers":
        return (
            f"{binding.match} of {', '.join(f'{name}={value}' for name, value in binding.headers)}"
        )
    return binding.pattern


def _print(bindings: Sequence[Binding], *, json: bool, empty: str) -> None:
    if json:
        print_json([data_of(binding) for binding in bindings])
        return
    rows = [
        (binding.router, binding.kind, binding.queue, _matched(binding)) for binding in bindings
    ]
    print_table(("router", "kind", "queue", "takes"), rows, empty=empty)


command(app, "list", list_routes)
command(app, "prune", prune)
