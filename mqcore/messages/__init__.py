"""What travels: messages, deliveries, and the codecs of their payloads."""
