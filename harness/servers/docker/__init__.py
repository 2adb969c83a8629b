"""Servers in containers."""
