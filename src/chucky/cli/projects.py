"""``chucky projects``: create projects, list them, change their keys, switch them off and on."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, TypeAlias

import typer

from chucky.cli.options import ConfigOption, DbOption, JsonOption, load_settings
from chucky.errors import ValidationError
from chucky.server.projects import Project, ProjectKey
from chucky.server.store import Store, open_store

app = typer.Typer(
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Manage projects and their keys, also while the server runs.",
)

_ProjectArgument: TypeAlias = Annotated[
    str, typer.Argument(metavar="PROJECT", help="Name or id of the project.", show_default=False)
]


@contextmanager
def _opened(config: Path | None, db: str | None, *, create: bool = False) -> Iterator[Store]:
    store = open_store(load_settings(config, db=db), create=create)
    try:
        yield store
    finally:
        store.close()


@app.command()
def create(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="Name of the new project.", show_default=False)
    ],
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Create a project and print its id and key."""
    with _opened(config, db, create=True) as store:
        project, key = store.create_project(name)
    _print_key(project, key, as_json, f"Created the project {project.name}.")


@app.command("list")
def list_projects(
    as_json: JsonOption = False, db: DbOption = None, config: ConfigOption = None
) -> None:
    """List the projects; keys are counted, not shown."""
    with _opened(config, db) as store:
        projects = store.list_projects()
    if as_json:
        typer.echo(json.dumps([_as_entry(project) for project in projects]))
        return
    width = max((len(project.name) for project in projects), default=0)
    for project in projects:
        state = "disabled" if project.disabled else "enabled"
        keys = "1 key" if len(project.keys) == 1 else f"{len(project.keys)} keys"
        typer.echo(f"{project.name:<{width}}  {project.project_id}  {state:<8}  {keys}")


@app.command("rotate-key")
def rotate_key(
    project: _ProjectArgument,
    keep_old: Annotated[
        bool, typer.Option("--keep-old", help="Leave the other keys of the project alive.")
    ] = False,
    as_json: JsonOption = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a project a fresh key, print it, and revoke the others."""
    with _opened(config, db) as store:
        found = store.find_project(project)
        key = store.rotate_key(found, keep_old)
    others = "The other keys stay alive." if keep_old else "All earlier keys are revoked."
    _print_key(found, key, as_json, f"Made a fresh key for the project {found.name}. {others}")


@app.command()
def disable(project: _ProjectArgument, db: DbOption = None, config: ConfigOption = None) -> None:
    """Refuse all tokens of a project until it is enabled again."""
    with _opened(config, db) as store:
        changed = store.disable_project(project)
    typer.echo(f"The project {changed.name} is disabled.")


@app.command()
def enable(project: _ProjectArgument, db: DbOption = None, config: ConfigOption = None) -> None:
    """Accept the tokens of a disabled project again."""
    with _opened(config, db) as store:
        changed = store.enable_project(project)
    typer.echo(f"The project {changed.name} is enabled.")


@app.command()
def policy(
    project: _ProjectArgument,
    new: Annotated[
        typer.FileText | None,
        typer.Option(
            "--set",
            metavar="FILE",
            help="Set the policy from a JSON file; - reads standard input.",
            show_default=False,
        ),
    ] = None,
    clear: Annotated[bool, typer.Option("--clear", help="Allow everything again.")] = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Show or set what all sessions of a project may do at most."""
    if new is not None and clear:
        raise ValidationError("Give either --set or --clear, not both.")
    with _opened(config, db) as store:
        found = store.find_project(project)
        if new is not None:
            store.set_policy(found, new.read())
        elif clear:
            store.set_policy(found, None)
        text = store.policy_text(found)
    nothing = f"The project {found.name} has no policy: everything is allowed."
    typer.echo(nothing if text is None else text.rstrip())


@app.command("provider-key")
def provider_key(
    project: _ProjectArgument,
    provider: Annotated[
        str, typer.Argument(metavar="PROVIDER", help="Name of the provider.")
    ] = "anthropic",
    remove: Annotated[
        bool, typer.Option("--remove", help="Take the key away; the server's own counts again.")
    ] = False,
    db: DbOption = None,
    config: ConfigOption = None,
) -> None:
    """Give a project a key of its own for a provider of models.

    The key is asked for, or read from standard input: as an argument other users of the machine
    could see it.
    """
    with _opened(config, db) as store:
        found = store.find_project(project)
        key = None if remove else _read_provider_key(provider)
        store.set_provider_key(found, provider, key)
    done = "no longer has" if remove else "has"
    typer.echo(f"The project {found.name} {done} a key of its own for {provider}.")


def _read_provider_key(provider: str) -> str:
    if sys.stdin.isatty():
        key = str(typer.prompt(f"Key for {provider}", hide_input=True))
    else:
        key = sys.stdin.readline()
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise ValidationError("No key was given, or one with spaces or other odd characters in it.")
    return key


def _print_key(project: Project, key: ProjectKey, as_json: bool, news: str) -> None:
    if as_json:
        typer.echo(json.dumps({"projectId": project.project_id, "hmacKey": key.secret}))
        return
    typer.echo(news)
    typer.echo(f"Project id: {project.project_id}")
    typer.echo(f"HMAC key:   {key.secret}")
    typer.echo("Keep the key secret: whoever has it can make tokens. It is not shown again.")


def _as_entry(project: Project) -> dict[str, object]:
    return {
        "projectId": project.project_id,
        "name": project.name,
        "disabled": project.disabled,
        "keyIds": [key.key_id for key in project.keys],
        "providerKeys": [key.provider for key in project.provider_keys],
    }
