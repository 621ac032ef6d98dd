"""The dashboard. Empty of imports: the build backend loads `app.web.vendoring` where nothing is installed."""
