"""One module for each group of pages; each page shows what an endpoint of the API answers."""

from app.web.pages.account import router as account
from app.web.pages.jobs import router as jobs
from app.web.pages.login import router as login
from app.web.pages.models import router as models
from app.web.pages.new_job import router as new_job
from app.web.pages.overview import router as overview
from app.web.pages.secrets import router as secrets
from app.web.pages.webhooks import router as webhooks

ROUTERS = (login, overview, new_job, jobs, models, webhooks, secrets, account)
"""`/jobs/new` comes before `/jobs/{job_id}`."""
