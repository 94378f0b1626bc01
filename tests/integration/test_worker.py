"""Being written by the helper of requests, batches, process handlers, routing, middleware and worker."""
