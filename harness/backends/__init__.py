"""What starts a server: docker, process (local binaries), external (a URL that someone else runs)."""
