"""The HTTP server: middleware, scheduler, engine, prefix cache, protocols."""
