"""Reads the server's settings from the environment. No other module of the server does."""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic_settings import BaseSettings, NoDecode, PydanticBaseSettingsSource, SettingsConfigDict

from inference import catalog
from inference.errors import UnknownModel
from inference.options import EngineOptions, Quantization
from paths import cache_folder
from serving.descriptors import most_connections
from storage import is_address

STARTUP = "startup"
LONGEST_WAIT_SECONDS = 3_600  # the longest that a Vertex AI endpoint can be told to wait
VERTEX_RESPONSE_BYTES = 1_400_000  # under the 1.5 MB that a shared Vertex AI endpoint passes
SMALLEST_RESPONSE_BYTES = 10_000  # so that a piece of a song fits, with what is said of it
VERTEX_WAIT_SECONDS = 50  # under the 60 s after which a shared Vertex AI endpoint hangs up
EVERYWHERE = "0.0.0.0"
RESERVED_THREADS = 16  # never used by requests that wait, so that /health is always answered
ROUTE = r"^/[^<>?#\s]*$"
ROUTE_TEXT = "a path that starts with / and holds no <, >, ?, # or white space"

WEIGHTS_TEXT = "a folder on this machine that holds the weights, or its gs://, s3:// or az:// address"
PREFIX = "YUE_"
OF_OTHERS = ("YUE_ENDPOINT", "YUE_PIP_ARGS", "YUE_URL", "YUE_VENV")  # read by the client and the scripts
# Kubernetes sets these in every container beside a service named yue or yue-anything, YUE_PORT=tcp://10.0.0.1:80 too.
SERVICE_LINK = r"YUE_(\w+_)?(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)"
SERVICE_ADDRESS = r"(tcp|udp|sctp)://.*"
SIMILAR = 0.8  # share of common letters above which one name counts as a misspelling of the other
KEY_VARIABLE = "YUE_API_KEY"
HOSTS_VARIABLE = "YUE_ALLOWED_HOSTS"
KEY = r"[!-+\--~]{16,256}"  # visible ASCII except the comma
KEYS_TEXT = "one key or several, separated by commas, each of 16 to 256 visible ASCII characters"
BUCKET_TYPO = r"[a-z]+://|(gs|s3|az):"  # a malformed address, such as gs:/bucket
REFERENCE_HOST = r"[a-z0-9]([a-z0-9.-]*[a-z0-9])?(:[0-9]{1,5})?|gs://[a-z0-9][a-z0-9._-]+(/[^/]+)*"
HOSTS_TEXT = "hosts such as audio.example.com or audio.example.com:8443, and gs://bucket/folder, separated by commas"
HOST_TEXT = "an IP address of this machine such as 127.0.0.1, 0.0.0.0 or ::"
ALLOWED_HOST = r"\*|(\*\.)?[a-z0-9_]([a-z0-9_.-]*[a-z0-9_])?"
ALLOWED_HOSTS_TEXT = (
    "names of this server such as music.example.com, *.example.com for all below it, IP addresses, or * for any, "
    "without ports, separated by commas"
)
DATA_TEXT = "a folder on this machine that can be made and written, or a gs://, s3:// or az:// address"


