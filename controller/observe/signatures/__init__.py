"""Who talks to whom? What switches count, put together and read again."""
