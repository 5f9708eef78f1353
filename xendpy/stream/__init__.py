"""The wire and file formats, sans-I/O: generators that turn bytes into Records, and back."""
