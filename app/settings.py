"""Settings of the service and its workers, from `NUPES_*` environment variables."""

from __future__ import annotations

from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path

from pydantic import Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Everything an operator can set. Three settings lead from the embedded default to production:
    `NUPES_DATABASE_URL`, `NUPES_BROKER_URL`, `NUPES_STORAGE_URL`.
    """  # noqa: D205

    # Empty is not set: compose files and Kubernetes hand over empty variables for what was left out.
    model_config = SettingsConfigDict(env_prefix="NUPES_", env_ignore_empty=True, extra="ignore", frozen=True)

    data_dir: Path = Field(Path.home() / ".nupes", description="Everything the embedded service keeps (0700).")
    database_url: str = Field("", description="SQLAlchemy URL; default: SQLite in data_dir.")
    broker_url: str = Field("", description="Celery broker, e.g. redis://host:6379/0; default: folders in data_dir.")
    queue_prefix: str = Field("nupes.", description="Before every queue name, so that services can share a broker.")
    storage_url: str = Field("", description="Blob store: file:///path or s3://bucket/prefix; default: data_dir/blobs.")
    s3_endpoint_url: str | None = Field(None, description="For S3-compatible storage that is not AWS.")
    secret_key: SecretStr | None = Field(None, description="Pepper of key hashes; default: data_dir/secret.key.")

    host: str = Field("127.0.0.1", description="Address that `nupes up` listens on.")
    port: int = Field(8000, description="Port that `nupes up` listens on; 0: any that is free.")
    hub: bool = Field(True, description="Allow models from a hub (HF_ENDPOINT says which).")
    hub_token: SecretStr | None = Field(None, description="Sent to the hub, for models that are gated.")

    quota_active_jobs: int = Field(1000, ge=0, description="Of a tenant: jobs that wait or run. 0: no limit.")
    quota_jobs_per_day: int = Field(10_000, ge=0, description="Of a tenant, in a UTC day. 0: no limit.")
    quota_stored_bytes: int = Field(0, ge=0, description="Of a tenant, each content once. 0: no limit.")
    quota_requests_per_minute: int = Field(12_000, ge=0, description="Of each key. 0: no limit.")
    auth_failures_per_minute: int = Field(120, ge=0, description="With invalid keys, of each address. 0: no limit.")
    rate_limit_url: str = Field("", description="A Redis for counting requests; default: the broker when it is one.")
    audit_retention_days: int = Field(400, ge=1, description="How long the audit log is kept.")

    max_upload_bytes: int = Field(64 * 2**30, description="Of one file.")
    max_body_bytes: int = Field(2 * 2**20, description="JSON bodies.")
    min_free_disk_bytes: int = Field(256 * 2**20, description="Uploads and jobs that would leave less are refused.")
    upload_ttl_s: int = Field(24 * 3600, description="Unfinished uploads are deleted this long after their last piece.")
    upload_stall_s: float = Field(30.0, description="An upload that sends nothing for this long is cut off.")
    artifact_ttl_s: int = Field(0, description="Results are deleted this long after they were made; 0: never.")

    housekeep_s: float = Field(120.0, description="How often what has expired and what nobody needs is deleted.")
    garbage_grace_s: float = Field(900.0, description="Younger bytes are left alone: their rows may be on the way.")

    lease_s: float = Field(60.0, description="A worker that does not renew for this long loses its job.")
    lease_renew_s: float = Field(15.0, description="How often a worker renews; well below `lease_s`.")
    poll_s: float = Field(2.0, description="How often a worker looks at the table in case a wake-up was lost.")
    sweep_s: float = Field(5.0, description="How often reaper and outbox sweeper run.")
    max_attempts: int = Field(2, description="Times a job is tried whose worker is lost or whose surroundings fail.")
    retry_pause_s: float = Field(
        15.0,
        description="Before a second attempt after a failed transfer, 8 times that after a full disk; then doubled.",
    )
    cancel_grace_s: float = Field(3.0, description="From TERM to KILL of a cancelled runner.")
    heartbeat_s: float = Field(2.0, description="How often a worker says that it is there.")
    device_class: str = Field("cpu", description="Queue this worker serves: cpu or gpu.")
    memory_bytes: int = Field(
        0, ge=0, description="Memory a worker's job may use; 0: its control group or machine, divided by `nupes up`."
    )
    fan_out_bytes: int = Field(
        256 * 2**20, ge=0, description="Sharded models from this size on are split over workers."
    )
    drain_grace_s: float = Field(0.0, ge=0, description="A worker told to end may finish its job in this time.")
    threads: int = Field(0, description="CPU threads of a runner; 0: all the machine has.")

    webhook_http: bool = Field(False, description="Let webhooks name http:// receivers; for development.")
    webhook_networks: str = Field(
        "", description="Networks that webhooks may reach beside the public internet: 10.1.0.0/16,fd00:1::/64."
    )
    webhook_timeout_s: float = Field(15.0, gt=0, le=45, description="For one whole request to a receiver.")

    otlp_endpoint: str = Field("", description="OpenTelemetry collector, e.g. http://host:4318; default: no traces.")

    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_json: bool = Field(True, description="JSON lines; false: lines for people.")

    @field_validator("webhook_networks")
    @classmethod
    def _networks_are_networks(cls, value: str) -> str:
        _networks(value)
        return value

    @property
    def allowed_webhook_networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """`webhook_networks`, read."""
        return _networks(self.webhook_networks)

    @property
    def resolved_database_url(self) -> str:
        """The database, SQLite in the data folder when none is set; `postgresql://` means psycopg 3."""
        url = self.database_url or f"sqlite:///{self.data_dir / 'nupes.db'}"
        for prefix in ("postgres://", "postgresql://"):
            if url.startswith(prefix):
                return "postgresql+psycopg://" + url.removeprefix(prefix)
        return url

    @property
    def resolved_broker_url(self) -> str:
        """The broker, the hardened filesystem transport in the data folder when none is set."""
        return self.broker_url or "nupesfs://"

    @property
    def resolved_rate_limit_url(self) -> str:
        """Where requests are counted for all API processes together; empty: each counts for itself."""
        shared = self.resolved_broker_url.startswith(("redis://", "rediss://"))
        return self.rate_limit_url or (self.resolved_broker_url if shared else "")

    @property
    def resolved_storage_url(self) -> str:
        """The blob store, a folder in the data folder when none is set."""
        return self.storage_url or f"file://{(self.data_dir / 'blobs').absolute()}"

    @property
    def queue_dir(self) -> Path:
        """Where the filesystem transport keeps its messages."""
        return self.data_dir / "queue"

    @property
    def work_dir(self) -> Path:
        """Where runners keep fetched models and committed tensors."""
        return self.data_dir / "work"


def _networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    return tuple(ip_network(each.strip()) for each in text.split(",") if each.strip())


@lru_cache
def get_settings() -> Settings:
    """The process-wide settings, read once."""
    return Settings()
