"""Drivers: what turns Records into a guest and a guest into Records."""
