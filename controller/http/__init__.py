"""The controller's HTTP server: sockets, limits, routes."""
