"""Servers that a Docker Swarm places: a service for each run, a task for each server. Only the manager is asked."""
