"""The pure part: no ctypes, thread, socket, clock or file in here."""
