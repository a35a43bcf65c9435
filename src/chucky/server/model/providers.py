"""Who serves models, as the operator set it up: ``[providers.<name>]`` in ``chucky.toml``.

The provider ``anthropic`` is always there: it is what ``anthropic_api_key`` and ``upstream_url``
set. The model table says which provider serves a model.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args
from urllib.parse import urlsplit

from chucky.errors import ValidationError
from chucky.server.model.catalog import DEFAULT_PROVIDER, Catalog, Model

ANTHROPIC_URL = "https://api.anthropic.com"
Kind = Literal["anthropic", "bedrock", "vertex"]

_FIELDS: dict[str, frozenset[str]] = {
    "anthropic": frozenset({"api_key", "base_url"}),
    "bedrock": frozenset(
        {"access_key", "api_key", "base_url", "profile", "region", "secret_key", "session_token"}
    ),
    "vertex": frozenset({"access_token", "base_url", "project", "region"}),
}
_REQUIRED: dict[str, tuple[str, ...]] = {
    "anthropic": ("base_url",),
    "bedrock": ("region",),
    "vertex": ("region", "project"),
}
_SECRETS = ("access_token", "api_key", "secret_key", "session_token")


@dataclass(frozen=True, slots=True)
class ProviderSettings:
    """One provider. Which fields count depends on its kind; secrets are not in ``repr``.

    Attributes:
        name: What the model table calls it.
        kind: Which API it speaks and how requests to it are signed.
        base_url: Its address, where that is not the usual one of its kind.
        api_key: Its key; for Bedrock a bearer token.
        region: The region of the cloud.
        project: The project of the cloud (Vertex).
        profile, access_key, secret_key, session_token: Credentials of AWS; without any, those
            that AWS's own tools would find.
        access_token: A token of Google; without it, the default credentials.
    """

    name: str
    kind: Kind
    base_url: str | None = None
    api_key: str | None = field(default=None, repr=False)
    region: str | None = None
    project: str | None = None
    profile: str | None = None
    access_key: str | None = None
    secret_key: str | None = field(default=None, repr=False)
    session_token: str | None = field(default=None, repr=False)
    access_token: str | None = field(default=None, repr=False)

    @property
    def is_usable(self) -> bool:
        """Whether calls can be tried: other kinds find credentials where their tools do."""
        if self.kind != "anthropic":
            return True
        return self.api_key is not None or self.base_url not in (None, ANTHROPIC_URL)


class Providers:
    """All providers of a server. Made by :meth:`load`.

    Attributes:
        by_name: Every provider by its name.
        is_offline: Whether none is set up, so that the offline model answers for ``anthropic``.
    """

    def __init__(self, by_name: Mapping[str, ProviderSettings]) -> None:
        self.by_name = dict(by_name)
        self.is_offline = set(by_name) == {DEFAULT_PROVIDER} and not self.default.is_usable

    @property
    def default(self) -> ProviderSettings:
        """The provider that is always there."""
        return self.by_name[DEFAULT_PROVIDER]

    @classmethod
    def load(
        cls,
        tables: Mapping[str, Any],
        catalog: Catalog,
        *,
        api_key: str | None,
        base_url: str | None,
        environ: Mapping[str, str] | None = None,
    ) -> Providers:
        """Read the tables.

        Args:
            tables: ``[providers.<name>]`` of ``chucky.toml``.
            catalog: The model table, whose providers must exist.
            api_key: The key of the provider ``anthropic``; None for none.
            base_url: Its address; None for the usual one.
            environ: Where secrets are looked up that are named by variable.

        Raises:
            ValidationError: Something is wrong. All faults are in the message, and one by one in
                ``details["faults"]``.
        """
        environ = os.environ if environ is None else environ
        default = ProviderSettings(DEFAULT_PROVIDER, "anthropic", base_url, api_key)
        found = {DEFAULT_PROVIDER: default}
        faults: list[str] = []
        for name, table in tables.items():
            values = dict(table)
            wrong = [*_from_environment(values, environ), *_faults(name, values)]
            faults += [f"providers.{name} {fault}" for fault in wrong]
            if not wrong:
                found[name] = ProviderSettings(name=name, **values)
        for model in catalog.models.values():
            if model.provider not in found and model.provider not in tables:
                faults.append(
                    f'models."{model.id}" is served by {model.provider!r}, and there is no '
                    f"[providers.{model.provider}]"
                )
        if faults:
            raise ValidationError(
                f"The providers are not valid: {'; '.join(faults)}.",
                reason="invalid_providers",
                details={"faults": faults},
            )
        return cls(found)

    def serves_offline(self, model: Model, project_key: str | None) -> bool:
        """Whether the offline model answers in the place of a model.

        Args:
            model: The model.
            project_key: The project's own key for the model's provider; None for none.

        Raises:
            ValidationError: The model's provider has no credentials; the sentence names the
                setting.
        """
        provider = self.by_name[model.provider]
        if provider.is_usable or project_key is not None:
            return False
        if self.is_offline:
            return True
        setting = (
            "anthropic_api_key (or ANTHROPIC_API_KEY)"
            if provider.name == DEFAULT_PROVIDER
            else f"api_key in [providers.{provider.name}]"
        )
        raise ValidationError(
            f"The model {model.id!r} is served by {provider.name!r}, for which this server has no "
            f"credentials: its operator sets {setting}.",
            reason="provider_not_configured",
        )


def _from_environment(values: dict[str, Any], environ: Mapping[str, str]) -> Iterator[str]:
    """Replace ``api_key_env = "NAME"`` and its like by what the variable holds."""
    for secret in _SECRETS:
        variable = values.pop(f"{secret}_env", None)
        if variable is None:
            continue
        if not isinstance(variable, str) or not environ.get(variable):
            yield f"names the variable {variable!r:.80} in {secret}_env, which is not set"
        else:
            values[secret] = environ[variable]


def _faults(name: str, values: Mapping[str, Any]) -> Iterator[str]:
    kind = values.get("kind")
    if name == DEFAULT_PROVIDER:
        yield "is set by anthropic_api_key and upstream_url; choose another name"
    elif not isinstance(kind, str) or kind not in get_args(Kind):
        yield f"must have a kind, one of {', '.join(get_args(Kind))}"
    else:
        known = _FIELDS[kind] | {"kind"}
        for key, value in values.items():
            # Values may be secrets: they are never part of a fault.
            if key not in known:
                yield f"has an unknown field {key!r:.60} (there are {', '.join(sorted(known))})"
            elif not isinstance(value, str) or not value.strip():
                yield f"has an empty {key}, or one that is no text"
        yield from (f"lacks {key}" for key in _REQUIRED[kind] if key not in values)
        if not _is_address(values.get("base_url")):
            yield "has a base_url that is no address like https://host/path"
        if ("access_key" in values) != ("secret_key" in values):
            yield "must have both access_key and secret_key, or neither"


def _is_address(value: Any) -> bool:
    if value is None or not isinstance(value, str):
        return True  # absent, or named as a fault already
    try:
        url = urlsplit(value)
    except ValueError:
        return False
    return url.scheme in ("http", "https") and bool(url.hostname)
