"""The statements of a reset, and what their answers mean."""
