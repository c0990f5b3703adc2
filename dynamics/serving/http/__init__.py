"""The service over HTTP: routes, middleware, request and response bodies."""
