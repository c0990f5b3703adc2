"""The service on Ray Serve: deployments, HTTP ingress, the page."""
