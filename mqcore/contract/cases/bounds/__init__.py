"""Profile *bounds*: `max_length` bounds what is published and ready, prefetch what is out, limits what is sent; nothing else is."""
