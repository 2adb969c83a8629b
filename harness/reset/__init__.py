"""Reset: a leased database back to its baseline, connections kept."""
