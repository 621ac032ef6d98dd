"""Settings of the service and its workers, from `NUPES_*` environment variables."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from pydantic import Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Everything an operator can set. Three settings lead from the embedded default to production:
    `NUPES_DATABASE_URL`, `NUPES_BROKER_URL`, `NUPES_STORAGE_URL`.
    """  # noqa: D205

    model_config = SettingsConfigDict(env_prefix="NUPES_", extra="ignore", frozen=True)

    data_dir: Path = Field(Path.home() / ".nupes", description="Everything the embedded service keeps (0700).")
    database_url: str = Field("", description="SQLAlchemy URL; default: SQLite in data_dir.")
    broker_url: str = Field("", description="Celery broker, e.g. redis://host:6379/0; default: folders in data_dir.")
    queue_prefix: str = Field("nupes.", description="Before every queue name, so that services can share a broker.")
    storage_url: str = Field("", description="Blob store: file:///path or s3://bucket/prefix; default: data_dir/blobs.")
    s3_endpoint_url: str | None = Field(None, description="For S3-compatible storage that is not AWS.")
    secret_key: SecretStr | None = Field(None, description="Pepper of key hashes; default: data_dir/secret.key.")

    host: str = "127.0.0.1"
    port: int = 8000
    hub: bool = Field(True, description="Allow models from a hub (HF_ENDPOINT says which).")
    hub_token: SecretStr | None = None

    max_upload_bytes: int = 64 * 2**30
    max_body_bytes: int = Field(2 * 2**20, description="JSON bodies.")
    min_free_disk_bytes: int = Field(256 * 2**20, description="Uploads and jobs that would leave less are refused.")
    upload_ttl_s: int = 24 * 3600

    lease_s: float = Field(60.0, description="A worker that does not renew for this long loses its job.")
    lease_renew_s: float = 15.0
    poll_s: float = Field(2.0, description="How often a worker looks at the table in case a wake-up was lost.")
    sweep_s: float = Field(5.0, description="How often reaper and outbox sweeper run.")
    max_attempts: int = 2
    cancel_grace_s: float = Field(3.0, description="From TERM to KILL of a cancelled runner.")
    heartbeat_s: float = 2.0
    device_class: str = Field("cpu", description="Queue this worker serves: cpu or gpu.")
    threads: int = Field(0, description="CPU threads of a runner; 0: all the machine has.")

    log_level: str = "INFO"
    log_json: bool = True

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


@lru_cache
def get_settings() -> Settings:
    """The process-wide settings, read once."""
    return Settings()
