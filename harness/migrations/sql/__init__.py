"""SQL files, in the order and the way of the tool that they are written for."""