class Settings(BaseSettings):
    """Every setting with its default. A field's description says what is allowed, and error messages repeat it."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,  # the input may be a key
        populate_by_name=True,
        protected_namespaces=(),
    )

    aip_mode: str | None = Field(default=None, validation_alias="AIP_MODE", description="what Vertex AI sets")
    model: str = Field(default=catalog.TINY, description=catalog.ALLOWED_NAMES)
    loading: Literal["on_demand", "startup"] = Field(default="on_demand", description="on_demand or startup")
    aip_storage_uri: Path | str | None = Field(
        default=None, exclude=True, validation_alias="AIP_STORAGE_URI", description=WEIGHTS_TEXT
    )
    weights: Path | str | None = Field(
        default_factory=lambda data: data.get("aip_storage_uri"), description=WEIGHTS_TEXT
    )
    data: Path | str = Field(
        default_factory=lambda: cache_folder() / "data", validate_default=True, description=DATA_TEXT
    )
    keep_hours: float = Field(default=168, gt=0, le=100_000, description="a number of hours above 0, up to 100000")
    keep_bytes: int = Field(default=20_000_000_000, ge=0, description="a whole number of bytes")
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="auto, float32, bfloat16 or float16"
    )
    quantization: Quantization = Field(default="none", description="none or int8")
    compile: Literal["auto", "never"] = Field(default="auto", description="auto or never")
    deterministic: bool = Field(default=False, description="true or false")
    max_songs: int | None = Field(default=None, ge=1, le=1_000, description="a whole number from 1 to 1000")
    max_queue: int = Field(default=64, ge=1, le=10_000, description="a whole number from 1 to 10000")
    max_instances: int = Field(default=8, ge=1, le=1_000, description="a whole number from 1 to 1000")
    max_request_bytes: int = Field(
        default=10 * 1024 * 1024, ge=1_024, description="a whole number of bytes, 1024 or more"
    )
    max_response_bytes: int | None = Field(
        default_factory=lambda data: VERTEX_RESPONSE_BYTES if data.get("aip_mode") else None,
        ge=SMALLEST_RESPONSE_BYTES,
        description=f"a whole number of bytes, {SMALLEST_RESPONSE_BYTES} or more",
    )
    threads: int = Field(
        default=64,
        gt=RESERVED_THREADS,
        le=1_000,
        description=f"a whole number from {RESERVED_THREADS + 1} to 1000",
    )
    network_seconds: float = Field(
        default=30, ge=0.1, le=3_600, allow_inf_nan=False, description="a number of seconds from 0.1 to 3600"
    )
    wait_seconds: float = Field(
        default_factory=lambda data: VERTEX_WAIT_SECONDS if data.get("aip_mode") else LONGEST_WAIT_SECONDS,
        ge=0,
        le=LONGEST_WAIT_SECONDS,
        allow_inf_nan=False,
        description=f"a number of seconds from 0 to {LONGEST_WAIT_SECONDS}",
    )
    log_format: Literal["auto", "json", "console"] = Field(default="auto", description="auto, json or console")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="debug, info, warning or error"
    )
    log_lyrics: bool = Field(default=False, description="true or false")
    google_cloud_project: str | None = Field(
        default=None, validation_alias="GOOGLE_CLOUD_PROJECT", description="the id of a project of Google Cloud"
    )
    aip_project_number: str | None = Field(
        default=None, validation_alias="AIP_PROJECT_NUMBER", description="what Vertex AI sets"
    )
    api_key: SecretStr | None = Field(default=None, description=KEYS_TEXT)
    admin: Literal["auto", "on", "off"] = Field(default="auto", description="auto, on or off")
    reference_hosts: Annotated[tuple[str, ...], NoDecode] = Field(default=(), description=HOSTS_TEXT)
    allowed_hosts: Annotated[tuple[str, ...], NoDecode] = Field(default=(), description=ALLOWED_HOSTS_TEXT)
    port: int = Field(
        default=8080,
        ge=1,
        le=65_535,
        validation_alias="PORT",
        description="a port from 1 to 65535",
    )
    aip_http_port: int | None = Field(
        default=None, ge=1, le=65_535, validation_alias="AIP_HTTP_PORT", description="a port from 1 to 65535"
    )
    host: str = Field(
        default_factory=lambda data: EVERYWHERE if data.get("aip_mode") or data.get("aip_http_port") else "127.0.0.1",
        description=HOST_TEXT,
    )
    health_route: str | None = Field(
        default=None, pattern=ROUTE, validation_alias="AIP_HEALTH_ROUTE", description=ROUTE_TEXT
    )
    predict_route: str | None = Field(
        default=None, pattern=ROUTE, validation_alias="AIP_PREDICT_ROUTE", description=ROUTE_TEXT
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read each environment variable by its one name; code may pass a field by the field's name."""
        env_settings.config = {**env_settings.config, "populate_by_name": False}  # else YUE_PORT would set PORT
        return init_settings, env_settings

    @field_validator("model")
    @classmethod
    def _is_known(cls, name: str) -> str:
        try:
            catalog.find(name)
        except UnknownModel as error:
            raise ValueError(str(error)) from error
        return name

    @field_validator("weights", "aip_storage_uri", mode="before")
    @classmethod
    def _is_a_place(cls, weights: Path | str | None) -> Path | str | None:
        if weights is None or is_address(str(weights)):
            return weights
        if "://" in str(weights) or not os.path.isdir(weights):  # also False where this user has no access
            raise ValueError("no such folder")
        return Path(weights).resolve()  # child processes start in another folder

    @field_validator("data", mode="before")
    @classmethod
    def _is_usable_folder(cls, data: Path | str) -> Path | str:
        if is_address(str(data)):
            return data
        if re.match(BUCKET_TYPO, str(data)) or (Path(data).exists() and not Path(data).is_dir()):
            raise ValueError("no folder")
        return Path(data).expanduser().resolve()

    @field_validator("api_key")
    @classmethod
    def _are_keys(cls, keys: SecretStr | None) -> SecretStr | None:
        if keys is not None and not all(re.fullmatch(KEY, key) for key in _listed(keys.get_secret_value())):
            raise ValueError("no keys")
        return keys

    @field_validator("reference_hosts", mode="before")
    @classmethod
    def _are_hosts(cls, hosts: object) -> object:
        listed = _listed(hosts) if isinstance(hosts, str) else hosts
        if not isinstance(listed, tuple) or not all(re.fullmatch(REFERENCE_HOST, str(host)) for host in listed):
            raise ValueError("no hosts")
        return listed

    @field_validator("allowed_hosts", mode="before")
    @classmethod
    def _are_names(cls, hosts: object) -> object:
        listed = _listed(hosts) if isinstance(hosts, str) else hosts
        if not isinstance(listed, tuple):
            raise ValueError("no hosts")
        return tuple(_as_host(str(host).lower()) for host in listed)

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, host: str) -> str:
        return str(ipaddress.ip_address(host))

    @property
    def api_keys(self) -> tuple[SecretStr, ...]:
        """The accepted API keys; empty if the server needs no key."""
        return tuple(map(SecretStr, _listed(self.api_key.get_secret_value()))) if self.api_key else ()

    @property
    def may_administer(self) -> bool:
        """True if every client that may use the server may also change models and list all jobs."""
        if self.admin != "auto":
            return self.admin == "on"
        # Otherwise anybody on the network could.
        return bool(self.api_key or self.aip_mode) or self.is_local

    @property
    def is_local(self) -> bool:
        """True if the server listens on a loopback address."""
        return ipaddress.ip_address(self.host).is_loopback

    @property
    def needs_hub(self) -> bool:
        """True if the weights come from the Hugging Face Hub."""
        return self.model != catalog.TINY and self.weights is None

    @property
    def bind(self) -> str:
        """The address to listen on, as `address:port`."""
        return f"[{self.host}]:{self.http_port}" if ":" in self.host else f"{self.host}:{self.http_port}"

    @property
    def http_port(self) -> int:
        """The port to listen on. `AIP_HTTP_PORT` takes precedence over `PORT`."""
        return self.aip_http_port or self.port

    @property
    def project(self) -> str | None:
        """The Google Cloud project of this server's traces, if known."""
        return self.google_cloud_project or self.aip_project_number

    @property
    def engine_options(self) -> EngineOptions:
        """The part of the settings that concerns the engine."""
        return EngineOptions(
            self.device,
            self.dtype,
            self.quantization,
            self.max_songs,
            compile=self.compile == "auto",
            prepare=self.loading == STARTUP,
            deterministic=self.deterministic,
        )

    @property
    def max_waiters(self) -> int:
        """The number of requests that may wait for a song at once."""
        return min(self.threads - RESERVED_THREADS, most_connections() // 2)


class InvalidSettings(ValueError):
    """A variable has an invalid value. The message names every such variable."""


def read_settings() -> Settings:
    """Return the settings from the environment. Raises InvalidSettings."""
    try:
        return Settings()
    except ValidationError as error:
        raise InvalidSettings(describe(error)) from error


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """Return one line for each variable that looks like a setting but is none, probably a misspelling."""
    known = [variable for variable, _ in _variables().values()]
    lines = []
    for name, value in sorted(environment.items()):
        upper = name.upper()
        if upper.startswith(PREFIX) and upper not in (*known, *OF_OTHERS) and not _is_service_link(upper, value):
            short = upper.removeprefix(PREFIX)
            nearest = [short] if short in known else get_close_matches(upper, known, 1, SIMILAR)
            lines.append(f"{name} is not a setting" + (f"; did you mean {nearest[0]}?" if nearest else ""))
    return lines


def describe(error: ValidationError) -> str:
    """Return one line for each invalid setting: the variable, its value and what is allowed."""
    lines = []
    for mistake in error.errors(include_url=False):
        if mistake["type"] == "default_factory_not_called":  # follows from another field's error
            continue
        field = str(mistake["loc"][0])
        variable, allowed = _variables()[field]
        got = "a key that is not shown" if variable == KEY_VARIABLE else repr(str(mistake["input"]))
        lines.append(f"{variable}: got {got}; allowed: {allowed}")
    return "\n".join(lines)


def _as_host(name: str) -> str:
    """Return an allowed host, with an IPv6 address in its shortest form. Raises ValueError."""
    return name if re.fullmatch(ALLOWED_HOST, name) else str(ipaddress.IPv6Address(name.strip("[]")))


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(","))


def _is_service_link(name: str, value: str) -> bool:
    """True if Kubernetes has set the variable. A plain number in YUE_PORT comes from a person who means PORT."""
    is_address = name.endswith("_PORT") and re.fullmatch(SERVICE_ADDRESS, value)
    return bool(is_address or re.fullmatch(SERVICE_LINK, name))


def _variables() -> dict[str, tuple[str, str]]:
    """Return the variable and its allowed values, by field name and by alias."""
    variables = {}
    for name, field in Settings.model_fields.items():
        alias = field.validation_alias
        variable = alias if isinstance(alias, str) else f"{PREFIX}{name.upper()}"
        variables[name] = variables[variable] = (variable, field.description or "")
    return variables
