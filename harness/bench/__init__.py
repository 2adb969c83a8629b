"""What ``pg-harness bench`` measures: each row beside what people do instead, in one run on this machine."""
