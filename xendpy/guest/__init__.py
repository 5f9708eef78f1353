"""What a guest is: its configuration, its memory, its page types. No I/O but the memory's map."""
