"""Webhook endpoints, their secrets and their log, over HTTP."""
