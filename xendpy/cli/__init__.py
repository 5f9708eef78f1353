"""The commands: `xend` and `xm`."""
