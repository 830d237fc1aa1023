"""Dashboards that ship with the package: ``grafana.json``, see docs/monitoring.md."""
